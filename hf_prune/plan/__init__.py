"""What a run would do and need, before it begins: sizes, memory, disk, evaluations, tokens, time.

`counts` says how much is done, `memory` what that takes, `checks` what is refused; `rates` how fast a machine is,
`forecast` how long the stages take on it, `budget` what fits into a time; `plans` has all of it for a source.
"""

import sys
from types import ModuleType

from hf_prune.plan.advice import Advice
from hf_prune.plan.budget import Budget, budget_of
from hf_prune.plan.checks import check_evidence, check_layers
from hf_prune.plan.counts import (
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
from hf_prune.plan.forecast import Forecast, forecast
from hf_prune.plan.memory import Demand, Room, check_streamed, demand_of, host_memory, room_here
from hf_prune.plan.plans import Plan, plan
from hf_prune.plan.rates import DEVICES, Rates, Shape, rates_here, rates_of
from hf_prune.plan.streaming import Streaming, reading_rates
from hf_prune.recipe import Recipe

__all__ = [
    "DEVICES", "Advice", "Budget", "Demand", "Forecast", "Plan", "Rates", "Room", "Shape", "Streaming",
    "baseline_evaluations", "budget_of", "candidates", "check_evidence", "check_layers", "check_streamed",
    "demand_of", "describe_target", "evaluations", "facts_of", "forecast", "host_memory", "layer_passes", "lessons",
    "own_need", "own_tokens", "plan", "rates_here", "rates_of", "reading_rates", "room_here", "target_beside",
    "target_of",
]  # fmt: skip


class _Called(ModuleType):
    """`hf_prune.plan(recipe)` is the plan on this machine, although the package stands under that name."""

    def __call__(self, recipe: Recipe) -> Plan:
        from hf_prune.plan.here import plan

        return plan(recipe)


sys.modules[__name__].__class__ = _Called
