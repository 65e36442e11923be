"""halves: attention and MLP removed separately (EvoPress, arXiv 2410.14649).

    genome = L attention bits, then L MLP bits (1 = gone)

A layer that has lost both halves is gone. The first layer that remains keeps its attention, whatever its bit says: the
length of the KV cache is taken from there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np

from hf_prune.blueprint import DENSE, GONE, Genome, LayerSpec, Part
from hf_prune.methods.deletions import WholeLayers
from hf_prune.methods.method import Facts
from hf_prune.methods.partition import checked, kept_of, mixed, pick, sizes, subset

TRIES = 200
"""Draws before a move gives up; only spaces with next to no valid neighbour need more than a few."""
Gone = tuple[frozenset[int], frozenset[int]]
"""Layers without attention, layers without MLP."""


@dataclass(frozen=True)
class HalvesSpace:
    """`budget` halves removed in total; None leaves it free.

    `balanced`: as many attentions as MLPs (an odd budget takes one MLP more); it has no meaning in a free budget.

    Raises:
        InvalidRecipe: a budget that leaves nothing.
    """

    depth: int
    budget: int | None = None
    balanced: bool = True

    def __post_init__(self) -> None:
        checked(self.depth, self.budget, 2 * self.depth - 1)

    @property
    def split(self) -> tuple[int, int] | None:
        """Attentions and MLPs to remove, None when they may trade."""
        return (self.budget // 2, self.budget - self.budget // 2) if self.budget is not None and self.balanced else None

    def decode(self, genome: Genome, source: int = 0) -> tuple[LayerSpec, ...]:
        """Output layers of any 2L integers, canonical, in order."""
        attention, mlp = self.gone(genome)
        return tuple(
            LayerSpec(
                (Part(source, i),),
                attn_level=GONE if i in attention else DENSE,
                mlp_level=GONE if i in mlp else DENSE,
            )
            for i in range(self.depth)
            if not (i in attention and i in mlp)
        )

    def gone(self, genome: Genome) -> Gone:
        """What a genome removes, once its first remaining layer has its attention."""
        attention = frozenset(i for i in range(self.depth) if genome[i])
        mlp = frozenset(i for i in range(self.depth) if genome[self.depth + i])
        first = min(set(range(self.depth)) - (attention & mlp), default=0)
        return attention - {first}, mlp

    def genome(self, attention: Iterable[int], mlp: Iterable[int]) -> Genome:
        """Bits of the layers without attention and of those without MLP."""
        ones = set(attention) | {self.depth + i for i in mlp}
        return tuple(int(i in ones) for i in range(2 * self.depth))

    def dense(self) -> Genome:
        """Nothing removed."""
        return (0,) * (2 * self.depth)

    def removed(self, genome: Genome) -> int:
        """Halves removed."""
        return sum(map(len, self.gone(genome)))

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """Remove both halves of exactly these layers, whatever the budget says.

        Raises:
            InvalidRecipe: a layer that does not exist, or no layer left.
        """
        kept = set(kept_of(self.depth, layers))
        return self.genome(*[set(range(self.depth)) - kept] * 2)

    def random(self, rng: np.random.Generator) -> Genome:
        """All removals within the budget are equally likely; a free budget draws the number first."""
        total = self.budget if self.budget is not None else int(rng.integers(1, 2 * self.depth))
        for _ in range(TRIES):
            if self.split:
                gone = tuple(subset(rng, range(self.depth), n) for n in self.split)
            else:
                gone = self._halves(subset(rng, range(2 * self.depth), total))
            if self.valid(*gone):
                return self.genome(*gone)
        return self.repair(self.genome(*gone), rng)

    def valid(self, attention: Iterable[int], mlp: Iterable[int]) -> bool:
        """Whether a layer remains and the first one has its attention."""
        attention, mlp = set(attention), set(mlp)
        first = next((i for i in range(self.depth) if i not in attention or i not in mlp), None)
        return first is not None and first not in attention

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Swap a removed half with a remaining one, of the same kind when the budget is balanced.

        In a free budget one half more or fewer is as likely. A genome without neighbours comes back as it is.
        """
        ones = self._ones(genome)
        zeros = sorted(set(range(2 * self.depth)) - ones)
        for _ in range(TRIES):
            move = "swap" if self.budget is not None else pick(rng, ("swap", "more", "fewer"))
            out = {pick(rng, sorted(ones))} if ones and move != "more" else set()
            into = {pick(rng, zeros)} if zeros and move != "fewer" else set()
            if move == "swap" and not (out and into and self._may_trade(*out, *into)):
                continue
            new = self._halves((ones - out) | into)
            if (out or into) and self.valid(*new):
                return self.genome(*new)
        return genome

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Uniform or one-point crossover of the bits, repaired to the budget."""
        parents = [self.gone(self.repair(p, rng)) for p in (a, b)]
        if self.split:
            child = [mixed(*kinds, n, self.depth, rng)[0] for *kinds, n in zip(*parents, self.split, strict=True)]
        else:
            both = [self._ones(self.genome(*p)) for p in parents]
            child = self._halves(mixed(*both, self.budget, 2 * self.depth, rng)[0])
        return self.repair(self.genome(*child), rng)

    def repair(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Any 2L integers, brought to the budget by returning, then removing random halves; the rest stays."""
        ones = self._ones(genome)
        while self.budget is not None and (options := self._options(ones, False) or self._options(ones, True)):
            ones = ones ^ {pick(rng, options)}
        return self.genome(*self._halves(ones))

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one half fewer, attention first; [] when the budget is met."""
        ones = self._ones(genome)
        return [self.genome(*self._halves(ones | {i})) for i in self._options(ones, True)]

    def enumerate(self) -> Iterator[Genome]:
        """Every distinct model within the budget once, lexicographic in the removed attentions, then the removed MLPs.

        A free budget leaves out the dense model and goes by size.
        """
        for total in sizes(2 * self.depth, self.budget, 2 * self.depth - 1):
            for a, m in self._splits(total):
                for gone in product(combinations(range(self.depth), a), combinations(range(self.depth), m)):
                    if self.valid(*gone):
                        yield self.genome(*gone)

    def count(self) -> int:
        """Number of models `enumerate` yields.

        With f layers gone before the first that remains: a - f attentions of the L - 1 - f behind it and m - f MLPs of
        L - f are chosen.
        """
        return sum(
            comb(self.depth - 1 - f, a - f) * comb(self.depth - f, m - f)
            for total in sizes(2 * self.depth, self.budget, 2 * self.depth - 1)
            for a, m in self._splits(total)
            for f in range(min(a, m) + 1)
        )

    def features(self, genome: Genome) -> np.ndarray:
        """float64 [2L] for a surrogate: 1 where the attention is gone, then where the MLP is."""
        ones = self._ones(genome)
        return np.array([float(i in ones) for i in range(2 * self.depth)])

    def _splits(self, total: int) -> Sequence[tuple[int, int]]:
        if self.split:
            return [self.split]
        return [(a, total - a) for a in range(self.depth) if 0 <= total - a <= self.depth]

    def _ones(self, genome: Genome) -> set[int]:
        attention, mlp = self.gone(genome)
        return set(attention) | {self.depth + i for i in mlp}

    def _halves(self, ones: Iterable[int]) -> tuple[set[int], set[int]]:
        ones = set(ones)
        return {i for i in ones if i < self.depth}, {i - self.depth for i in ones if i >= self.depth}

    def _options(self, ones: set[int], remove: bool) -> list[int]:
        """Halves that may go, or come back, on the way to the budget without leaving a first layer without attention.

        There is one until the budget is met: attention may always come back, MLPs may always go.
        """
        attention = sum(i < self.depth for i in ones)
        if self.split:
            missing = [self.split[0] - attention, self.split[1] - (len(ones) - attention)]
        else:
            missing = [1 if self.budget is None else self.budget - len(ones)] * 2
        sign = 1 if remove else -1
        halves = [i for i in range(2 * self.depth) if (i not in ones) == remove and sign * missing[i >= self.depth] > 0]
        return [i for i in halves if self.valid(*self._halves(ones ^ {i}))]

    def _may_trade(self, a: int, b: int) -> bool:
        return self.split is None or (a < self.depth) == (b < self.depth)


class Halves(WholeLayers):
    """Attention and MLP go separately."""

    title = "Attention and MLP apart (halves)"
    units = 2
    # Stock classes have no layer without a half, so it stays in the file as zeros.
    shrinks = False

    def takes_apart(self, recipe: Any) -> str | None:
        """Always."""
        return "--method halves"

    def space(self, recipe: Any, facts: Facts) -> HalvesSpace:
        """As many halves as the layers to remove have."""
        return HalvesSpace(facts.depth, 2 * facts.remove or None)
