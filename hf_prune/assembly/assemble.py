"""The only place weights are combined: a blueprint becomes tensors, and tensors become a model or a folder.

One plan, two sinks: `assemble` fills a model in memory, `write` streams shards to disk.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_prune.assembly.merge import check_merge, merged
from hf_prune.assembly.patches import NO_PATCHES, PATCH_FILE, Patches, save_patches
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Mix, all_parts
from hf_prune.errors import IncompatibleSources, InvalidBlueprint, ReloadMismatch
from hf_prune.hub.contents import INDEX
from hf_prune.models.auto_classes import classes, is_pruned, pruned_config, uniform_config
from hf_prune.models.checkpoint import SHARD_BYTES, stored_tensors, write_shards
from hf_prune.models.configs import skeleton
from hf_prune.models.conversions import as_files
from hf_prune.models.dtypes import widest
from hf_prune.models.experts import blended
from hf_prune.models.families import Family
from hf_prune.models.fewer_tokens import save_kept
from hf_prune.models.modeling_pruned import PREFIX
from hf_prune.models.noise import quiet
from hf_prune.models.numbering import sliced
from hf_prune.models.parent import Parent
from hf_prune.models.plain_checkpoint import copy_beside, forget_tokenizer_code


@dataclass(frozen=True, eq=False)
class Made:
    """One tensor of the result, under the face of a stored one; calling it makes it."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    def __call__(self) -> torch.Tensor:
        """The tensor, in its dtype."""
        return self.make().to(self.dtype)

    @property
    def nbytes(self) -> int:
        """In the file."""
        return self.shape.numel() * self.dtype.itemsize


def layer_tensors(
    spec: LayerSpec, parents: Sequence[Parent], patches: Patches = NO_PATCHES
) -> Iterator[tuple[str, Made]]:
    """One output layer's tensors: each in the dtype of the tensor it is made of, of several in the wider one.

    A removed half keeps its tensors, and its output projection is zero: stock classes then add nothing for it. Where
    the parent has a level library, layers are cut to the levels of the spec, and a removed half has no tensors.
    Tensors of the layer's patch replace what its parts would give.
    """
    anchor = spec.anchor
    parent = parents[anchor.source]
    patch = patches[spec.repair] if spec.repair else {}
    gone = {"attention": spec.attn_level == GONE, "mlp": spec.mlp_level == GONE} if spec.library else {}
    for suffix in parent.layer_suffixes[anchor.layer]:
        if gone.get(parent.family.half(suffix)):
            continue
        if suffix in patch:
            tensor = patch[suffix]
            yield suffix, Made(tensor.shape, tensor.dtype, lambda tensor=tensor: tensor)
            continue
        shape = parent.shapes[f"{parent.family.prefix}{anchor.layer}.{suffix}"]
        if spec.library:
            shape = library(spec, parents).shape(suffix, shape, spec)
        if spec.blends and parent.mixture.routing.holds(suffix):
            shape = torch.Size((len(spec.blends), *shape[1:]))
        mix = _mix(spec, suffix, parent.family)
        dtype = widest(parents[p.source].layer_dtype(p.layer, suffix) for p in mix.parts)
        yield suffix, Made(shape, dtype, lambda suffix=suffix, mix=mix: _combine(spec, suffix, mix, parents))


def _combine(spec: LayerSpec, suffix: str, mix: Mix, parents: Sequence[Parent]) -> torch.Tensor:
    family = parents[spec.anchor.source].family
    if spec.blends and parents[0].mixture.routing.holds(suffix):
        plain = replace(spec, blends=None)
        return blended(
            suffix, lambda name: _combine(plain, name, mix, parents), spec.blends, parents[0].mixture.routing
        )
    tensors = [parents[p.source].layer_tensor(p.layer, suffix) for p in mix.parts]
    if not spec.library and family.silenced(suffix, spec.attn_level == GONE, spec.mlp_level == GONE):
        return torch.zeros_like(tensors[0])
    weights = [p.weight for p in mix.parts]
    if mix.merge == "passthrough" and not family.silenced(suffix, True, True):
        # What is scaled is what a half adds to the residual stream.
        weights = [1.0]
    whole = merged(mix.merge, tensors, weights, f"{mix.parts[-1].layer}.{suffix}")
    return library(spec, parents).cut(spec.anchor.layer, suffix, whole, spec) if spec.library else whole


