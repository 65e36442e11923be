"""SLEB (arXiv 2402.09025): remove the layer whose loss hurts least, score again, repeat."""

import numpy as np

from hf_prune.search.archive import Archive, ranked
from hf_prune.search.schedule import Schedule, Search, TimeUp
from hf_prune.search.space import Space


def greedy(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Start dense; in every round keep the best of all genomes with one unit fewer, until the budget is met.

    The finalists are the candidates of the last round. A cap met before that returns the best of the round it reached,
    whose cuts are smaller than asked for. In a free budget the rounds go on until `space.removals` ends them.
    """
    archive = Archive(space, schedule)
    current, reached = space.dense(), []
    try:
        while archive.left and (candidates := space.removals(current)):
            reached = ranked((yield from archive.ask(candidates)))
            current = reached[0].trial.genome
    except TimeUp as up:
        removed = space.removed(candidates[0])
        reached = ranked([o for o in up.outcomes if space.removed(o.trial.genome) == removed] or reached)
    return tuple(reached[: schedule.finalists])
