"""experts: which experts of every layer of a mixture stay, as many in each (REAP's order, arXiv 2510.13999, to start).

    genome: for every layer that has experts, for every expert 1 where it goes

The rows of the router go with their experts, and what every token passes (attention, shared experts) stays. Where a
router chooses among groups of experts, every group loses as many. The search begins with what single scores would take
out, and swaps an expert that is gone with one that stays, near the threshold of the score oftener than far from it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, product
from math import ceil, comb
from typing import Any, ClassVar

import numpy as np

from hf_prune.blueprint import Genome, LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.limits import DEFAULT_RATIO
from hf_prune.methods.method import Comparison, Cuts, Facts, Sizes, Table, Target
from hf_prune.methods.partition import pick
from hf_prune.models.families import Family
from hf_prune.models.mixtures import Mixture, require_mixture

LIBRARY = "scores"
"""Kind of the library that knows what an expert is worth."""
BASELINES = {
    "reap": "REAP (router weight x output norm)",
    "frequency": "router frequency",
    "output_norm": "output norm",
    "ean": "expert activation norm",
    "weight_norm": "weight norm",
    "random_experts": "random experts",
}
"""By the score that chooses."""
RANDOM = "random_experts"
LEAST_LOSS = 1e-9
"""Of a genome: the dense one loses nothing."""
MOST_MOVES = 16
"""Single swaps of a layer that count for the default number of trials."""


@dataclass(frozen=True)
class ExpertSpace:
    """`budget` experts go of every layer that has some; None leaves their number free, the same in every layer.

    Args:
        depth: source layers.
        mixture: the experts of the base.
        each: experts that go of every layer.
        worth: of every expert of every layer that has some; moves near its threshold come first.
    """

    depth: int
    mixture: Mixture
    each: int | None
    worth: Table = ()

    @property
    def budget(self) -> int | None:
        """Experts to remove, of all layers together."""
        return None if self.each is None else self.each * len(self.mixture.layers)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Experts that may go of a layer: none of a group more than of another."""
        m = self.mixture
        return (self.each,) if self.each is not None else tuple(range(m.groups, m.experts - m.least + 1, m.groups))

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

    def least(self, worth: Sequence[Sequence[float]], count: int | None = None) -> Genome:
        """Those of the least worth go, `count` of every layer, as many of every group."""
        count, groups = self.counts[0] if count is None else count, self.mixture.groups
        gone = np.zeros(self._shape, bool)
        for row, values in zip(gone, np.asarray(worth, float), strict=True):
            for members in np.arange(self.mixture.experts).reshape(groups, -1):
                row[members[np.argsort(values[members], kind="stable")[: count // groups]]] = True
        return _flat(gone)

    def random(self, rng: np.random.Generator) -> Genome:
        """Any that many."""
        return self.least(rng.random(self._shape), pick(rng, self.counts))

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One expert comes back and one of its group goes; with a free size one of every group may go, or come back."""
        gone = self._gone(genome)
        if self.each is None and (rng.random() < 0.5 or not gone.any()):
            now = int(gone[0].sum())
            other = [n for n in (now - self.mixture.groups, now + self.mixture.groups) if n in self.counts]
            if other:
                return self._resized(gone, pick(rng, other))
        layer, group = int(rng.integers(len(gone))), int(rng.integers(self.mixture.groups))
        members = np.arange(self.mixture.experts).reshape(self.mixture.groups, -1)[group]
        out, stay = members[gone[layer, members]], members[~gone[layer, members]]
        if len(out) and len(stay):
            gone[layer, _near(out, -self._worth[layer], rng)] = False
            gone[layer, _near(stay, self._worth[layer], rng)] = True
        return _flat(gone)

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Every layer as in one of the two, as many going as in the first."""
        rows = [self._gone(genome) for genome in (a, b)]
        count = int(rows[0][0].sum())
        second = rows[1] if int(rows[1][0].sum()) == count else self._gone(self._resized(rows[1], count))
        return _flat(np.where(rng.random(len(rows[0]))[:, None] < 0.5, rows[0], second))

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one expert fewer; [] once the budget is met, and where groups must stay of one size."""
        if self.mixture.groups > 1:
            return []
        gone, found = self._gone(genome), []
        for layer, row in enumerate(gone):
            if row.sum() < self.counts[-1]:
                for expert in np.flatnonzero(~row):
                    place = layer * self.mixture.experts + int(expert)
                    found.append((*genome[:place], 1, *genome[place + 1 :]))
        return found

    def enumerate(self) -> Iterator[Genome]:
        """Every choice of every number that is allowed."""
        groups, size = self.mixture.groups, self.mixture.experts // self.mixture.groups
        for count in self.counts:
            choices = [
                tuple(int(i in gone) for i in range(size)) for gone in combinations(range(size), count // groups)
            ]
            for rows in product(choices, repeat=groups * len(self.mixture.layers)):
                yield tuple(flag for row in rows for flag in row)

    def count(self) -> int:
        """Number of models `enumerate` yields."""
        groups, size = self.mixture.groups, self.mixture.experts // self.mixture.groups
        return sum(comb(size, count // groups) ** (groups * len(self.mixture.layers)) for count in self.counts)

    # Parts ---------------------------------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.mixture.layers), self.mixture.experts

    @cached_property
    def _worth(self) -> np.ndarray:
        return np.asarray(self.worth, float) if self.worth else np.zeros(self._shape)

    def _gone(self, genome: Genome) -> np.ndarray:
        return np.array(genome, bool).reshape(self._shape)

    def _resized(self, gone: np.ndarray, count: int) -> Genome:
        """So many go of every layer: those that are gone first, or last to come back, then by worth."""
        order = np.argsort(np.argsort(self._worth, axis=1), axis=1) - gone * self.mixture.experts
        return self.least(order, count)


def _flat(gone: np.ndarray) -> Genome:
    return tuple(map(int, gone.ravel()))


def _near(experts: np.ndarray, worth: np.ndarray, rng: np.random.Generator) -> int:
    """One of them, of less worth oftener: the lesser of two draws."""
    ranked = experts[np.argsort(worth[experts], kind="stable")]
    return int(ranked[min(rng.integers(len(ranked), size=2))])


class Experts:
    """The method."""

    title = "Fewer experts (experts)"
    genes: ClassVar[frozenset[str]] = frozenset()
    several: ClassVar[bool] = False
    units: ClassVar[int] = 2
    trials: ClassVar[int] = 2
    shrinks: ClassVar[bool] = True
    refits: ClassVar[bool] = False
    baselines: ClassVar[tuple[str, ...]] = tuple(BASELINES)

    def check(self, recipe: Any) -> None:
        """Sizes in layers, and times, have no meaning for experts."""
        size = recipe.size
        if other := next((n for n in ("keep_layers", "drop_layers", "latency") if getattr(size, n) is not None), None):
            raise ValueError(f"method {recipe.method} removes experts, not {other}; say how much with --ratio")
        if size.drop:
            raise ValueError(f"drop names layers, and method {recipe.method} takes out experts; choose another method")

    def require(self, family: Family) -> None:
        """Experts must be where they are known."""
        require_mixture(family)

    def takes_apart(self, recipe: Any) -> str | None:
        """Only experts go."""
        return None

    def merges(self, recipe: Any) -> bool:
        """Layers stay what they are."""
        return False

    def target(self, recipe: Any, sizes: Sizes) -> Target:
        """As many experts of every layer as come nearest to the ratio, the fewer at a tie.

        Raises:
            InvalidRecipe: no expert would go, or more than a router can spare.
        """
        m, ratio = sizes.mixture, recipe.size.ratio or DEFAULT_RATIO
        if m is None:
            raise InvalidRecipe("The base has no experts; choose --method collapse, which removes whole layers.")
        each = len(m.layers) * m.parameters * m.groups / sizes.total
        steps, most = ceil(ratio / each - 0.5), (m.experts - m.least) // m.groups
        if not 1 <= steps <= most:
            raise InvalidRecipe(
                f"ratio {ratio:g} means {ratio / each * m.groups:.1f} of the {m.experts} experts of {len(m.layers)} "
                f"layers, and {m.groups} to {most * m.groups} can go; ask for between {each:.3f} and {most * each:.3f}."
            )
        left = m.experts - steps * m.groups
        goal = f"remove {steps * m.groups} of {m.experts} experts of {len(m.layers)} layers"
        if (fewer := m.choosable(left)) < m.chosen:
            goal += f" (a token then goes to {fewer} experts, not {m.chosen}: no more are left)"
        return Target(steps * m.groups, steps * each, steps * each - ratio, goal, whole=False, exact=True)

    def libraries(self, recipe: Any) -> tuple[str, ...]:
        """What every expert is worth."""
        return (LIBRARY,)

    def moves(self, recipe: Any, facts: Facts) -> int:
        """Swaps within a layer, as many of them as count."""
        m = facts.mixture
        if m is None:
            return facts.depth
        gone = facts.remove or m.experts // 2
        return len(m.layers) * min(gone * (m.experts - gone), MOST_MOVES)

    def space(self, recipe: Any, facts: Facts) -> ExpertSpace:
        """As many experts go of every layer."""
        return ExpertSpace(facts.depth, facts.mixture, facts.remove or None, facts.scores.get("reap", ()))

    def comparisons(self, recipe: Any, facts: Facts) -> tuple[Comparison, ...]:
        """What single scores take out; none beside a front."""
        names = [name for name in BASELINES if name in recipe.search.baselines]
        if facts.front or not facts.remove:
            return ()
        space, told = self.space(recipe, facts), ", ".join(names)
        return tuple(
            Comparison(n, BASELINES[n], told, layers=partial(_fixed, n, space, facts, recipe.seed)) for n in names
        )

    def starts(self, space: ExpertSpace, facts: Facts, cuts: Sequence[tuple[int, ...]]) -> tuple[Genome, ...]:
        """What each score takes out, of every number."""
        tables = [facts.scores[name] for name in BASELINES if name in facts.scores]
        return tuple(dict.fromkeys(space.least(table, count) for count in space.counts for table in tables))

    def guess(self, space: ExpertSpace, facts: Facts) -> Callable[[Genome], float] | None:
        """What goes of all that routers add up: weight x norm x frequency, as shares of each layer's."""
        if not facts.scores:
            return None
        added = np.array(facts.scores["reap"]) * np.array(facts.scores["frequency"])
        shares = (added / np.maximum(added.sum(1, keepdims=True), 1e-30)).ravel()
        return lambda genome: max(float(shares @ np.array(genome)), LEAST_LOSS)


def _fixed(name: str, space: ExpertSpace, facts: Facts, seed: int, cuts: Cuts) -> tuple[LayerSpec, ...]:
    if name == RANDOM:
        return space.decode(space.random(np.random.default_rng(seed)))
    return space.decode(space.least(facts.scores[name]))
