"""Random models: what any search has to beat."""

import numpy as np

from hf_prune.search.archive import Archive
from hf_prune.search.schedule import Schedule, Search
from hf_prune.search.space import Space


def random(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Distinct random models, a generation at a time, until the cap is met."""
    archive = Archive(space, schedule)
    while genomes := archive.fresh(lambda: space.random(rng), min(schedule.offspring, archive.left)):
        yield from archive.ask(genomes)
    return archive.finalists()
