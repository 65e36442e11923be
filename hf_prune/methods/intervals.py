"""intervals: the genome of the GeLaCo paper (arXiv 2507.10059), for replication.

    genome = L triples (begin, end, active), applied in order

An active triple with begin < end merges the current layers that hold source layers begin .. end by the paper's rule,
theta_b + sum_k (theta_{b+k} - theta_b), where theta are the rows as merged so far; any other triple does nothing. So
every output layer is an affine row over source layers with integer weights. Which layers share a row depends on the
union of the intervals alone, the weights also on their order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import comb
from typing import Any, Literal

import numpy as np

from hf_prune.blueprint import Genome, LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.deletions import WholeLayers
from hf_prune.methods.method import Facts
from hf_prune.methods.partition import checked, fates, kept_of, partitions, pick, sizes, ways

Triple = tuple[int, int, bool]
Weights = tuple[int, ...]
"""Integer weights of one output layer over the source layers from its group's first on; they add up to 1."""
TRIES = 16
"""Draws before a mutation that changes nothing is accepted: many genes are silent."""
JITTER = 0.5
"""Chance that a shifted begin or end moves one layer further."""


def merged(rows: list[Weights]) -> Weights:
    """The paper's rule on rows of consecutive groups: (1 - m) times the first plus each of the m others."""
    return tuple(w * (2 - len(rows)) for w in rows[0]) + tuple(w for row in rows[1:] for w in row)


@lru_cache(maxsize=64)
def nestings(size: int) -> tuple[tuple[Weights, tuple[Triple, ...]], ...]:
    """Every distinct row that `size` layers can become, each with triples (first layer = 0) that make it."""
    found: dict[Weights, tuple[Triple, ...]] = {} if size > 1 else {(1,): ()}
    for groups in range(2, size + 1):
        for cut in partitions(size, groups):
            for children in product(*(nestings(stop - start) for start, stop in cut)):
                row = merged([r for r, _ in children])
                inner = [t for (start, _), (_, ts) in zip(cut, children, strict=True) for t in _moved(ts, start)]
                found.setdefault(row, (*inner, (0, size - 1, True)))
    return tuple(found.items())


def _moved(triples: Iterable[Triple], by: int) -> list[Triple]:
    return [(begin + by, end + by, active) for begin, end, active in triples]


