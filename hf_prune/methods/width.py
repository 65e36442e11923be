"""width: how many heads and neurons every layer keeps, as levels of a library (DarwinLM, arXiv 2502.07780).

A gene per half: 0 is dense, each level keeps less, and the last one nothing. All candidates of one search use as much
of a budget (parameters, or time) as fits: a move takes one half a level down and gives what that frees to others, so
attention and MLP may trade. The attention of layer 0 never goes, since the cache takes its length from it.

    genome: level of the attention of every layer, then of every MLP
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from math import prod
from typing import Any, ClassVar

import numpy as np

from hf_prune.blueprint import GONE, Genome, LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.limits import DEFAULT_RATIO
from hf_prune.methods.method import Comparison, Cuts, Facts, Sizes, Table, Target
from hf_prune.methods.partition import kept_of
from hf_prune.models.families import Family
from hf_prune.models.feasibility import require_widths

STEPS = 3
"""Most level switches of one move (DarwinLM, sec. 3.2: the smaller of two draws)."""
GRAIN = 4096
"""Parts that the budget is counted in where the best sum of losses is looked for."""


@dataclass(frozen=True)
class WidthSpace:
    """All choices of levels that fit a budget and leave no room for one half to be a level wider.

    Args:
        costs: per half (attentions, then MLPs) what each level costs; falling, and 0 for the last.
        limit: most of the sum; None leaves it free, for a Pareto search.
        library: digest that the specs name.
        depth_too: a layer may lose both halves, and is gone then.
    """

    costs: tuple[tuple[float, ...], ...]
    limit: float | None
    library: str
    depth_too: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.cost(self.narrowest()) > self.limit:
            least = self.cost(self.narrowest()) / self.cost(self.dense())
            raise InvalidRecipe(
                f"The narrowest model still has {least:.1%} of what the layers cost; ask for less to be removed."
            )

    @property
    def depth(self) -> int:
        """Source layers."""
        return len(self.costs) // 2

    @property
    def budget(self) -> int | None:
        """Levels are not counted: the limit is one of cost."""
        return None

    # Genomes and what they mean ------------------------------------------------------------------------------------

    def cost(self, genome: Genome) -> float:
        """Sum over the halves."""
        return sum(c[g] for c, g in zip(self.costs, genome, strict=True))

    def decode(self, genome: Genome) -> tuple[LayerSpec, ...]:
        """Layers that are left."""
        found = []
        for i in range(self.depth):
            levels = [self._level(half, genome[half]) for half in (i, self.depth + i)]
            if levels != [GONE, GONE]:
                spec = LayerSpec((Part(0, i),), attn_level=levels[0], mlp_level=levels[1], library=self.library)
                found.append(spec.canonical())
        return tuple(found)

    def dense(self) -> Genome:
        """Nothing removed."""
        return (0,) * len(self.costs)

    def narrowest(self) -> Genome:
        """As little as is allowed."""
        least = []
        for i in range(self.depth):
            least.append(
                min(self._pairs(i), key=lambda pair: self.costs[i][pair[0]] + self.costs[self.depth + i][pair[1]])
            )
        attention, mlp = zip(*least, strict=True)
        return (*attention, *mlp)

    def removed(self, genome: Genome) -> int:
        """Levels that the halves are down."""
        return sum(genome)

    def features(self, genome: Genome) -> np.ndarray:
        """float64 [2L]: share of every half that is gone, and [2L] whether all of it is."""
        gone = [1 - c[g] / c[0] for c, g in zip(self.costs, genome, strict=True)]
        return np.array([*gone, *(float(x == 1) for x in gone)])

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """Both halves of exactly these layers gone."""
        kept = set(kept_of(self.depth, layers))
        return tuple(0 if i % self.depth in kept else len(self.costs[i]) - 1 for i in range(2 * self.depth))

    def uniform(self) -> Genome:
        """Every half at the level nearest to one share, made to fit: each layer as wide as the others."""
        if self.limit is None:
            return self.dense()
        low, high = 0.0, 1.0
        for _ in range(40):
            share = (low + high) / 2
            low, high = (share, high) if self.cost(self._at(share)) <= self.limit else (low, share)
        found = self._at(low)
        return found if self.cost(found) <= self.limit else self.narrowest()

    def cheapest(self, losses: Sequence[Sequence[float]]) -> Genome:
        """The genome of the least sum of losses [halves][levels] that fits, by dynamic programming."""
        limit = self.cost(self.dense()) if self.limit is None else self.limit
        unit, best, choices = limit / GRAIN, np.zeros(GRAIN + 1), []
        for layer in range(self.depth):
            pairs = self._pairs(layer)
            halves = (layer, self.depth + layer)
            needs = [sum(self.costs[h][g] for h, g in zip(halves, pair, strict=True)) for pair in pairs]
            needs = [int(np.ceil(n / unit - 1e-9)) for n in needs]
            table = np.full((len(pairs), GRAIN + 1), np.inf)
            for row, (pair, need) in enumerate(zip(pairs, needs, strict=True)):
                if need <= GRAIN:
                    mine = sum(losses[h][g] for h, g in zip(halves, pair, strict=True))
                    table[row, need:] = best[: GRAIN + 1 - need] + mine
            choices.append((pairs, needs, table.argmin(0)))
            best = table.min(0)
        left, found = GRAIN, []
        for pairs, needs, chosen in reversed(choices):
            row = int(chosen[left])
            found.append(pairs[row])
            left -= needs[row]
        attention, mlp = zip(*reversed(found), strict=True)
        return self.repair((*attention, *mlp), np.random.default_rng(0))

    # Moves ---------------------------------------------------------------------------------------------------------

    def random(self, rng: np.random.Generator) -> Genome:
        """Any levels, made to fit."""
        genome = tuple(int(rng.integers(len(c))) for c in self.costs)
        return self.repair(genome, rng)

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One to three halves a level down, and others up as long as there is room; any one step where size is free."""
        levels = list(genome)
        moved = set()
        for _ in range(min(rng.integers(1, STEPS + 1, size=2)) if self.limit is not None else 1):
            down = [h for h in range(len(levels)) if levels[h] < self._deepest(h, levels)]
            if self.limit is None and rng.random() < 0.5:
                up = [h for h in range(len(levels)) if levels[h]]
                if up:
                    levels[int(rng.choice(up))] -= 1
                    continue
            if down:
                half = int(rng.choice(down))
                levels[half] += 1
                moved.add(half)
        if self.limit is not None:
            self._fill(levels, rng, moved)
            self._fill(levels, rng, set())
        return tuple(levels)

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """Every layer as in one of the two, made to fit."""
        asked = rng.random(self.depth) < 0.5
        child = (a[i] if asked[i % self.depth] else b[i] for i in range(len(a)))
        return self.repair(tuple(child), rng)

    def repair(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """Any levels, brought within the budget by steps down and then filled by steps up; the rest stays."""
        levels = list(genome)
        for half in range(len(levels)):
            levels[half] = min(levels[half], self._deepest(half, levels))
        if self.limit is not None:
            while self.cost(tuple(levels)) > self.limit:
                down = [h for h in range(len(levels)) if levels[h] < self._deepest(h, levels)]
                if not down:
                    # Where MLPs went first, attention may not follow.
                    levels = list(self.narrowest())
                    break
                levels[int(rng.choice(down))] += 1
            self._fill(levels, rng, set())
        return tuple(levels)

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one half a level further down; [] once the budget is met."""
        if self.limit is not None and self.cost(genome) <= self.limit:
            return []
        down = [h for h in range(len(genome)) if genome[h] < self._deepest(h, genome)]
        return [tuple(g + (k == h) for k, g in enumerate(genome)) for h in down]

    def enumerate(self) -> Iterator[Genome]:
        """Every genome that fits and leaves no room."""
        for genome in product(*(range(len(c)) for c in self.costs)):
            fixed = all(g <= self._deepest(h, genome) for h, g in enumerate(genome))
            if fixed and (self.limit is None or self.cost(genome) <= self.limit and not self._wider(list(genome))):
                yield genome

    def count(self) -> int:
        """Choices of levels, those that do not fit included: an upper bound."""
        return prod(len(c) for c in self.costs)

    # Parts ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _last(self) -> tuple[int, ...]:
        return tuple(len(c) - 1 for c in self.costs)

    def _level(self, half: int, level: int) -> int:
        return GONE if level == self._last[half] else level

    def _deepest(self, half: int, levels: Sequence[int]) -> int:
        """The furthest a half may go: not all of the attention of layer 0, nor both halves of one layer."""
        if half == 0:
            return self._last[0] - 1
        other = (half + self.depth) % (2 * self.depth)
        return self._last[half] - bool(levels[other] == self._last[other] and not self.depth_too)

    def _pairs(self, layer: int) -> list[tuple[int, int]]:
        """Levels that the halves of a layer may have together."""
        ends = self._last[layer], self._last[self.depth + layer]
        both = product(range(ends[0] + (layer > 0)), range(ends[1] + 1))
        return [pair for pair in both if self.depth_too or pair != ends]

    def _at(self, share: float) -> Genome:
        """Every half at the widest level that keeps at most `share` of it; none gone."""
        return tuple(
            next((i for i, x in enumerate(c[:-1]) if x <= share * c[0] + 1e-9), len(c) - 2) for c in self.costs
        )

    def _wider(self, levels: list[int], untouched: Iterable[int] = ()) -> list[int]:
        """Halves that would still fit a level up."""
        room = self.limit - self.cost(tuple(levels)) + 1e-9
        return [
            h for h, g in enumerate(levels)
            if g and h not in untouched and self.costs[h][g - 1] - self.costs[h][g] <= room
        ]  # fmt: skip

    def _fill(self, levels: list[int], rng: np.random.Generator, untouched: set[int]) -> None:
        while options := self._wider(levels, untouched):
            levels[int(rng.choice(options))] -= 1


BASELINES = {
    "uniform": "uniform widths, second order",
    "errors": "least sum of errors, no evolution",
    "wanda": "uniform widths, Wanda scores",
    "magnitude": "uniform widths, magnitude",
}
KINDS = ("wanda", "magnitude")
"""Of these, the ones that have a level library of their own."""
LIBRARY = "obs"
"""Kind of the level library that is searched."""
LEAST_LOSS = 1e-9
"""Of a genome: the dense one loses nothing."""
MOVES = 6
"""Counted for each half of a layer."""


@dataclass(frozen=True)
class Width:
    """Heads and neurons go; with `depth_too` whole layers as well."""

    depth_too: bool = False

    genes: ClassVar[frozenset[str]] = frozenset()
    several: ClassVar[bool] = False
    units: ClassVar[int] = 2
    trials: ClassVar[int] = 5
    shrinks: ClassVar[bool] = True
    refits: ClassVar[bool] = True
    baselines: ClassVar[tuple[str, ...]] = tuple(BASELINES)

    @property
    def title(self) -> str:
        """As Method says."""
        return "Narrower and fewer layers (width+depth)" if self.depth_too else "Narrower layers (width)"

    def check(self, recipe: Any) -> None:
        """Sizes in layers have no meaning for widths."""
        if other := next((n for n in ("keep_layers", "drop_layers") if getattr(recipe.size, n) is not None), None):
            raise ValueError(
                f"method {recipe.method} removes heads and neurons, not {other}; say how much with --ratio"
            )
        if recipe.size.drop:
            raise ValueError(
                f"drop names layers, and method {recipe.method} cuts inside them; choose --method collapse"
            )
        if recipe.width.levels < 2 or (recipe.width.multiple_of or 1) < 1 or recipe.width.damping <= 0:
            raise ValueError("levels must be at least 2, multiple_of at least 1 and damping above 0")

    def require(self, family: Family) -> None:
        """Heads and neurons must be where they are known."""
        require_widths(family)

    def takes_apart(self, recipe: Any) -> str | None:
        """What families can be cut by width, the library knows better."""
        return None

    def uneven(self, recipe: Any) -> bool:
        """Each loses what it can spare."""
        return True

    def merges(self, recipe: Any) -> bool:
        """Layers become narrower."""
        return False

    def target(self, recipe: Any, sizes: Sizes) -> Target:
        """A share of the parameters, or of the time: how many parameters that is, only the search will tell.

        Raises:
            InvalidRecipe: more than the layers hold.
        """
        ratio = recipe.size.ratio or (1 - recipe.size.latency if recipe.size.latency else DEFAULT_RATIO)
        held = sizes.depth * sizes.share
        if recipe.size.latency is None and ratio >= held:
            raise InvalidRecipe(f"ratio {ratio:g} is more than the layers hold; ask for less than {held:.3f}.")
        goal = f"remove {ratio:.0%} of all parameters"
        if recipe.size.latency is not None:
            goal = f"keep {recipe.size.latency:.0%} of the time"
        return Target(max(1, round(ratio / sizes.share)), ratio, None, goal, whole=False)

    def libraries(self, recipe: Any) -> tuple[str, ...]:
        """Its own, and those that baselines have of their own."""
        others = [] if recipe.every_size else [n for n in recipe.search.baselines if n in KINDS]
        return (LIBRARY, *others)

    def moves(self, recipe: Any, facts: Facts) -> int:
        """Of every half of every layer."""
        return MOVES * 2 * facts.depth

    def pieces(self, facts: Facts) -> tuple[int, int]:
        """Layers, or their halves."""
        return self.units * facts.depth, self.units * facts.remove

    def space(self, recipe: Any, facts: Facts) -> WidthSpace:
        """Levels of the library; while there is none, as many as it will have."""
        costs = facts.costs or (tuple(map(float, reversed(range(recipe.width.levels)))),) * (2 * facts.depth)
        return WidthSpace(costs, facts.limit, facts.libraries.get(LIBRARY, ""), self.depth_too)

    def comparisons(self, recipe: Any, facts: Facts) -> tuple[Comparison, ...]:
        """Single models; none beside a front."""
        names = [name for name in BASELINES if name in recipe.search.baselines]
        if facts.front or not facts.remove:
            return ()
        space, told = self.space(recipe, facts), ", ".join(names)
        return tuple(
            Comparison(name, BASELINES[name], told, layers=partial(_fixed, name, space, facts)) for name in names
        )

    def starts(self, space: WidthSpace, facts: Facts, cuts: Sequence[tuple[int, ...]]) -> tuple[Genome, ...]:
        """Uniform widths, and the least sums of errors: as they are, and as shares of what each half puts out."""
        least = (space.cheapest(facts.losses), space.cheapest(_relative(facts.losses)))
        return tuple(dict.fromkeys((space.uniform(), *least)))

    def guess(self, space: WidthSpace, facts: Facts) -> Callable[[Genome], float] | None:
        """The sum of what the halves lose, each as a share of what it loses when it is gone."""
        if not facts.losses:
            return None
        losses = _relative(facts.losses)
        return lambda genome: max(sum(row[g] for row, g in zip(losses, genome, strict=True)), LEAST_LOSS)


def _fixed(name: str, space: WidthSpace, facts: Facts, cuts: Cuts) -> tuple[LayerSpec, ...]:
    if name in KINDS:
        space = replace(space, library=facts.libraries[name])
    return space.decode(space.cheapest(_relative(facts.losses)) if name == "errors" else space.uniform())


def _relative(losses: Table) -> Table:
    """As shares of what a half loses when it is gone."""
    return tuple(tuple(x / max(row[-1], 1e-30) for x in row) for row in losses)
