"""What the user asks for: one definition behind the YAML file, the CLI flags and Python.

`fields` says what there is, in groups; `spelling` how it may be written; `recipe` what fits together and its digests.
"""

from hf_prune.recipe.fields import (
    DEFAULT_DATA,
    DEFAULT_TASKS,
    RULES,
    TASK_OBJECTIVES,
    Baseline,
    Method,
    Objective,
    Searcher,
)
from hf_prune.recipe.recipe import AFTER_SEARCH, NOT_IDENTITY, Recipe
from hf_prune.recipe.spelling import OPTIONS, flagged, flatten, nest, spelled

__all__ = [
    "AFTER_SEARCH", "DEFAULT_DATA", "DEFAULT_TASKS", "NOT_IDENTITY", "OPTIONS", "RULES", "TASK_OBJECTIVES", "Baseline",
    "Method", "Objective", "Recipe", "Searcher", "flagged", "flatten", "nest", "spelled",
]  # fmt: skip