@dataclass(frozen=True)
class IntervalSpace:
    """`budget` layers removed; None, the paper's setting, leaves it free. Norms follow the rule, as in the paper.

    Raises:
        InvalidRecipe: a budget that leaves no layer.
    """

    depth: int
    budget: int | None = None
    norms: Literal["follow", "kept"] = "follow"

    def __post_init__(self) -> None:
        checked(self.depth, self.budget, self.depth - 1)

    def triples(self, genome: Genome) -> list[Triple]:
        """The L triples with begin and end brought into 0..L-1; an odd third number is active."""
        columns = zip(genome[::3], genome[1::3], genome[2::3], strict=True)
        return [(int(b) % self.depth, int(e) % self.depth, bool(a % 2)) for b, e, a in columns]

    def genome(self, triples: Iterable[Triple]) -> Genome:
        """At most L triples, filled up with inactive ones."""
        flat = [int(v) for triple in triples for v in triple]
        return tuple(flat + [0] * (3 * self.depth - len(flat)))

    def rows(self, genome: Genome) -> list[tuple[int, Weights]]:
        """(first source layer, weights from there on) of every output layer, in order."""
        rows: list[tuple[int, Weights]] = [(i, (1,)) for i in range(self.depth)]
        for begin, end, active in self.triples(genome):
            if active and begin < end:
                inside = [k for k, (start, row) in enumerate(rows) if start <= end and begin < start + len(row)]
                first, last = inside[0], inside[-1] + 1
                if last - first > 1:
                    rows[first:last] = [(rows[first][0], merged([row for _, row in rows[first:last]]))]
        return rows

    def decode(self, genome: Genome, source: int = 0) -> tuple[LayerSpec, ...]:
        """Output layers of any 3L integers, canonical, in order."""
        specs = []
        for start, row in self.rows(genome):
            spec = LayerSpec(tuple(Part(source, start + k, float(w)) for k, w in enumerate(row))).canonical()
            if self.norms == "kept":
                spec = replace(spec, norms=replace(spec.anchor, weight=1.0)).canonical()
            specs.append(spec)
        return tuple(specs)

    def dense(self) -> Genome:
        """No interval active."""
        return (0,) * (3 * self.depth)

    def removed(self, genome: Genome) -> int:
        """Layers fewer than the source has."""
        return len(_boundaries(self.triples(genome)))

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """Delete exactly these: pairs merged from the back, since a pair's merge is its second layer.

        Raises:
            InvalidRecipe: no layer left, one that does not exist, or the last one, which no merge of this rule loses.
        """
        gone = set(range(self.depth)) - set(kept_of(self.depth, layers))
        if self.depth - 1 in gone:
            raise InvalidRecipe(
                f"The intervals genome cannot delete the last layer ({self.depth - 1}): a merge always contains its "
                "last layer; use the method collapse for that."
            )
        return self.genome((i, i + 1, True) for i in sorted(gone, reverse=True))

    def random(self, rng: np.random.Generator) -> Genome:
        """The paper's start: every number uniform, repaired where there is a budget.

        Without one such genomes remove 85 % of 32 layers on average.
        """
        ends = rng.integers(self.depth, size=(self.depth, 2))
        active = rng.integers(2, size=(self.depth, 1))
        return self.repair(tuple(np.hstack([ends, active]).ravel().tolist()), rng)

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One number: an active bit flips, or a begin or end moves by 1 + geometric(1/2) layers either way, repaired.

        Silent genes are drawn again a few times.
        """
        before, new = self.rows(genome), genome
        for _ in range(TRIES):
            triples = self.triples(genome)
            i, column = int(rng.integers(self.depth)), int(rng.integers(3))
            triples[i] = self._changed(triples[i], column, rng)
            new = self.repair(self.genome(triples), rng)
            if self.rows(new) != before:
                break
        return new

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Uniform crossover of whole triples (SBX, the paper's choice, tears intervals apart), then repair."""
        pairs = zip(self.triples(a), self.triples(b), strict=True)
        return self.repair(self.genome(x if rng.random() < 0.5 else y for x, y in pairs), rng)

    def repair(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Any 3L integers, brought to the budget: random intervals go, then pairs of neighbours are merged."""
        triples = self.triples(genome)
        while self.budget is not None and (missing := self.budget - len(_boundaries(triples))):
            if missing < 0:
                i = pick(rng, [k for k, t in enumerate(triples) if _boundaries([t])])
                triples[i] = (*triples[i][:2], False)
            else:
                layer = pick(rng, sorted(set(range(self.depth - 1)) - _boundaries(triples)))
                triples[pick(rng, _idle(triples))] = (layer, layer + 1, True)
        return self.genome(triples)

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one more pair of neighbouring output layers merged; the first of the two is then gone.

        [] when the budget is met.
        """
        triples = self.triples(genome)
        done = _boundaries(triples)
        if len(done) >= (self.depth - 1 if self.budget is None else self.budget):
            return []
        idle = set(_idle(triples))
        active = [t for k, t in enumerate(triples) if k not in idle]
        return [self.genome([*active, (i, i + 1, True)]) for i in range(self.depth - 1) if i not in done]

    def enumerate(self) -> Iterator[Genome]:
        """Every distinct model within the budget once: by size, then by partition, then by how its merges nest."""
        for n in sizes(self.depth, self.budget, self.depth - 1):
            for cut in partitions(self.depth, self.depth - n):
                for choice in product(*(nestings(stop - start) for start, stop in cut)):
                    parts = zip(cut, choice, strict=True)
                    yield self.genome(t for (start, _), (_, triples) in parts for t in _moved(triples, start))

    def count(self) -> int:
        """Upper bound of the number of models: ways to nest merges (Schroeder), some of which give equal weights."""
        nested = ways(self.depth, _schroeder)
        return sum(nested[self.depth - n] for n in sizes(self.depth, self.budget, self.depth - 1))

    def features(self, genome: Genome) -> np.ndarray:
        """float64 [2L] for a surrogate: removed, then merged indicator per source layer; see `fates`."""
        return fates(self.decode(genome), self.depth)

    def _changed(self, triple: Triple, column: int, rng: np.random.Generator) -> Triple:
        begin, end, active = triple
        if column == 2:
            return begin, end, not active
        step = int(rng.geometric(JITTER)) * pick(rng, (-1, 1))
        moved = min(max((begin, end)[column] + step, 0), self.depth - 1)
        return (moved, end, active) if column == 0 else (begin, moved, active)


def _boundaries(triples: Iterable[Triple]) -> set[int]:
    """Layers that end up in one group with the layer behind them; as many layers are removed."""
    return {i for begin, end, active in triples if active for i in range(begin, end)}


def _idle(triples: list[Triple]) -> list[int]:
    """Numbers of triples that do nothing when applied; with L triples and at most L - 1 merges there is one."""
    seen: set[int] = set()
    idle = []
    for k, triple in enumerate(triples):
        covered = _boundaries([triple])
        if covered <= seen:
            idle.append(k)
        seen |= covered
    return idle


def _schroeder(leaves: int) -> int:
    """Ordered trees with that many leaves whose inner nodes have two or more children."""
    if leaves == 1:
        return 1
    n = leaves - 1
    return sum(comb(n, k) * comb(n + k, k) // (k + 1) for k in range(n + 1)) // 2


class Intervals(WholeLayers):
    """The genome of the GeLaCo paper."""

    title = "Intervals, as in the GeLaCo paper"

    def merges(self, recipe: Any) -> bool:
        """Whatever goes is merged away."""
        return True

    def space(self, recipe: Any, facts: Facts) -> IntervalSpace:
        """As many layers merged away as are to be removed."""
        return IntervalSpace(facts.depth, facts.remove or None)
