"""Baselines that look at the dense model once: last-n, ShortGPT and the contiguous window."""

import numpy as np

from hf_prune.errors import InvalidRecipe
from hf_prune.search.archive import Archive
from hf_prune.search.schedule import Schedule, Scores, Search
from hf_prune.search.space import Space


def last(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Drop the last n layers.

    Raises:
        InvalidRecipe: the size is free.
    """
    n = _layers(space, "last")
    return (yield from _ask_once(space, schedule, range(space.depth - n, space.depth)))


def shortgpt(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Drop the n layers of smallest block influence (ShortGPT, arXiv 2403.03853); ties go to the earlier layer.

    Raises:
        InvalidRecipe: the schedule has no `scores`, or the size is free.
    """
    n = _layers(space, "shortgpt")
    influence = _scores(schedule, "shortgpt").influence
    weakest = sorted(range(space.depth), key=lambda layer: influence[layer])[:n]
    return (yield from _ask_once(space, schedule, sorted(weakest)))


def window(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Drop the block of n consecutive layers of smallest angular distance (Gromov et al., arXiv 2403.17887).

    Raises:
        InvalidRecipe: the schedule has no `scores`, or the size is free.
    """
    n = _layers(space, "window")
    distance = _scores(schedule, "window").distance
    start = min(range(space.depth - n + 1), key=lambda first: distance[first][n - 1]) if n else 0
    return (yield from _ask_once(space, schedule, range(start, start + n)))


def _ask_once(space: Space, schedule: Schedule, layers: range | list[int]) -> Search:
    archive = Archive(space, schedule)
    yield from archive.ask([space.from_removed(layers)])
    return archive.finalists()


def _layers(space: Space, name: str) -> int:
    """Whole layers to drop; a space that counts halves has two units per layer, and an odd one stays in."""
    if space.budget is None:
        raise InvalidRecipe(f"Search {name} needs a size to cut to; give ratio or keep_layers, or search with nsga2.")
    return space.budget // max(space.removed(space.from_removed([0])), 1)


def _scores(schedule: Schedule, name: str) -> Scores:
    if schedule.scores is None:
        raise InvalidRecipe(f"Search {name} needs the layer scores of the dense model, and the schedule has none.")
    return schedule.scores
