"""What methods that take out whole layers share: how many go, and the five cuts they are compared with."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hf_prune.blueprint import GONE, Genome, LayerSpec
from hf_prune.errors import InvalidRecipe
from hf_prune.limits import DEFAULT_RATIO
from hf_prune.methods.method import Comparison, Facts, Sizes, Target
from hf_prune.models.families import Family
from hf_prune.search import Space

RANDOM_DRAWS = 5
LEAST_INFLUENCE = 1e-6
"""Of a layer: rounding makes it 0 or less."""


class Cut(NamedTuple):
    """A baseline's cut: what it is called, and how its searcher is asked."""

    label: str
    column: str = "kl"
    trials: int | None = None
    median: bool = False


CUTS = {
    "random": Cut(f"random (median of {RANDOM_DRAWS})", trials=RANDOM_DRAWS, median=True),
    "last": Cut("last layers"),
    "shortgpt": Cut("ShortGPT (block influence)"),
    "window": Cut("best window (Gromov et al.)"),
    "greedy": Cut("SLEB (greedy)", "perplexity"),
}
"""By the name of the searcher that makes it."""


class WholeLayers:
    """The contract (method.py) for one model whose layers go as a whole; a method says what its genes are."""

    title: ClassVar[str]
    genes: ClassVar[frozenset[str]] = frozenset({"layers", "listed"})
    several: ClassVar[bool] = False
    units: ClassVar[int] = 1
    trials: ClassVar[int] = 1
    shrinks: ClassVar[bool] = True
    refits: ClassVar[bool] = False
    baselines: ClassVar[tuple[str, ...]] = tuple(CUTS)

    def check(self, recipe: Any) -> None:
        """Time is no measure of whole layers."""
        if recipe.size.latency is not None:
            raise ValueError(f"latency is what widths are chosen by, and method is {recipe.method}; give a ratio")

    def require(self, family: Family) -> None:
        """Layers of any family can go."""

    def takes_apart(self, recipe: Any) -> str | None:
        """Layers are one piece."""
        return None

    def uneven(self, recipe: Any) -> bool:
        """Layers stay as wide as they are."""
        return False

    def merges(self, recipe: Any) -> bool:
        """Layers go."""
        return False

    def target(self, recipe: Any, sizes: Sizes) -> Target:
        """A ratio becomes the number of (mean) layers that comes nearest to it, the smaller one at a tie.

        Raises:
            InvalidRecipe: the target would remove no layer, or all of them, or one that does not exist.
        """
        if recipe.size.drop:
            return _by_hand(recipe.size.dropped(), sizes)
        depth = sizes.depth
        for name, keeps in (("keep_layers", True), ("drop_layers", False)):
            if (count := getattr(recipe.size, name)) is not None:
                if not 1 <= count < depth:
                    raise InvalidRecipe(
                        f"{name} is {count}, but the model has {depth} layers; "
                        f"{'keep' if keeps else 'remove'} between 1 and {depth - 1} of them."
                    )
                return _layers(depth - count if keeps else count, sizes)
        ratio = recipe.size.ratio or DEFAULT_RATIO
        remove = math.ceil(ratio / sizes.share - 0.5)
        if not 1 <= remove < depth:
            raise InvalidRecipe(
                f"ratio {ratio:g} means {ratio / sizes.share:.1f} of the {depth} layers, each {sizes.share:.1%} of all "
                f"parameters; ask for between {sizes.share:.3f} and {(depth - 1) * sizes.share:.3f}."
            )
        return _layers(remove, sizes, ratio)

    def libraries(self, recipe: Any) -> tuple[str, ...]:
        """None."""
        return ()

    def moves(self, recipe: Any, facts: Facts) -> int:
        """Swaps of a layer that is gone with one that stays."""
        gone = facts.remove or facts.depth // 2
        return gone * (facts.depth - gone)

    def pieces(self, facts: Facts) -> tuple[int, int]:
        """Layers, or their halves."""
        return self.units * facts.depth, self.units * facts.remove

    def comparisons(self, recipe: Any, facts: Facts) -> tuple[Comparison, ...]:
        """The cuts that the recipe names, in its order."""
        return deletions(recipe.search.baselines) if facts.remove else ()

    def starts(self, space: Space, facts: Facts, cuts: Sequence[tuple[int, ...]]) -> tuple[Genome, ...]:
        """The comparisons' cuts and the least influential layers; for a front, those of every number."""
        order = [int(i) for i in np.argsort(facts.influence, kind="stable")]
        numbers = range(1, facts.depth) if facts.front else [facts.remove] * bool(order)
        cuts = [*([] if facts.front else cuts), *(tuple(sorted(order[:n])) for n in numbers)]
        found = []
        for cut in cuts:
            try:
                found.append(space.from_removed(cut))
            except InvalidRecipe:  # the paper's interval genome cannot spell every deletion
                continue
        return tuple(dict.fromkeys(found))

    def guess(self, space: Space, facts: Facts) -> Callable[[Genome], float] | None:
        """The influence of the layers that go, a layer that loses a part or its own weights counting by that share."""
        if not facts.influence:
            return None
        return lambda genome: influence_lost(space.decode(genome), facts.influence)


def influence_lost(layers: Sequence[LayerSpec], influence: Sequence[float]) -> float:
    """Sum of the influence of source layers that no layer keeps; what keeps one half keeps half of it."""
    kept = np.zeros(len(influence))
    for spec in layers:
        kept[spec.anchor.layer] = ((spec.attn_level != GONE) + (spec.mlp_level != GONE)) / 2
    return max(float(((1 - kept) * np.maximum(influence, LEAST_INFLUENCE)).sum()), LEAST_INFLUENCE)


def deletions(names: Sequence[str]) -> tuple[Comparison, ...]:
    """Plain deletions of one model, as far as these names are such."""
    known = [name for name in names if name in CUTS]
    return tuple(
        Comparison(
            name,
            CUTS[name].label,
            ", ".join(known),
            searcher=name,
            trials=CUTS[name].trials,
            column=CUTS[name].column,
            median=CUTS[name].median,
        )
        for name in known
    )


def _layers(remove: int, sizes: Sizes, ratio: float | None = None) -> Target:
    removed = remove * sizes.share
    miss = None if ratio is None else removed - ratio
    return Target(remove, removed, miss, f"remove {remove} of {sizes.depth} layers")


def _by_hand(dropped: Sequence[int], sizes: Sizes) -> Target:
    depth = sizes.depth
    if beyond := [i for i in dropped if i >= depth]:
        raise InvalidRecipe(f"drop names layer {beyond[0]}, but the model's layers are 0 to {depth - 1}.")
    if len(dropped) >= depth:
        raise InvalidRecipe(f"drop names all {depth} layers; leave at least one.")
    if not dropped:
        raise InvalidRecipe("drop names no layer; write for example 21-28 or 3,6,7.")
    removed = sum(sizes.layers[i] for i in dropped) / sizes.total
    return Target(len(dropped), removed, None, f"remove {len(dropped)} of {depth} layers")
