"""A plain genetic algorithm on the first value: tournaments, crossover with repair, local moves, elitism."""

import numpy as np

from hf_prune.blueprint import Genome, Outcome
from hf_prune.search.archive import Archive, ranked
from hf_prune.search.schedule import Schedule, Search
from hf_prune.search.space import Space

CONTENDERS = 3
"""Individuals in a tournament."""
CROSSED = 0.9
"""Probability of a crossover; otherwise the child begins as a copy of one parent."""
MUTATED = 0.7
"""Probability of a local move of a child; certain for a copy."""


def genetic(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Generations of `offspring` at full evidence; the best `population` of parents and children go on."""
    archive = Archive(space, schedule)
    seeds = list(schedule.starts)
    generation = seeds + archive.fresh(lambda: space.random(rng), max(schedule.population - len(seeds), 1))
    population: list[Outcome] = []
    while generation and archive.left:
        children = yield from archive.ask(generation)
        population = ranked(population + children)[: schedule.population]
        generation = _children(space, archive, population, rng)
    return archive.finalists()


def _children(space: Space, archive: Archive, population: list[Outcome], rng: np.random.Generator) -> list[Genome]:
    """New models; random ones when the parents have no new children."""
    count = archive.schedule.offspring
    bred = archive.fresh(lambda: _child(space, population, rng), count)
    return bred or archive.fresh(lambda: space.random(rng), count)


def _child(space: Space, population: list[Outcome], rng: np.random.Generator) -> Genome:
    child = _tournament(population, rng)
    crossed = rng.random() < CROSSED
    if crossed:
        child = space.crossover(child, _tournament(population, rng), rng)
    return space.mutate(child, rng) if not crossed or rng.random() < MUTATED else child


def _tournament(population: list[Outcome], rng: np.random.Generator) -> Genome:
    """The best of a few; the population comes ranked."""
    return population[int(rng.integers(len(population), size=CONTENDERS).min())].trial.genome
