"""The genomes of method experts: which experts of every layer stay.

    genome: for every layer that has experts, for every expert 1 where it goes

Where a router chooses among groups of experts, every group of a layer loses as many.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb

import numpy as np

from hf_prune.blueprint import Genome, LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.method import Table
from hf_prune.methods.partition import pick
from hf_prune.models.mixtures import Mixture


@dataclass(frozen=True)
class ExpertSpace:
    """As many experts go of every layer, or as many of all together; None leaves their number free.

    Args:
        depth: source layers.
        mixture: the experts of the base.
        each: experts that go of every layer, of a mean one where layers may differ.
        worth: of every expert of every layer that has some; moves near its threshold come first.
        per_layer: layers may lose different numbers.
    """

    depth: int
    mixture: Mixture
    each: int | None
    worth: Table = ()
    per_layer: bool = False

    @property
    def budget(self) -> int | None:
        """Experts to remove, of all layers together."""
        return None if self.each is None else self.each * len(self.mixture.layers)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Experts that may go of a layer: none of a group more than of another."""
        m = self.mixture
        if not self.per_layer:
            return (self.each,) if self.each is not None else tuple(range(m.groups, m.experts - m.least + 1, m.groups))
        # No token goes to fewer experts than where all layers lose as many.
        most = m.experts - m.least if self.each is None else max(self.each, m.spare)
        return tuple(range(0, most + 1, m.groups))

    # Genomes and what they mean ------------------------------------------------------------------------------------

    def decode(self, genome: Genome) -> tuple[LayerSpec, ...]:
        """Every layer, with the experts that stay."""
        gone = self._gone(genome)
        left = {
            layer: tuple(((int(e), 1.0),) for e in np.flatnonzero(~row))
            for layer, row in zip(self.mixture.layers, gone, strict=True)
            if row.any()
        }
        return tuple(LayerSpec((Part(0, i),), blends=left.get(i)) for i in range(self.depth))

    def dense(self) -> Genome:
        """All experts stay."""
        return (0,) * (len(self.mixture.layers) * self.mixture.experts)

    def removed(self, genome: Genome) -> int:
        """Experts that go."""
        return sum(genome)

    def features(self, genome: Genome) -> np.ndarray:
        """float64 [layers x experts]: 1 for every expert that goes."""
        return np.array(genome, float)

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """Only the dense model is a cut of whole layers.

        Raises:
            InvalidRecipe: a layer is to go.
        """
        if any(True for _ in layers):
            raise InvalidRecipe("Method experts takes experts out of layers, and no layer; use collapse for that.")
        return self.dense()

    def least(self, worth: Sequence[Sequence[float]], count: int | Sequence[int] | None = None) -> Genome:
        """Those of the least worth go, `count` of every layer, or of each its own; as many of every group."""
        count = (self.counts[0] if self.each is None else self.each) if count is None else count
        numbers = np.broadcast_to(np.asarray(count, int), (len(self.mixture.layers),))
        gone = np.zeros(self._shape, bool)
        for row, values, number in zip(gone, np.asarray(worth, float), numbers, strict=True):
            for members in self._members:
                row[members[np.argsort(values[members], kind="stable")[: number // self.mixture.groups]]] = True
        return _flat(gone)

    def cheapest(self, worth: Sequence[Sequence[float]]) -> Genome:
        """Those of the least worth of all layers together go, as far as each can spare them."""
        order, groups = np.sort(np.asarray(worth, float).reshape(len(self.mixture.layers), -1), axis=1), self._step
        numbers = np.zeros(len(order), int)
        while self.budget is not None and numbers.sum() < self.budget:
            free = [i for i, n in enumerate(numbers) if n < self.counts[-1]]
            numbers[min(free, key=lambda i: order[i, numbers[i] : numbers[i] + groups].sum())] += groups
        return self.least(worth, numbers)

    def random(self, rng: np.random.Generator) -> Genome:
        """Any that many; where layers may differ, after as many transfers as there are layers."""
        number = self.each if self.each is not None else pick(rng, [n for n in self.counts if n])
        gone = self._gone(self.least(rng.random(self._shape), number))
        if not self.per_layer:
            return _flat(gone)
        for _ in range(len(gone)):
            self._transfer(gone, rng)
        return _flat(gone)

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One expert comes back and one of its group goes.

        With a free size one of every group may go, or come back; where layers may differ, a layer may take the place of
        another in that.
        """
        gone = self._gone(genome)
        if self.each is None and (rng.random() < 0.5 or not gone.any()):
            if self.per_layer:
                return self._one_more_or_less(gone, rng)
            now = int(gone[0].sum())
            other = [n for n in (now - self._step, now + self._step) if n in self.counts]
            if other:
                return self._resized(gone, pick(rng, other))
        if self.per_layer and rng.random() < 0.5 and self._transfer(gone, rng):
            return _flat(gone)
        layer, group = self._swappable(gone, rng)
        members = self._members[group]
        out, stay = members[gone[layer, members]], members[~gone[layer, members]]
        if len(out) and len(stay):
            gone[layer, _near(out, -self._worth[layer], rng)] = False
            gone[layer, _near(stay, self._worth[layer], rng)] = True
        return _flat(gone)

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Every layer as in one of the two, as many going as in the first."""
        rows = [self._gone(genome) for genome in (a, b)]
        if self.per_layer:
            child = np.where(rng.random(len(rows[0]))[:, None] < 0.5, *rows)
            return self._balanced(child, int(rows[0].sum()), rng)
        count = int(rows[0][0].sum())
        second = rows[1] if int(rows[1][0].sum()) == count else self._gone(self._resized(rows[1], count))
        return _flat(np.where(rng.random(len(rows[0]))[:, None] < 0.5, rows[0], second))

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one expert fewer, and of every other group its least; [] once the budget is met."""
        gone, found = self._gone(genome), []
        if self.budget is not None and gone.sum() >= self.budget:
            return []
        for layer, row in enumerate(gone):
            if row.sum() >= self.counts[-1]:
                continue
            least = [min(m[~row[m]], key=lambda e, n=layer: self._worth[n][e]) for m in self._members]
            for group, members in enumerate(self._members):
                for expert in members[~row[members]]:
                    going = gone.copy()
                    going[layer, [*least[:group], expert, *least[group + 1 :]]] = True
                    found.append(_flat(going))
        return list(dict.fromkeys(found))

    def enumerate(self) -> Iterator[Genome]:
        """Every choice of every number that is allowed."""
        size, layers = len(self._members[0]), len(self.mixture.layers)
        for numbers in self._numbers():
            choices = [
                [tuple(int(i in gone) for i in range(size)) for gone in combinations(range(size), number // self._step)]
                for number in numbers
            ]
            for rows in product(*(choices[layer] for layer in range(layers) for _ in self._members)):
                yield tuple(flag for row in rows for flag in row)

    def count(self) -> int:
        """Number of models `enumerate` yields."""
        groups, size, layers = self._step, self.mixture.experts // self._step, len(self.mixture.layers)
        ways = {n: comb(size, n // groups) ** groups for n in self.counts}
        if not self.per_layer:
            return sum(way**layers for way in ways.values())
        sums = {0: 1}
        for _ in range(layers):
            longer: dict[int, int] = {}
            for (total, so_far), (number, way) in product(sums.items(), ways.items()):
                longer[total + number] = longer.get(total + number, 0) + so_far * way
            sums = longer
        # The dense model is no cut.
        return sum(sums.values()) - 1 if self.budget is None else sums[self.budget]

    # Parts ---------------------------------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.mixture.layers), self.mixture.experts

    @property
    def _step(self) -> int:
        """Experts that go together."""
        return self.mixture.groups

    @cached_property
    def _members(self) -> np.ndarray:
        """int64 [groups, experts of each]."""
        return np.arange(self.mixture.experts).reshape(self.mixture.groups, -1)

    @cached_property
    def _worth(self) -> np.ndarray:
        return np.asarray(self.worth, float) if self.worth else np.zeros(self._shape)

    def _gone(self, genome: Genome) -> np.ndarray:
        return np.array(genome, bool).reshape(self._shape)

    def _numbers(self) -> Iterator[tuple[int, ...]]:
        """Experts that go of every layer, all choices."""
        layers = len(self.mixture.layers)
        if not self.per_layer:
            yield from ((count,) * layers for count in self.counts)
            return
        for numbers in product(self.counts, repeat=layers):
            if any(numbers) and self.budget in (None, sum(numbers)):
                yield numbers

    def _resized(self, gone: np.ndarray, count: int) -> Genome:
        """So many go of every layer: those that are gone first, or last to come back, then by worth."""
        order = np.argsort(np.argsort(self._worth, axis=1), axis=1) - gone * self.mixture.experts
        return self.least(order, count)

    # Numbers that differ -------------------------------------------------------------------------------------------

    def _swappable(self, gone: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        """A layer and a group of it where some are gone and some stay, if there is one."""
        layers = [i for i, row in enumerate(gone) if row.any() and not row.all()] or range(len(gone))
        return pick(rng, layers), int(rng.integers(self.mixture.groups))

    def _more(self, gone: np.ndarray, layer: int, rng: np.random.Generator) -> None:
        """One of every group goes."""
        for members in self._members:
            gone[layer, _near(members[~gone[layer, members]], self._worth[layer], rng)] = True

    def _fewer(self, gone: np.ndarray, layer: int, rng: np.random.Generator) -> None:
        """One of every group comes back."""
        for members in self._members:
            gone[layer, _near(members[gone[layer, members]], -self._worth[layer], rng)] = False

    def _open(self, gone: np.ndarray) -> tuple[list[int], list[int]]:
        """Layers that can lose more, and that have lost some."""
        numbers = gone.sum(1).tolist()
        return [i for i, n in enumerate(numbers) if n < self.counts[-1]], [i for i, n in enumerate(numbers) if n]

    def _transfer(self, gone: np.ndarray, rng: np.random.Generator) -> bool:
        """One layer loses more and another less, in place; False where none can."""
        able, cut = self._open(gone)
        pairs = [(more, less) for more in able for less in cut if more != less]
        if pairs:
            more, less = pairs[int(rng.integers(len(pairs)))]
            self._more(gone, more, rng)
            self._fewer(gone, less, rng)
        return bool(pairs)

    def _one_more_or_less(self, gone: np.ndarray, rng: np.random.Generator) -> Genome:
        able, cut = self._open(gone)
        if not able or gone.sum() > self._step and rng.random() < 0.5:
            self._fewer(gone, pick(rng, cut), rng)
        else:
            self._more(gone, pick(rng, able), rng)
        return _flat(gone)

    def _balanced(self, gone: np.ndarray, budget: int, rng: np.random.Generator) -> Genome:
        """So many go of all layers together."""
        while gone.sum() != budget:
            able, cut = self._open(gone)
            if gone.sum() < budget:
                self._more(gone, pick(rng, able), rng)
            else:
                self._fewer(gone, pick(rng, cut), rng)
        return _flat(gone)


def _flat(gone: np.ndarray) -> Genome:
    return tuple(map(int, gone.ravel()))


def _near(experts: np.ndarray, worth: np.ndarray, rng: np.random.Generator) -> int:
    """One of them, of less worth oftener: the lesser of two draws."""
    ranked = experts[np.argsort(worth[experts], kind="stable")]
    return int(ranked[min(rng.integers(len(ranked), size=2))])
