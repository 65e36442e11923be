"""NSGA-II (Deb et al. 2002) through pymoo's ask and tell: the front of several objectives."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_prune.blueprint import Genome, Outcome
from hf_prune.search.archive import PATIENCE, Archive
from hf_prune.search.pareto import front
from hf_prune.search.schedule import Schedule, Search
from hf_prune.search.space import Space

CROSSED = 0.9
"""Probability of a crossover (GeLaCo, arXiv 2507.10059)."""
MUTATED = 0.7
"""Probability of a local move of a child; a child that equals something already asked is drawn again."""


def nsga2(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Minimise all values of the outcomes at full evidence.

    The first population is the schedule's seeds and random genomes spread over the sizes. Broken candidates (a value
    that is not finite) count as infeasible. The search ends with the cap, or when mating finds nothing new.

    Returns:
        The non-dominated front of everything scored, distinct values, ordered by the first value; empty when everything
        was broken.
    """
    archive = Archive(space, schedule)
    algorithm = None
    generation = _first(space, schedule, rng)
    while generation and archive.left:
        told = yield from archive.ask(generation)
        if algorithm is None:
            algorithm = _algorithm(space, archive, len(told[0].values), rng)
        algorithm.tell(infills=_population(told))
        asked = algorithm.ask() if archive.left else None
        generation = [] if asked is None else [_genome(one.X) for one in asked]
    return front(archive.full.values())


def _first(space: Space, schedule: Schedule, rng: np.random.Generator) -> list[Genome]:
    """Seeds, then random genomes, always of a size that is rarest so far: stratified over the sizes."""
    chosen = dict.fromkeys(schedule.starts)
    taken = Counter(space.removed(g) for g in chosen)
    pools: dict[int, list[Genome]] = {}
    for genome in dict.fromkeys(space.random(rng) for _ in range(PATIENCE * schedule.population)):
        if genome not in chosen:
            pools.setdefault(space.removed(genome), []).append(genome)
    while pools and len(chosen) < schedule.population:
        size = min(pools, key=lambda n: (taken[n], n))
        chosen[pools[size].pop()] = None
        taken[size] += 1
        if not pools[size]:
            del pools[size]
    return list(chosen)


def _genome(row: Sequence[Any]) -> Genome:
    return tuple(int(gene) for gene in row)


def _population(outcomes: Sequence[Outcome]) -> Any:
    """pymoo's form of scored candidates: F the values, one constraint that broken ones violate."""
    from pymoo.core.population import Population

    values = np.array([o.values for o in outcomes], float)
    broken = ~np.isfinite(values).all(1)
    values[broken] = 0.0
    found = Population.new("X", np.array([o.trial.genome for o in outcomes], int))
    found.set("F", values, "G", broken[:, None].astype(float))
    for individual in found:
        individual.evaluated = {"F", "G", "H"}
        individual.H = np.zeros(0)
    return found


def _algorithm(space: Space, archive: Archive, objectives: int, rng: np.random.Generator) -> Any:
    """pymoo's NSGA2, set up and waiting for its first population; its own draws are seeded from `rng`."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination

    schedule = archive.schedule
    crossover, mutation, fresh = _operators(space, archive, rng)
    genes = len(space.dense())
    algorithm = NSGA2(
        pop_size=schedule.population,
        n_offsprings=schedule.offspring,
        crossover=crossover,
        mutation=mutation,
        eliminate_duplicates=fresh,
    )
    problem = Problem(n_var=genes, n_obj=objectives, n_ieq_constr=1)
    algorithm.setup(problem, termination=NoTermination(), seed=int(rng.integers(2**31)), verbose=False)
    return algorithm


def _operators(space: Space, archive: Archive, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """The space's crossover and local move as pymoo's, and what rejects models already asked."""
    from pymoo.core.crossover import Crossover
    from pymoo.core.duplicate import DuplicateElimination
    from pymoo.core.mutation import Mutation

    class Cross(Crossover):
        def _do(self, problem: Any, x: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
            return np.array([[space.crossover(_genome(a), _genome(b), rng) for a, b in zip(*x, strict=True)]])

    class Move(Mutation):
        def _do(self, problem: Any, x: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
            return np.array([space.mutate(_genome(row), rng) if rng.random() < MUTATED else row for row in x])

    class Fresh(DuplicateElimination):
        def _do(self, pop: Any, other: Any, is_duplicate: np.ndarray) -> np.ndarray:
            met = set(archive.full) if other is None else {archive.model(_genome(o.X)) for o in other}
            for i, one in enumerate(pop):
                model = archive.model(_genome(one.X))
                is_duplicate[i] = model in met
                met.add(model)
            return is_duplicate

    return Cross(2, 1, prob=CROSSED), Move(), Fresh()
