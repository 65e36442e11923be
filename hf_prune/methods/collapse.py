"""collapse: consecutive layers become one (GeLaCo, arXiv 2507.10059; LaCo, arXiv 2402.11187).

    genome = L-1 boundary bits (1 = a new group begins at layer i + 1), then L rule genes (a group's first one counts)

A rule gene below L keeps the layer at that offset of its group (beyond the end: the last one) and deletes the others;
gene L + i applies the i-th merging rule. So deletion, the null model of merging, is always in reach.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, combinations, pairwise, product
from math import comb
from typing import Literal

import numpy as np

from hf_prune.blueprint import Genome, LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.groups import Group, absorbed, cut_between, grow, keep, put, resized, shift, shrink, swap
from hf_prune.methods.partition import checked, fates, kept_of, mixed, partitions, pick, sizes, subset, ways

Norms = Literal["follow", "kept"]
MERGE_SHARE = 0.25
"""How often a random group of two or more layers is merged and not cut down to one of its layers."""


@lru_cache(maxsize=1 << 14)
def rule_spec(rule: str, start: int, size: int, norms: Norms, source: int = 0) -> LayerSpec:
    """The output layer of a merging rule over `size` layers from `start` (b), m = size - 1; canonical.

    mean           1 / size each
    difference:x   theta_b + x * sum_k (theta_{b+k} - theta_b): 1 - x m for b, x for the others. LaCo eq. 1 has x = 1
    laco-released  projections of the last layer, norms of the first: what LaCo's code telescopes to

    With norms "kept" a merged layer takes its norms from its anchor, the heaviest part.
    """
    last, swallowed = start + size - 1, size - 1
    if rule == "laco-released":
        return LayerSpec((Part(source, last),), norms=Part(source, start)).canonical()
    if rule == "mean":
        weights = [1 / size] * size
    else:
        share = float(rule.removeprefix("difference:"))
        weights = [1 - share * swallowed] + [share] * swallowed
    spec = LayerSpec(tuple(Part(source, start + k, w) for k, w in enumerate(weights))).canonical()
    return replace(spec, norms=replace(spec.anchor, weight=1.0)).canonical() if norms == "kept" else spec


@dataclass(frozen=True)
class CollapseSpace:
    """Whole layers removed by collapsing groups; `budget` is how many, None leaves it free.

    `rules` limits what the operators propose; `from_removed` always deletes, and decoding takes any genome. `kinds`
    says which layers can be merged, those of one number; empty where all can. A merge of others keeps the first.

    Raises:
        InvalidRecipe: a budget that leaves no layer, or no rules.
    """

    depth: int
    budget: int | None = None
    rules: tuple[str, ...] = ("keep",)
    norms: Norms = "kept"
    kinds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checked(self.depth, self.budget, self.depth - 1)
        if not self.rules:
            raise InvalidRecipe("rules is empty; name at least one rule, for example keep.")

    @property
    def merges(self) -> tuple[str, ...]:
        """The rules that are not deletions, in the order of their genes."""
        return tuple(r for r in self.rules if not r.startswith("keep"))

    def choices(self, size: int) -> list[int]:
        """Rule genes the operators may give a group of that size."""
        if size == 1:
            return [0]
        ends = [0] * ("keep-first" in self.rules) + [size - 1] * ("keep-last" in self.rules)
        offsets = list(range(size)) if "keep" in self.rules else ends
        return offsets + [self.depth + i for i in range(len(self.merges))]

    def decode(self, genome: Genome, source: int = 0) -> tuple[LayerSpec, ...]:
        """Output layers of any sequence of 2L - 1 integers, canonical, in order."""
        return tuple(self._spec(g, source) for g in self.groups(genome))

    def groups(self, genome: Genome) -> list[Group]:
        """The groups, with genes brought into range."""
        starts = [0] + [i + 1 for i, bit in enumerate(genome[: self.depth - 1]) if bit]
        return [
            self._group(start, stop, int(genome[self.depth - 1 + start]))
            for start, stop in pairwise([*starts, self.depth])
        ]

    def genome(self, groups: Iterable[Group]) -> Genome:
        """The inverse of `groups`; genes that do not count are 0."""
        genome = [0] * (2 * self.depth - 1)
        for g in groups:
            if g.start:
                genome[g.start - 1] = 1
            genome[self.depth - 1 + g.start] = g.gene
        return tuple(genome)

    def dense(self) -> Genome:
        """Every layer its own group."""
        return self.genome(keep(i, i + 1, i) for i in range(self.depth))

    def removed(self, genome: Genome) -> int:
        """Layers fewer than the source has."""
        return sum(not bit for bit in genome[: self.depth - 1])

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """Delete exactly these, whatever the rules and the budget say.

        Raises:
            InvalidRecipe: a layer that does not exist, or no layer left.
        """
        kept = kept_of(self.depth, layers)
        return self.genome(map(keep, [0, *kept[1:]], [*kept[1:], self.depth], kept))

    def random(self, rng: np.random.Generator) -> Genome:
        """Removal sets are uniform (partitions, where the rules cannot keep any layer); most groups are deletions."""
        removed = self.budget if self.budget is not None else int(rng.integers(1, max(self.depth, 2)))
        left = max(self.depth - removed, 1)
        if "keep" in self.rules:
            kept = sorted(subset(rng, range(self.depth), left))
            cuts = [int(rng.integers(x + 1, y + 1)) for x, y in pairwise(kept)]
        else:
            cuts = sorted(subset(rng, range(1, self.depth), left - 1))
            kept = [0, *cuts]
        groups = [keep(*g) for g in zip([0, *cuts], [*cuts, self.depth], kept, strict=True)]
        return self._settled([self._drawn(g, rng) for g in groups], rng)

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One local move: swap a removed with a kept layer, change a rule, or shift a boundary beside a merge.

        In a free budget also one layer more or fewer. A genome without neighbours comes back as it is.
        """
        moves = [swap] if self.budget is not None else [swap, grow, shrink]
        if self.merges:
            moves = moves * 2 + [self._flip, shift]
        groups = self.groups(genome)
        for i in rng.permutation(len(moves)):
            if moved := moves[i](groups, rng):
                return self._settled(moved, rng)
        return genome

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Uniform or one-point crossover of the kept-layer bits, repaired to the budget.

        A layer kept by both parents stays kept; each kept layer brings its rule, and its boundary where it can.
        """
        of_a, of_b = ({g.layer: g for g in self.groups(self.repair(p, rng))} for p in (a, b))
        size = None if self.budget is None else self.depth - self.budget
        chosen, from_a = mixed(of_a.keys(), of_b.keys(), size, self.depth, rng)
        kept = sorted(chosen) or [pick(rng, sorted({*of_a, *of_b}))]
        owners = [of_a[i] if i in of_a and (from_a[i] or i not in of_b) else of_b[i] for i in kept]
        cuts = [cut_between(x, y, rng) for x, y in pairwise(owners)]
        return self._settled(map(resized, owners, [0, *cuts], [*cuts, self.depth]), rng)

    def repair(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Any 2L - 1 integers, brought to the budget by random splits and removals and to rules that are allowed."""
        groups = self.groups(genome)
        while self.budget is not None and len(groups) != self.depth - self.budget:
            groups = shrink(groups, rng) if len(groups) > self.depth - self.budget else grow(groups, rng)
        return self._settled(groups, rng)

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one layer fewer; [] when the budget is met.

        A group goes into a neighbour that keeps its own layer; where the rules allow no deletion, neighbours merge.
        """
        groups = self.groups(genome)
        if self.removed(genome) >= (self.depth - 1 if self.budget is None else self.budget):
            return []
        if all(rule in self.merges for rule in self.rules):
            return [self.genome(m) for i in range(len(groups) - 1) for m in self._joined(groups, i)]
        found = []
        for i in range(len(groups)):
            both = [absorbed(groups, i, j) for j in (i - 1, i + 1) if 0 <= j < len(groups)]
            allowed = [(new[j].kept is None, new) for new, j in both if new[j].gene in self.choices(new[j].size)]
            found += [self.genome(min(allowed, key=lambda pair: pair[0])[1])] if allowed else []
        return found

    def enumerate(self) -> Iterator[Genome]:
        """Every distinct model within the budget once: deletions by removed set, lexicographic, then merges.

        A free budget leaves out the dense model and goes by size. With merging rules the models met are remembered.
        """
        removals = sizes(self.depth, self.budget, self.depth - 1)
        deletions = (c for n in removals if "keep" in self.rules for c in combinations(range(self.depth), n))
        if self.rules == ("keep",):
            yield from map(self.from_removed, deletions)
            return
        seen: set[tuple[LayerSpec, ...]] = set()
        for genome in chain(map(self.from_removed, deletions), *map(self._collapsed, removals)):
            if (specs := self.decode(genome)) not in seen:
                seen.add(specs)
                yield genome

    def count(self) -> int:
        """Number of models `enumerate` yields; with merging rules an upper bound, since some merges are deletions."""
        groups = [self.depth - n for n in sizes(self.depth, self.budget, self.depth - 1)]
        deletions = sum(comb(self.depth, g) for g in groups) if "keep" in self.rules else 0
        if self.rules == ("keep",):
            return deletions
        spellings = ways(self.depth, lambda size: len(self.choices(size)))
        alike = ways(self.depth, lambda size: size) if "keep" in self.rules else [0] * (self.depth + 1)
        return deletions + sum(spellings[g] - alike[g] for g in groups)

    def features(self, genome: Genome) -> np.ndarray:
        """float64 [2L] for a surrogate: removed, then merged indicator per source layer; see `fates`."""
        return fates(self.decode(genome), self.depth)

    def _group(self, start: int, stop: int, gene: int) -> Group:
        gene %= self.depth + len(self.merges)
        if gene < self.depth or stop - start == 1:
            return keep(start, stop, start + gene)
        return Group(start, stop, gene, None)

    def _spec(self, g: Group, source: int) -> LayerSpec:
        if g.kept is not None or len(set(self.kinds[g.start : g.stop])) > 1:
            return LayerSpec((Part(source, g.layer),))
        return rule_spec(self.merges[g.gene - self.depth], g.start, g.size, self.norms, source)

    def _drawn(self, g: Group, rng: np.random.Generator) -> Group:
        """A random rule for a new group, mostly a deletion; where any layer may be kept the caller has chosen which."""
        genes = self.choices(g.size)
        deletions = [c for c in genes if c < self.depth]
        merges = genes[len(deletions) :]
        if merges and (not deletions or rng.random() < MERGE_SHARE):
            return self._group(g.start, g.stop, pick(rng, merges))
        return g if "keep" in self.rules else self._group(g.start, g.stop, pick(rng, deletions))

    def _settled(self, groups: Iterable[Group], rng: np.random.Generator) -> Genome:
        """The genome, with a random allowed rule where a group has one that the rules do not allow."""
        return self.genome(
            g if g.gene in (genes := self.choices(g.size)) else self._group(g.start, g.stop, pick(rng, genes))
            for g in groups
        )

    def _flip(self, groups: list[Group], rng: np.random.Generator) -> list[Group] | None:
        """Another rule for one group of two or more layers; deletions and merges are equally likely."""
        wide = [i for i, g in enumerate(groups) if g.size > 1]
        if not wide:
            return None
        g = groups[i := pick(rng, wide)]
        genes = [c for c in self.choices(g.size) if c != g.gene]
        pools = [p for p in ([c for c in genes if c < self.depth], [c for c in genes if c >= self.depth]) if p]
        return put(groups, i, 1, self._group(g.start, g.stop, pick(rng, pick(rng, pools)))) if pools else None

    def _joined(self, groups: list[Group], i: int) -> Iterator[list[Group]]:
        """Groups i and i + 1 merged by every merging rule."""
        for number in range(len(self.merges)):
            yield put(groups, i, 2, self._group(groups[i].start, groups[i + 1].stop, self.depth + number))

    def _collapsed(self, removed: int) -> Iterator[Genome]:
        """Every partition with every allowed rule; models repeat."""
        for cut in partitions(self.depth, self.depth - removed):
            for genes in product(*(self.choices(stop - start) for start, stop in cut)):
                yield self.genome(self._group(*bounds, gene) for bounds, gene in zip(cut, genes, strict=True))