def library(spec: LayerSpec, parents: Sequence[Parent]) -> Any:
    """The `Levels` that a spec's levels index."""
    return parents[0].levels[spec.library]


def _mix(spec: LayerSpec, suffix: str, family: Family) -> Mix:
    """What a tensor of a layer is made of."""
    if spec.norms and family.is_norm(suffix):
        return Mix((spec.norms,))
    if spec.mlp and family.half(suffix) == "mlp":
        return spec.mlp
    return Mix(spec.parts, spec.merge)


def outside(blueprint: Blueprint, parents: Sequence[Parent]) -> dict[str, Parent]:
    """Who gives each tensor outside of the layers: the head's parent what is behind them, the embedding's the rest."""
    embed, head = parents[blueprint.embed], parents[blueprint.head]
    names = [n for n in embed.shapes if not n.startswith(embed.family.prefix)]
    return {n: head if n.startswith((embed.family.norm + ".", "lm_head.")) else embed for n in names}


def output_config(blueprint: Blueprint, parents: Sequence[Parent]) -> PretrainedConfig:
    """The config of the assembled model: that of the first parent, every per-layer list sliced along the anchors.

    Layers of one width make a stock config; of several, one of `modeling_pruned`.
    """
    base = parents[0]
    config = sliced(base.config, base.family, [s.anchor.layer for s in blueprint.layers])
    settings = [_settings(s, parents) for s in blueprint.layers]
    if not any(settings):
        return config
    # Layers without experts do not care how many others have.
    told = [s for s in settings if s is not None]
    equal = uniform_config(config, told[0]) if all(s == told[0] for s in told) else None
    return equal or pruned_config(config, {i: s for i, s in enumerate(settings) if s})


def _settings(spec: LayerSpec, parents: Sequence[Parent]) -> dict[str, Any] | None:
    """What the config of a layer says where it differs from the dense one's; None where it says nothing that counts."""
    mixture = parents[0].mixture
    if spec.library:
        return library(spec, parents).settings(spec)
    if spec.blends:
        return mixture.settings(len(spec.blends))
    return None if mixture and spec.anchor.layer not in mixture.layers else {}


def alive(blueprint: Blueprint) -> Blueprint:
    """Without the layers that have lost both halves; sources keep their order, which `canonical` would change."""
    return replace(blueprint, layers=tuple(s for s in blueprint.layers if not s.attn_level == s.mlp_level == GONE))


def check(blueprint: Blueprint, parents: Sequence[Parent], patches: Patches = NO_PATCHES) -> None:
    """Refuse a blueprint that its parents cannot serve.

    Raises:
        InvalidBlueprint: a layer number beyond the parent's depth, levels without a library, an unknown merge, or a
            patch that is missing or does not fit.
        IncompatibleSources: parents of different shapes.
    """
    blueprint.check()
    first = parents[0]
    for parent in parents[1:]:
        if parent.shapes != first.shapes:
            raise IncompatibleSources(f"{parent.source} and {first.source} do not have the same tensor shapes.")
    for spec in blueprint.layers:
        for mix in (Mix(spec.parts, spec.merge), *([spec.mlp] if spec.mlp else [])):
            check_merge(mix.merge, len(mix.parts))
        _check_levels(spec, first)
        _check_blends(spec, first)
        for part in all_parts(spec):
            if part.layer >= parents[part.source].depth:
                raise InvalidBlueprint(
                    f"The blueprint asks for layer {part.layer} of {parents[part.source].source}, "
                    f"which has {parents[part.source].depth} layers."
                )
        _check_kinds(spec, parents)
        _check_patch(spec, parents, patches)


