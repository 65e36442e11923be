"""What a run would do and need, before it begins: sizes, memory, disk, evaluations, tokens.

`counts` says how much is done, `memory` what that takes, `checks` what is refused, `plans` all of it for a source.
"""

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
    target_of,
)
from hf_prune.plan.plans import Plan, plan

__all__ = [
    "Plan", "baseline_evaluations", "candidates", "check_evidence", "check_layers", "describe_target", "evaluations",
    "facts_of", "layer_passes", "lessons", "own_need", "own_tokens", "plan", "target_of",
]  # fmt: skip
