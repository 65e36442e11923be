"""What a run is given: its base and variants pinned, pulled and opened, and how much of them is to go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from hf_prune import hub
from hf_prune.assembly.assemble import Parent, check
from hf_prune.assembly.gguf.vocabulary import vocabulary
from hf_prune.blueprint import Blueprint, LayerSpec, Part, Source
from hf_prune.methods import METHODS
from hf_prune.methods.method import Method, Sizes, Target
from hf_prune.models.feasibility import check_cut
from hf_prune.models.fewer_tokens import rows_of
from hf_prune.models.noise import quiet
from hf_prune.models.variants import beside, check_variants, pull_variant
from hf_prune.planning import check_layers, target_beside
from hf_prune.recipe import Recipe
from hf_prune.session.vocabulary import fewer_tokens


@dataclass(frozen=True, eq=False)
class Inputs:
    """A recipe with its sources opened; `cards` holds what their model cards say, `vocabulary` what became of the
    tokens of the base, None where all stay."""

    recipe: Recipe
    parents: tuple[Parent, ...]
    target: Target
    cards: tuple[Mapping[str, Any], ...]
    vocabulary: Mapping[str, Any] | None = None

    @property
    def base(self) -> Parent:
        """The first parent."""
        return self.parents[0]

    @property
    def depth(self) -> int:
        """Layers of the base."""
        return self.base.depth

    @property
    def sources(self) -> tuple[Source, ...]:
        """Base and variants, by which blueprints of this run are numbered."""
        return tuple(p.source for p in self.parents)

    @property
    def method(self) -> Method:
        """What a genome means."""
        return METHODS[self.recipe.method]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A short name of every parent, numbered where two would be the same."""
        short = [(s.adapter or s.repo).partition("@")[0].rstrip("/").rpartition("/")[2] for s in self.sources]
        return tuple(n if short.count(n) == 1 else f"{n} ({k})" for k, n in enumerate(short))

    @cached_property
    def tokenizer(self) -> Any:
        """The base's own."""
        with quiet():
            return self.base.tokenizer

    def identity(self, number: int) -> Blueprint:
        """A parent, whole."""
        layers = tuple(LayerSpec((Part(number, i),)) for i in range(self.depth))
        return Blueprint(self.sources, layers, number, number)

    def removed(self, blueprint: Blueprint) -> tuple[int, ...]:
        """Source layers that are the anchor of no output layer."""
        kept = {s.anchor.layer for s in blueprint.layers}
        return tuple(i for i in range(self.depth) if i not in kept)

    def ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """For every parent the first that has the same embedding, and the same final norm and head."""
        family = self.base.family
        names = [n for n in self.base.shapes if not n.startswith(family.prefix)]
        behind = [n for n in names if n.startswith((family.norm + ".", "lm_head."))]
        return self._first_alike([n for n in names if n not in behind]), self._first_alike(behind)

    def _first_alike(self, names: Sequence[str]) -> tuple[int, ...]:
        tensors = [[parent.outside_tensor(n) for n in names] for parent in self.parents]
        return tuple(
            next(k for k, first in enumerate(tensors) if all(map(torch.equal, mine, first))) for mine in tensors
        )


def open_inputs(recipe: Recipe, parents: Sequence[Parent] = (), entries: Callable[[], Sequence[str]] = tuple) -> Inputs:
    """Pin, pull and open the base and its variants, and fix the target; `parents` are opened already.

    The base loses the tokens that the recipe asks for first, by the text of `entries`: everything else is then found
    for text as the result will read it.

    Raises:
        SourceError, UnsupportedArchitecture, IncompatibleSources: a source cannot be used, or not by this method.
        InvalidRecipe: the target cannot be met.
    """
    trust = recipe.trust.arguments
    check_variants(recipe.base, recipe.variants, **trust)
    pulled = [hub.pull(recipe.base, **trust), *(pull_variant(recipe.base, v, **trust) for v in recipe.variants)]
    cut = None
    if not parents:
        first, *others = (Parent.open(p.source, p.folder, p.adapter, **trust) for p in pulled)
        first, cut = fewer_tokens(recipe, entries, first)
        parents = (first, *(beside(first, other) for other in others))
        check(Blueprint(tuple(p.source for p in parents), (LayerSpec((Part(0, 0),)),)), parents)
    base = parents[0]
    # Refused now, not once the dense model has read all its text.
    check_layers(recipe, base.family, base.kinds)
    if recipe.publish.gguf:
        with quiet():
            vocabulary(base.tokenizer, rows_of(base))
    sizes = Sizes((base.layer_parameters,) * base.depth, base.parameters, base.mixture)
    target = target_beside(recipe, sizes, base.original.parameters)
    if recipe.size.drop:
        check_cut(base.config, base.family, [i for i in range(base.depth) if i not in recipe.size.dropped()])
    cards = tuple({**p.card, "how": parent.how} for p, parent in zip(pulled, parents, strict=True))
    return Inputs(recipe, tuple(parents), target, cards, cut)
