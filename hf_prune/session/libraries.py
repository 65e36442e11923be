"""Which library a kind is: levels of widths, or what every expert of a mixture is worth."""

from collections.abc import Callable
from pathlib import Path

from hf_prune.data.windows import Windows
from hf_prune.evaluation.dense import Dense
from hf_prune.models.parent import Parent
from hf_prune.recipe import Recipe
from hf_prune.recovery import expert_scores
from hf_prune.recovery.expert_scores import ExpertScores
from hf_prune.recovery.levels import Levels, Options, made


def library_of(
    kind: str, dense: Dense, base: Parent, text: Windows, recipe: Recipe, progress: Callable[[int, int], None]
) -> Levels | ExpertScores:
    """The library of a kind, opened or made; levels may be named by layers of the base from then on."""
    width = recipe.width
    folder = Path(width.library) if width.library else None
    if kind == expert_scores.KIND:
        return expert_scores.made(dense, base, text, folder, progress)
    multiple = width.multiple_of or (8 if dense.device.type == "cpu" else 64)
    options = Options(kind, width.levels, multiple, width.damping)
    found = made(dense, base, text, options, folder, progress)
    base.levels[found.digest] = found
    return found
