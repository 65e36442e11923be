"""experts: which experts of every layer of a mixture stay, as many in each (REAP's order, arXiv 2510.13999, to start).

The rows of the router go with their experts, and what every token passes (attention, shared experts) stays. The search
begins with what single scores would take out, and swaps an expert that is gone with one that stays, near the threshold
of the score oftener than far from it. With `per_layer` a layer may lose more where another loses less (EvoESAP,
arXiv 2603.06003).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, ClassVar

import numpy as np

from hf_prune.blueprint import Genome, LayerSpec
from hf_prune.errors import InvalidRecipe
from hf_prune.limits import DEFAULT_RATIO
from hf_prune.methods.expert_merges import MergingSpace
from hf_prune.methods.expert_space import ExpertSpace
from hf_prune.methods.method import Comparison, Cuts, Facts, Sizes, Table, Target
from hf_prune.models.families import Family
from hf_prune.models.mixtures import require_mixture

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
        if recipe.repair.enabled and recipe.repair.reach != "all":
            raise ValueError(
                f"reach {recipe.repair.reach} refits what stands before layers that are gone, and method "
                f"{recipe.method} leaves all of them; write --reach all"
            )

    def require(self, family: Family) -> None:
        """Experts must be where they are known."""
        require_mixture(family)

    def takes_apart(self, recipe: Any) -> str | None:
        """Only experts go."""
        return None

    def uneven(self, recipe: Any) -> bool:
        """Where layers may lose different numbers."""
        return recipe.experts.per_layer

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
        if recipe.experts.per_layer:
            goal += " on average (where they differ, only hf_prune's class loads it, not vLLM, SGLang or llama.cpp)"
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

    def pieces(self, facts: Facts) -> tuple[int, int]:
        """Experts; of neighbouring groups one each goes together."""
        m = facts.mixture
        return (len(m.layers) * m.experts, len(m.layers) * facts.remove // m.groups) if m else (facts.depth, 0)

    def space(self, recipe: Any, facts: Facts) -> ExpertSpace:
        """As many experts go of every layer, or of all together."""
        return self._merging(recipe, facts, self._plain(recipe, facts))

    def _plain(self, recipe: Any, facts: Facts) -> ExpertSpace:
        worth, per_layer = facts.scores.get("reap", ()), recipe.experts.per_layer
        return ExpertSpace(facts.depth, facts.mixture, facts.remove or None, worth, per_layer)

    def _merging(self, recipe: Any, facts: Facts, plain: ExpertSpace) -> ExpertSpace | MergingSpace:
        if not recipe.experts.merge:
            return plain
        return MergingSpace(plain, facts.scores.get("distances", ()), facts.scores.get("frequency", ()))

    def comparisons(self, recipe: Any, facts: Facts) -> tuple[Comparison, ...]:
        """What single scores take out; none beside a front."""
        names = [name for name in BASELINES if name in recipe.search.baselines]
        if facts.front or not facts.remove:
            return ()
        space, told = self._plain(recipe, facts), ", ".join(names)
        return tuple(
            Comparison(n, BASELINES[n], told, layers=partial(_fixed, n, space, facts, recipe.seed)) for n in names
        )

    def starts(
        self, space: ExpertSpace | MergingSpace, facts: Facts, cuts: Sequence[tuple[int, ...]]
    ) -> tuple[Genome, ...]:
        """What each score takes out, of every number; dropped, and merged where that may be."""
        if isinstance(space, MergingSpace):
            plain = self.starts(space.plain, facts, cuts)
            return tuple(space.with_merges(genome, merges) for genome in plain for merges in (False, True))
        tables = [facts.scores[name] for name in BASELINES if name in facts.scores]
        numbers = [space.each] if space.each is not None else [n for n in space.counts if n]
        found = [space.least(table, count) for count in numbers for table in tables]
        if space.per_layer and space.each is not None and tables:
            found += [space.cheapest(shares) for shares in (_added(facts.scores), *map(_shares, tables))]
        return tuple(dict.fromkeys(found))

    def guess(self, space: ExpertSpace | MergingSpace, facts: Facts) -> Callable[[Genome], float] | None:
        """What goes of all that routers add up: weight x norm x frequency, as shares of each layer's."""
        if not facts.scores:
            return None
        shares = _added(facts.scores).ravel()
        return lambda genome: max(float(shares @ np.array(genome[: len(shares)])), LEAST_LOSS)


def _added(scores: Mapping[str, Table]) -> np.ndarray:
    """float64 [layers, experts]: what each expert adds to the stream, as a share of what all of its layer do."""
    return _shares(np.array(scores["reap"]) * np.array(scores["frequency"]))


def _shares(table: Sequence[Sequence[float]]) -> np.ndarray:
    worth = np.asarray(table, float)
    return worth / np.maximum(worth.sum(1, keepdims=True), 1e-30)


def _fixed(name: str, space: ExpertSpace, facts: Facts, seed: int, cuts: Cuts) -> tuple[LayerSpec, ...]:
    space = replace(space, per_layer=False)
    if name == RANDOM:
        return space.decode(space.random(np.random.default_rng(seed)))
    return space.decode(space.least(facts.scores[name]))
