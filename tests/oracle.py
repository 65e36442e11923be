"""Every tiny family as saved by stock transformers, edits of it, and the same edits by hand, without hf_prune."""

import atexit
import copy
import functools
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_prune.assembly.assemble import Parent
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part, Source
from hf_prune.models.families import FAMILIES, Family
from hf_prune.models.inference import infer
from tests.families import DEPTH, EVERY, VOCABULARY, save_tiny

LENGTH = 24
EDITS = {
    "identity": [LayerSpec((Part(0, i),)) for i in range(DEPTH)],
    "dropped": [LayerSpec((Part(0, i),)) for i in (0, 2, 4, 5)],
    "merged": [LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 1, 0.5), Part(0, 2, 0.5))), LayerSpec((Part(0, 4),)),
               LayerSpec((Part(0, 5),), norms=Part(0, 3))],
    "extrapolated": [LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 1, 1.5), Part(0, 3, -0.5)), norms=Part(0, 1)),
                     LayerSpec((Part(0, 5),))],
    "halved": [LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 1),), attn_level=GONE), LayerSpec((Part(0, 3),)),
               LayerSpec((Part(0, 4),), mlp_level=GONE), LayerSpec((Part(0, 5),))],
}  # fmt: skip
_HOME = Path(tempfile.mkdtemp(prefix="hf_prune_families_"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)


@functools.cache
def saved(model_type: str, dtype: torch.dtype = torch.float32) -> Path:
    """The folder of the family's model; made once, and nobody may write to it."""
    folder = _HOME / f"{model_type}-{str(dtype).split('.')[1]}"
    save_tiny(model_type, folder, dtype)
    return folder


@functools.cache
def opened(model_type: str, dtype: torch.dtype = torch.float32) -> Parent:
    folder = saved(model_type, dtype)
    return Parent.open(Source(folder.name, "tiny"), folder)


def stock(folder: Path, **kwargs) -> PreTrainedModel:
    """As a user loads it; anything missing, unexpected or mismatched fails."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info.values()), info
    return model.eval().requires_grad_(False)


def blueprint(parent: Parent, edit: str) -> Blueprint:
    return Blueprint((parent.source,), tuple(EDITS[edit]))


def row(model_type: str) -> Family:
    return FAMILIES.get(model_type) or infer(AutoConfig.for_model(model_type, **EVERY[model_type]))


def oracle(model_type: str, specs: list[LayerSpec]) -> PreTrainedModel:
    """The edited model by hand: a fresh stock model of the right depth, its tensors summed up in float64."""
    family, dense = row(model_type), stock(saved(model_type), dtype=torch.float32)
    layers = [max(s.parts, key=lambda p: p.weight).layer for s in specs]
    config = copy.deepcopy(dense.config)
    config.num_hidden_layers = len(specs)
    for key in ("layer_types", "no_rope_layers"):
        if getattr(config, key, None) is not None:
            setattr(config, key, [getattr(config, key)[i] for i in layers])
    state = dense.state_dict()
    prefix = family.layers + "."
    new = {k: v for k, v in state.items() if not k.startswith(prefix)}
    for i, spec in enumerate(specs):
        for name in [k for k in state if k.startswith(f"{prefix}{layers[i]}.")]:
            suffix = name.removeprefix(f"{prefix}{layers[i]}.")
            parts = [spec.norms] if spec.norms and ("norm" in suffix or "ln_" in suffix) else spec.parts
            total = sum(state[f"{prefix}{p.layer}.{suffix}"].double() * p.weight for p in parts)
            gone = spec.attn_level == GONE and suffix.startswith(family.attention_out + ".")
            gone |= spec.mlp_level == GONE and f"{suffix}.".startswith(family.mlp_out + ".")
            new[f"{prefix}{i}.{suffix}"] = (total * (not gone)).float()
    model = AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(new, strict=True)
    return model.requires_grad_(False)


def tokens(rows: int = 3, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    return model(input_ids=windows, use_cache=False).logits


@torch.no_grad()
def cached_logits(model: PreTrainedModel, windows: torch.Tensor, first: int) -> torch.Tensor:
    """Prefill of `first` tokens, then one at a time."""
    out = model(input_ids=windows[:, :first], use_cache=True)
    steps = [out.logits]
    for t in range(first, windows.shape[1]):
        out = model(input_ids=windows[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        steps.append(out.logits)
    return torch.cat(steps, 1)


@functools.cache
def variants(model_type: str, count: int = 2) -> tuple[Parent, ...]:
    """A base and models of the same shape with other weights."""
    found = [opened(model_type)]
    for seed in range(1, count + 1):
        folder = _HOME / f"{model_type}-variant-{seed}"
        save_tiny(model_type, folder, seed=seed)
        found.append(Parent.open(Source(folder.name, "tiny"), folder))
    return tuple(found)


def stitched(model_type: str, blueprint: Blueprint) -> PreTrainedModel:
    """A blueprint over `variants` by hand: sums of stock models' tensors in float64, MLPs apart where they are."""
    parents, family = variants(model_type), row(model_type)
    folders = [p.checkpoint.folder for p in parents]
    states = [{n: t.double() for n, t in stock(f, dtype=torch.float32).state_dict().items()} for f in folders]
    config = copy.deepcopy(stock(folders[0]).config)
    layers = [s.anchor.layer for s in blueprint.layers]
    config.num_hidden_layers = len(layers)
    for key in ("layer_types", "no_rope_layers"):
        if getattr(config, key, None) is not None:
            setattr(config, key, [getattr(config, key)[i] for i in layers])
    behind = (family.norm + ".", "lm_head.")
    state = {n: states[blueprint.head if n.startswith(behind) else blueprint.embed][n] for n in states[0]
             if not n.startswith(family.prefix)}  # fmt: skip
    if config.tie_word_embeddings:
        state = {n: t for n, t in state.items() if not n.startswith("lm_head.")}
    for number, spec in enumerate(blueprint.layers):
        prefix = f"{family.prefix}{spec.anchor.layer}."
        for name in [n for n in states[0] if n.startswith(prefix)]:
            suffix = name.removeprefix(prefix)
            mlp = spec.mlp and suffix.startswith(f"{family.mlp}.")
            parts = spec.mlp.parts if mlp else spec.parts
            total = sum(p.weight * states[p.source][f"{family.prefix}{p.layer}.{suffix}"] for p in parts)
            state[f"{family.prefix}{number}.{suffix}"] = total
    model = AutoModelForCausalLM.from_config(config)
    missing, unexpected = model.load_state_dict({n: t.float() for n, t in state.items()}, strict=False)
    assert not unexpected and all("lm_head" in n or "rotary" in n for n in missing), (missing, unexpected)
    return model.eval().requires_grad_(False)


def closed_form(weight: torch.Tensor, hessian: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """W H[:, K] H[K, K]^-1, [d, len(kept)]: the weights of any set of inputs by themselves."""
    cross = weight.to(hessian) @ hessian[:, kept]
    return torch.cholesky_solve(cross.T, torch.linalg.cholesky(hessian[kept][:, kept])).T
