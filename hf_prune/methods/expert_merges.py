"""Experts that go are dropped, or merged into the nearest that stays: a gene for each layer says which.

    genome: that of `ExpertSpace`, then for every layer that has experts 1 where those that go are merged

Nearest is by outputs on the same tokens (HC-SMoE, arXiv 2410.08589), and the weights of a mean are how often the router
chose each (M-SMoE, arXiv 2310.01334). The router keeps the row of the expert that stays.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from hf_prune.blueprint import Blend, Genome, LayerSpec
from hf_prune.methods.expert_space import ExpertSpace
from hf_prune.methods.method import Table

FLIPS = 0.25
"""Share of the moves that change whether a layer merges."""
LEAST_USE = 1e-6
"""Of an expert in a mean, so that one that no token reached has a weight."""


@dataclass(frozen=True)
class MergingSpace:
    """Choices of experts, and for every layer whether those that go are merged.

    Args:
        plain: which experts go.
        distances: for every layer between the outputs of its experts, [experts x experts].
        frequency: how often each was chosen.
    """

    plain: ExpertSpace
    distances: Table
    frequency: Table

    @property
    def depth(self) -> int:
        """Source layers."""
        return self.plain.depth

    @property
    def budget(self) -> int | None:
        """Experts to remove, of all layers together."""
        return self.plain.budget

    def decode(self, genome: Genome) -> tuple[LayerSpec, ...]:
        """Every layer, with what its experts are made of."""
        gone, merges = self._parts(genome)
        specs = list(self.plain.decode(gone))
        for row, layer in enumerate(self.plain.mixture.layers):
            if merges[row] and specs[layer].blends:
                specs[layer] = replace(specs[layer], blends=self._merged(row, specs[layer].blends))
        return tuple(specs)

    def dense(self) -> Genome:
        """All experts stay."""
        return self.with_merges(self.plain.dense(), False)

    def with_merges(self, gone: Genome, merges: bool) -> Genome:
        """A genome of the plain space, every layer merging or none."""
        return (*gone, *(int(merges),) * len(self.plain.mixture.layers))

    def removed(self, genome: Genome) -> int:
        """Experts that go, by themselves or into another."""
        return self.plain.removed(self._parts(genome)[0])

    def features(self, genome: Genome) -> np.ndarray:
        """float64 [layers x experts + layers]."""
        return np.array(genome, float)

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """Only the dense model is a cut of whole layers."""
        return self.with_merges(self.plain.from_removed(layers), False)

    def random(self, rng: np.random.Generator) -> Genome:
        """Any experts, and any layers."""
        return (*self.plain.random(rng), *map(int, rng.random(len(self.plain.mixture.layers)) < 0.5))

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """A move of the plain space, or one layer that merges no longer, or does from now on."""
        gone, merges = self._parts(genome)
        cut = [i for i, row in enumerate(np.reshape(gone, (len(merges), -1))) if any(row)]
        if cut and rng.random() < FLIPS:
            layer = cut[int(rng.integers(len(cut)))]
            return (*gone, *(m ^ (i == layer) for i, m in enumerate(merges)))
        return (*self.plain.mutate(gone, rng), *merges)

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Experts of both, and every layer merging as in one of the two."""
        (first, merges), (second, others) = self._parts(a), self._parts(b)
        asked = rng.random(len(merges)) < 0.5
        mixed = (x if first_one else y for x, y, first_one in zip(merges, others, asked, strict=True))
        return (*self.plain.crossover(first, second, rng), *mixed)

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one expert fewer, merging as before."""
        gone, merges = self._parts(genome)
        return [(*found, *merges) for found in self.plain.removals(gone)]

    def enumerate(self) -> Iterator[Genome]:
        """Every choice of experts with every choice of layers that lose some."""
        layers = len(self.plain.mixture.layers)
        for gone in self.plain.enumerate():
            cut = [any(row) for row in np.reshape(gone, (layers, -1))]
            for merges in product(*((0, 1) if able else (0,) for able in cut)):
                yield (*gone, *merges)

    def count(self) -> int:
        """Models `enumerate` yields, or more where layers may keep all experts."""
        return self.plain.count() * 2 ** len(self.plain.mixture.layers)

    # Parts ---------------------------------------------------------------------------------------------------------

    def _parts(self, genome: Genome) -> tuple[Genome, Genome]:
        size = len(self.plain.mixture.layers)
        return genome[:-size], genome[-size:]

    @cached_property
    def _between(self) -> np.ndarray:
        experts = self.plain.mixture.experts
        return np.asarray(self.distances, float).reshape(-1, experts, experts)

    def _merged(self, row: int, blends: Sequence[Blend]) -> tuple[Blend, ...]:
        """What stays, first of its blend, with the nearest of what goes; of its own group where there are some."""
        m = self.plain.mixture
        kept = [blend[0][0] for blend in blends]
        members: dict[int, list[int]] = {e: [e] for e in kept}
        size = m.experts // m.groups
        for expert in range(m.experts):
            if expert not in members:
                able = [e for e in kept if e // size == expert // size]
                members[min(able, key=lambda e, x=expert: self._between[row, e, x])].append(expert)
        return tuple(self._mean(row, members[e]) for e in kept)

    def _mean(self, row: int, experts: Sequence[int]) -> Blend:
        use = [max(self.frequency[row][e], LEAST_USE) for e in experts]
        return tuple((e, float(f"{u / sum(use):.12g}")) for e, u in zip(experts, use, strict=True))
