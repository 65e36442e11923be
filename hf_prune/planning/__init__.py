"""What a run would do and need, before it begins: sizes, memory, disk, evaluations, tokens, time.

`counts` says how much is done, `memory` what that takes, `checks` what is refused; `rates` how fast a machine is,
`forecast` how long the stages take on it, `budget` what fits into a time; `plans` has all of it for a source.
"""

from hf_prune.planning.advice import Advice
from hf_prune.planning.budget import Budget, budget_of
from hf_prune.planning.checks import check_evidence, check_gguf, check_layers
from hf_prune.planning.counts import (
    baseline_evaluations,
    candidates,
    describe_target,
    evaluations,
    facts_of,
    layer_passes,
    lessons,
    own_need,
    own_tokens,
    target_beside,
    target_of,
)
from hf_prune.planning.forecast import Forecast, forecast
from hf_prune.planning.memory import Demand, Room, check_streamed, demand_of, host_memory, room_here
from hf_prune.planning.plans import Plan, plan
from hf_prune.planning.rates import DEVICES, Rates, Shape, rates_here, rates_of
from hf_prune.planning.streaming import Streaming, reading_rates

__all__ = [
    "DEVICES", "Advice", "Budget", "Demand", "Forecast", "Plan", "Rates", "Room", "Shape", "Streaming",
    "baseline_evaluations", "budget_of", "candidates", "check_evidence", "check_gguf", "check_layers", "check_streamed",
    "demand_of", "describe_target", "evaluations", "facts_of", "forecast", "host_memory", "layer_passes", "lessons",
    "own_need", "own_tokens", "plan", "rates_here", "rates_of", "reading_rates", "room_here", "target_beside",
    "target_of",
]  # fmt: skip
