"""Decoder layers by spec over one dense model, resident or read layer by layer."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from hf_prune.assembly.assemble import Parent, layer_tensors, library, outside
from hf_prune.assembly.layer_stream import LayerStream
from hf_prune.assembly.patches import Patch, Patches, digest_patch
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Source
from hf_prune.models.auto_classes import pruned_config
from hf_prune.models.experts import Renumbered, blended, fewer, kept_experts, merges
from hf_prune.models.modeling_pruned import Skipped, packed


@dataclass(eq=False)
class LayerBank:
    """Decoder layers by spec over one dense model; merged layers are made once and kept while they fit.

    `model` is the first of `parents`; of the others, layers are read when they are asked for. `capacity` counts made
    layers (of other parents, merged, half-removed or repaired), the least recently used goes first. `patches` holds the
    weights of repaired layers. `stream` reads the dense model's layers where not all of them are in memory.
    """

    model: PreTrainedModel
    parents: Sequence[Parent]
    capacity: int = 64
    patches: dict[str, Patch] = field(default_factory=dict)
    stream: LayerStream | None = None
    _made: "OrderedDict[LayerSpec, torch.nn.Module]" = field(default_factory=OrderedDict)

    @property
    def sources(self) -> tuple[Source, ...]:
        """By which every blueprint is numbered here."""
        return tuple(p.source for p in self.parents)

    def outside(self, embed: int, head: int) -> dict[str, torch.Tensor]:
        """Tensors outside of the layers that are not the resident model's, in its dtypes and on its device."""
        like = self.model.state_dict()
        named = outside(Blueprint(self.sources, (), embed, head), self.parents)
        others = {n: p for n, p in named.items() if p is not self.parents[0]}
        return {n: p.outside_tensor(n).to(like[n]) for n, p in others.items()}

    @property
    def device(self) -> torch.device:
        """Where layers are used."""
        return self.stream.device if self.stream else self.model.device

    def module(self, spec: LayerSpec) -> torch.nn.Module:
        """The decoder layer of a canonical spec, in the model's dtype and on its device."""
        dense = self.model.get_submodule(self.parents[0].family.layers)
        if spec.plain and spec.parts[0].source == 0:
            number = spec.parts[0].layer
            return self.stream.reach(number) if self.stream else dense[number]
        if spec not in self._made:
            # Room first, so that the new layer and the one that goes are never there together.
            while len(self._made) >= self.capacity:
                self._made.popitem(last=False)
            # Tensors made in inference mode can never be part of a model that is trained.
            with torch.inference_mode(False):
                self._made[spec] = self._make(spec, dense[spec.anchor.layer])
            self._count()
        self._made.move_to_end(spec)
        return self._made[spec]

    def owned(self, spec: LayerSpec) -> torch.nn.Module:
        """The same with rows of its own, where `module` has the resident model's experts under other numbers."""
        if not _numbered(spec):
            return self.module(spec)
        dense = self.model.get_submodule(self.parents[0].family.layers)
        with torch.inference_mode(False):
            return self._fewer_experts(spec, dense[spec.anchor.layer])

    def repaired(self, spec: LayerSpec, patch: Patch) -> LayerSpec:
        """Take in weights for a layer; returns the spec that names them."""
        digest, kept = digest_patch(patch), self.stream.aside if self.stream else torch.clone
        with torch.inference_mode(False):
            self.patches[digest] = {name: kept(tensor) for name, tensor in patch.items()}
        return replace(spec, repair=digest)

    def forget(self, spec: LayerSpec) -> None:
        """Drop what `repaired` took in; nothing else is touched."""
        if spec.repair:
            self.patches.pop(spec.repair, None)
            self._made.pop(spec, None)

    def named(self, blueprint: Blueprint) -> Patches:
        """The patches that a blueprint names."""
        return {s.repair: self.patches[s.repair] for s in blueprint.layers if s.repair}

    def _count(self) -> None:
        """Tell what made layers take of the room for layers."""
        if self.stream:
            self.stream.taken = sum(self.stream.sizes[spec.anchor.layer] for spec in self._made)

    def _make(self, spec: LayerSpec, template: torch.nn.Module) -> torch.nn.Module:
        family = self.parents[0].family
        if spec.repair:
            # All but the repaired tensors are those of the layer before.
            plain, patch = replace(spec, repair=None), self.patches[spec.repair]
            before = self.owned(plain)
            if self.stream and before is template:
                self.stream.lend(spec.anchor.layer)
            layer, like = sharing(before), before.state_dict()
            tensors = {n: t.to(like[n]) for n, t in patch.items()}
            layer.load_state_dict(tensors, strict=False, assign=True)
            return layer.requires_grad_(False)
        if spec.library and (settings := library(spec, self.parents).settings(spec)):
            return self._narrow(spec, template, settings)
        if spec.blends:
            return self._numbered_experts(spec, template) if _numbered(spec) else self._fewer_experts(spec, template)
        layer = sharing(template)
        layer.load_state_dict(self._tensors(spec, template), assign=True)
        layer.requires_grad_(False)
        # Zero weights silence a half already, and these only save its work. Opaque halves may return other things than
        # Llama's do (MPT's MLP adds the residual itself), and OPT's MLP has no module of its own.
        if spec.attn_level == GONE and not family.opaque:
            layer.set_submodule(family.attention, Skipped("attention"))
        if spec.mlp_level == GONE and family.mlp and not family.opaque:
            layer.set_submodule(family.mlp, Skipped("mlp"))
        return layer

    def _narrow(self, spec: LayerSpec, template: torch.nn.Module, settings: dict[str, object]) -> torch.nn.Module:
        """A layer of the same class in another width."""
        number = spec.anchor.layer
        config = pruned_config(self.model.config, {number: settings})
        # A layer is built for an implementation of attention and of experts, which no config.json names.
        config._attn_implementation = self.model.config._attn_implementation
        config._experts_implementation = self.model.config._experts_implementation
        with torch.device("meta"):
            layer = packed(template, config, number)
        layer.load_state_dict(self._tensors(spec, template), assign=True)
        return layer.eval().requires_grad_(False)

    def _fewer_experts(self, spec: LayerSpec, template: torch.nn.Module) -> torch.nn.Module:
        """A layer of the same class with fewer experts; what stays as it is, is shared with the resident model."""
        mixture = self.parents[0].mixture
        layer = self._for_fewer(spec, template)
        if replace(spec, blends=None).plain and not spec.anchor.source and not self.stream:
            whole = template.state_dict()
            tensors = {
                n: blended(n, whole.__getitem__, spec.blends, mixture.routing) if mixture.routing.holds(n) else t
                for n, t in whole.items()
            }
        else:
            tensors = self._tensors(spec, template)
        layer.load_state_dict(tensors, assign=True)
        return layer.eval().requires_grad_(False)

    def _numbered_experts(self, spec: LayerSpec, template: torch.nn.Module) -> torch.nn.Module:
        """The same without a copy: a router of fewer rows, and the resident experts, called by their old numbers."""
        routing = self.parents[0].mixture.routing
        layer = self._for_fewer(spec, template)
        if self.stream:
            self.stream.lend(spec.anchor.layer)
        whole = template.state_dict()
        rows = {n: fewer(t, spec.blends) if routing.holds(n) else t for n, t in whole.items()
                if not n.startswith(f"{routing.experts}.")}  # fmt: skip
        experts = sharing(template.get_submodule(routing.experts))
        experts.register_forward_pre_hook(Renumbered(kept_experts(spec.blends, next(experts.parameters()).device)))
        layer.set_submodule(routing.experts, experts)
        layer.load_state_dict({**layer.state_dict(), **rows}, assign=True)
        return layer.eval().requires_grad_(False)

    def _for_fewer(self, spec: LayerSpec, template: torch.nn.Module) -> torch.nn.Module:
        """A layer of the same class for so many experts, its weights to be loaded."""
        config = copy.copy(self.model.config)
        for key, value in self.parents[0].mixture.settings(len(spec.blends)).items():
            setattr(config, key, value)
        with torch.device("meta"):
            return type(template)(config, spec.anchor.layer)

    def _tensors(self, spec: LayerSpec, template: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What a layer is made of, in the dtypes that the model has it in and on its device."""
        like = template.state_dict()
        return {n: read().to(self.device, like[n].dtype) for n, read in layer_tensors(spec, self.parents)}


def _numbered(spec: LayerSpec) -> bool:
    """Whether all a layer has lost is experts of the resident model's."""
    return bool(spec.blends) and not merges(spec.blends) and replace(spec, blends=None).plain and not spec.anchor.source


def sharing(layer: torch.nn.Module) -> torch.nn.Module:
    """A copy of the modules over the same tensors."""
    kept = [*layer.parameters(), *layer.buffers()]
    other = copy.deepcopy(layer, {id(t): t for t in kept})
    # That would have the original read.
    other._forward_pre_hooks.clear()
    return other
