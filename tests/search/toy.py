"""A space of removal sets, landscapes over it with a known optimum, and a loop without files."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.search import Scores, Search

FULL = Fidelity(8)


@dataclass(frozen=True)
class Removals:
    """genome = one bit per layer (1 = removed); `budget` None leaves 1..depth-1 removals open."""

    depth: int
    budget: int | None = None

    def dense(self) -> Genome:
        return (0,) * self.depth

    def from_removed(self, layers: Iterable[int]) -> Genome:
        gone = set(layers)
        return tuple(int(i in gone) for i in range(self.depth))

    def removed(self, genome: Genome) -> int:
        return sum(genome)

    def gone(self, genome: Genome) -> set[int]:
        return {i for i, bit in enumerate(genome) if bit}

    def decode(self, genome: Genome) -> frozenset[int]:
        return frozenset(self.gone(genome))

    def within(self, genome: Genome) -> bool:
        n = self.removed(genome)
        return len(genome) == self.depth and (0 < n < self.depth if self.budget is None else n == self.budget)

    def random(self, rng: np.random.Generator) -> Genome:
        n = self.budget if self.budget is not None else int(rng.integers(1, self.depth))
        return self.from_removed(rng.permutation(self.depth)[:n].tolist())

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        flipped = [int(rng.integers(self.depth))]
        if self.budget is not None:
            flipped = [int(rng.choice([i for i, bit in enumerate(genome) if bit == kind])) for kind in (0, 1)]
        moved = tuple(bit ^ (i in flipped) for i, bit in enumerate(genome))
        return moved if self.within(moved) else genome

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        either = sorted(self.gone(a) ^ self.gone(b))
        both = self.gone(a) & self.gone(b)
        count = int(rng.integers(len(either) + 1)) if self.budget is None else self.budget - len(both)
        child = self.from_removed(both | {either[i] for i in rng.permutation(len(either))[:count]})
        return child if self.within(child) else a

    def removals(self, genome: Genome) -> list[Genome]:
        if self.removed(genome) >= (self.depth - 1 if self.budget is None else self.budget):
            return []
        return [self.from_removed(self.gone(genome) | {i}) for i in range(self.depth) if not genome[i]]

    def enumerate(self) -> Iterator[Genome]:
        sizes = range(1, self.depth) if self.budget is None else [self.budget]
        for n in sizes:
            yield from map(self.from_removed, itertools.combinations(range(self.depth), n))

    def features(self, genome: Genome) -> np.ndarray:
        return np.array(genome, float)


@dataclass(frozen=True, eq=False)
class Landscape:
    """exp(single + pair effects - traps), with noise that fades as evidence grows; the ends are dear."""

    single: np.ndarray
    pairs: np.ndarray
    traps: tuple[tuple[frozenset[int], float], ...]
    noise: float
    broken: frozenset[int] = frozenset()

    @classmethod
    def draw(cls, seed: int, depth: int = 16, size: int = 4, noise: float = 0.1) -> "Landscape":
        rng = np.random.default_rng(seed)
        single = rng.gamma(1.5, 0.3, depth)
        single[[0, -1]] += (2.0, 1.0)
        pairs = np.triu(rng.normal(0, 0.25, (depth, depth)), 1)
        traps = [(frozenset(rng.permutation(depth)[:size].tolist()), float(rng.uniform(0.3, 0.8))) for _ in range(6)]
        return cls(single, pairs, tuple(traps), noise)

    def value(self, genome: Genome, fidelity: Fidelity = FULL) -> float:
        gone = [i for i, bit in enumerate(genome) if bit]
        if self.broken and self.broken <= set(gone):
            return math.inf
        total = self.single[gone].sum() + self.pairs[np.ix_(gone, gone)].sum()
        total -= sum(depth * (len(trap & set(gone)) / len(trap)) ** 3 for trap, depth in self.traps)
        seed = int("".join(map(str, genome)), 2)
        windows = np.random.default_rng(seed).normal(0, self.noise, 64)[: fidelity.sequences]
        return math.exp(0.7 * total + windows.mean())

    def evaluate(self, trials: tuple[Trial, ...]) -> list[tuple[float, ...]]:
        return [(self.value(t.genome, t.fidelity), float(len(t.genome) - sum(t.genome))) for t in trials]

    def breaking(self, *layers: int) -> "Landscape":
        return replace(self, broken=frozenset(layers))


def scores(depth: int) -> Scores:
    rng = np.random.default_rng(7)
    distance = tuple(tuple(rng.random(depth - start).tolist()) for start in range(depth))
    return Scores(tuple(rng.random(depth).tolist()), distance)


def play(
    search: Search, evaluate: Callable[[tuple[Trial, ...]], list[tuple[float, ...]]]
) -> tuple[tuple[Outcome, ...], list[tuple[Trial, ...]]]:
    """Finalists, and every batch that was asked."""
    asked = []
    try:
        trials = next(search)
        while True:
            asked.append(trials)
            results = zip(trials, evaluate(trials), strict=True)
            trials = search.send(tuple(Outcome(t, v) for t, v in results))
    except StopIteration as end:
        return end.value, asked


def layer_passes(genomes: Iterable[Genome]) -> int:
    """Layers to run for all of them when equal beginnings are run once."""
    kept = (tuple(i for i, bit in enumerate(g) if not bit) for g in genomes)
    return len({row[:n] for row in kept for n in range(1, len(row) + 1)})
