"""Every model within the budget, once."""

from itertools import islice

import numpy as np

from hf_prune.search.archive import Archive
from hf_prune.search.schedule import Schedule, Search
from hf_prune.search.space import Space

CHUNK = 2048
"""Candidates asked at a time: the more, the more prefixes they share."""


def exhaustive(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Ask for `space.enumerate()` in order until it ends or the cap is met; the best seen come back ranked."""
    archive = Archive(space, schedule)
    genomes = space.enumerate()
    while chunk := list(islice(genomes, min(CHUNK, archive.left))):
        yield from archive.ask(chunk)
    return archive.finalists()