def _check_levels(spec: LayerSpec, parent: Parent) -> None:
    if spec.library is None:
        if spec.attn_level not in (0, GONE) or spec.mlp_level not in (0, GONE):
            raise InvalidBlueprint("The blueprint uses width levels, but names no level library.")
        return
    levels = parent.levels.get(spec.library)
    if levels is None:
        raise InvalidBlueprint(
            f"The blueprint uses width levels of the library {spec.library}, which is not there; "
            "name its folder with --library, or run the compression again, which makes it."
        )
    if spec.attn_level >= levels.count("attention") or spec.mlp_level >= levels.count("mlp"):
        raise InvalidBlueprint("A level of the blueprint is beyond those of its level library.")


def _check_blends(spec: LayerSpec, parent: Parent) -> None:
    if spec.blends is None:
        return
    mixture = parent.mixture
    if mixture is None or not {p.layer for p in all_parts(spec)} <= set(mixture.layers):
        raise InvalidBlueprint(
            f"The blueprint names experts of layer {spec.anchor.layer} of {parent.source}, which has none."
        )
    if beyond := [e for blend in spec.blends for e, _ in blend if e >= mixture.experts]:
        raise InvalidBlueprint(
            f"The blueprint asks for expert {beyond[0]} of {parent.source}, whose layers have {mixture.experts}."
        )
    if len(spec.blends) < mixture.least or len(spec.blends) % mixture.groups:
        raise InvalidBlueprint(
            f"The blueprint leaves {len(spec.blends)} experts in {mixture.groups} groups, which their router cannot "
            "choose among."
        )


def _check_kinds(spec: LayerSpec, parents: Sequence[Parent]) -> None:
    anchor = spec.anchor
    kinds, family = parents[anchor.source].kinds, parents[anchor.source].family
    for part in all_parts(spec):
        if parents[part.source].kinds[part.layer] != kinds[anchor.layer]:
            raise InvalidBlueprint(
                f"The blueprint merges layers {anchor.layer} and {part.layer} of a {family.model_type}, which do not "
                "have the same tensors."
            )
    if not family.halved and (spec.mlp or GONE in (spec.attn_level, spec.mlp_level)):
        raise InvalidBlueprint(
            f"The blueprint speaks of halves of layers, and those of a {family.model_type} are no two halves that "
            "hf_prune knows."
        )


def _check_patch(spec: LayerSpec, parents: Sequence[Parent], patches: Patches) -> None:
    if spec.repair is None:
        return
    if spec.repair not in patches:
        raise InvalidBlueprint(
            f"The blueprint was repaired, but the repair {spec.repair} is not there; keep {PATCH_FILE} beside it."
        )
    parent = parents[spec.anchor.source]
    for suffix, tensor in patches[spec.repair].items():
        shape = parent.shapes.get(f"{parent.family.prefix}{spec.anchor.layer}.{suffix}")
        if shape and spec.blends and parent.mixture.routing.holds(suffix):
            shape = torch.Size((len(spec.blends), *shape[1:]))
        if shape != tensor.shape:
            raise InvalidBlueprint(
                f"The repair {spec.repair} gives {suffix} the shape {tuple(tensor.shape)}, but layer "
                f"{spec.anchor.layer} of {parent.source} has {tuple(shape) if shape else 'no such tensor'}."
            )


def plan_tensors(
    blueprint: Blueprint, parents: Sequence[Parent], patches: Patches = NO_PATCHES
) -> Iterator[tuple[str, Made]]:
    """Name and reader of every tensor of the assembled model, in file order; nothing is read yet."""
    for name, owner in outside(blueprint, parents).items():
        read = lambda owner=owner, name=name: owner.outside_tensor(name)  # noqa: E731
        yield name, Made(owner.shapes[name], owner.tensor_dtype(name), read)
    for i, spec in enumerate(blueprint.layers):
        for suffix, made in layer_tensors(spec, parents, patches):
            yield f"{parents[0].family.prefix}{i}.{suffix}", made


def assemble(
    blueprint: Blueprint,
    parents: Sequence[Parent],
    patches: Patches = NO_PATCHES,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """The model in memory, in eval mode.

    Args:
        blueprint: layers that have lost both halves are left out.
        parents: opened sources, in the order of `blueprint.sources`; the first gives config, tokenizer and dtype.
        patches: what the blueprint's repaired layers name.
        dtype: of the result; None: what transformers loads the base in.
        device: where it goes.

    Raises:
        InvalidBlueprint, IncompatibleSources, BrokenCheckpoint: see `check` and `Checkpoint.tensor`.
        ReloadMismatch: transformers did not take every tensor.
    """
    blueprint = alive(blueprint)
    check(blueprint, parents, patches)
    state = {name: read() for name, read in plan_tensors(blueprint, parents, patches)}
    return loaded(blueprint, parents, state, dtype or parents[0].dtype).eval().requires_grad_(False).to(device)


def loaded(
    blueprint: Blueprint, parents: Sequence[Parent], state: dict[str, torch.Tensor], dtype: torch.dtype
) -> PreTrainedModel:
    """What transformers makes of the tensors of a blueprint, given by its own names.

    Raises:
        ReloadMismatch: it did not take every tensor.
    """
    with quiet():
        config = output_config(blueprint, parents)
        model, info = model_class(config, parents[0]).from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v and k != "error_msgs"}
    if wrong:
        raise ReloadMismatch(f"transformers did not take every tensor of the assembled model: {wrong}.")
    return model


def model_class(config: PretrainedConfig, base: Parent) -> type[PreTrainedModel]:
    """The class that a config of a cut of this parent belongs to."""
    return classes(config.model_type.removeprefix(PREFIX))[1] if is_pruned(config) else type(base.skeleton)


def write(
    blueprint: Blueprint,
    parents: Sequence[Parent],
    folder: Path,
    patches: Patches = NO_PATCHES,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[int, int]:
    """Write weights, config, tokenizer and blueprint into an existing folder; memory stays near one shard.

    Layers that have lost both halves are left out. Patches that the blueprint names are written beside it.

    Returns:
        Parameters and bytes of the written weights, measured on the files.
    """
    blueprint = alive(blueprint)
    check(blueprint, parents, patches)
    base = parents[0]
    config = output_config(blueprint, parents)
    tensors = plan_tensors(blueprint, parents, patches)
    stored = _store(tensors, folder, config, base, shard_bytes)
    config.save_pretrained(folder)
    _keep_architecture(folder, base, model_class(config, base).__name__)
    copy_beside(base.checkpoint.folder, folder, base.trust_remote_code or base.trust_tokenizer_code)
    if not base.trust_tokenizer_code:
        forget_tokenizer_code(folder)
    save_patches({s.repair: patches[s.repair] for s in blueprint.layers if s.repair}, folder / PATCH_FILE)
    save_kept(base, folder)
    (folder / "blueprint.json").write_text(blueprint.to_json(indent=1) + "\n", encoding="utf-8")
    return stored


def write_live(model: PreTrainedModel, parent: Parent, folder: Path) -> tuple[int, int]:
    """Write a live model's tensors under the names and in the dtypes of `parent`, whose shapes it has.

    Returns:
        Parameters and bytes of the written weights.
    """
    state = model.state_dict()
    tensors = ((n, Made(s, parent.tensor_dtype(n), lambda n=n: state[n].cpu())) for n, s in parent.shapes.items())
    return _store(tensors, folder, parent.config, parent, SHARD_BYTES)


def _store(
    tensors: Iterable[tuple[str, Made]], folder: Path, config: PretrainedConfig, base: Parent, shard_bytes: int
) -> tuple[int, int]:
    """Write them as stock files have them; parameters and bytes, measured on what was written.

    Files of our own classes are theirs alone, and have tensors as their modules do.
    """
    if is_pruned(config):
        pieces = ((name, made.nbytes, made) for name, made in tensors)
    else:
        pieces = as_files(tensors, skeleton(config, base.trust_remote_code))
    written = stored_tensors([folder / n for n in write_shards(pieces, folder, shard_bytes) if n != INDEX])
    counts = [(math.prod(t.shape), t.dtype.itemsize) for t in written.values()]
    return sum(n for n, _ in counts), sum(n * size for n, size in counts)


def _keep_architecture(folder: Path, parent: Parent, name: str) -> None:
    # save_pretrained forgets the class and the dtype of a config that no model has touched.
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["architectures"] = [name]
    raw["dtype"] = str(parent.dtype).removeprefix("torch.")
    path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
