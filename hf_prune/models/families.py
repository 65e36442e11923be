"""Where a model keeps its layers, and which config keys count or list them: one frozen row per family.

Families without a row are inferred from the module tree when it leaves no doubt, else refused by name with the reason.
"""

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hf_prune.errors import BrokenCheckpoint, HfPruneError, UnsupportedArchitecture
from hf_prune.models.modeling_pruned import PREFIX


@dataclass(frozen=True, slots=True)
class Family:
    """Names inside one model family.

    `layers` is the path of the layer list, `norm` the final norm before the head; `attention`, `attention_out` and
    `mlp_out` are paths inside a layer (of a tensor, where experts are stacked in it); `mlp` is None when the MLP has no
    module of its own; `attention_norm` and `mlp_norm` are RMS norms that a half's output passes before it is added.
    `lists` are config keys with one entry per layer. `refuse` maps config keys to (value that is fine, reason).
    `renames` are prefixes that files spell otherwise than the modules: (module, file).
    """

    model_type: str
    layers: str = "model.layers"
    norm: str = "model.norm"
    attention: str = "self_attn"
    attention_out: str = "self_attn.o_proj"
    mlp: str | None = "mlp"
    mlp_out: str = "mlp.down_proj"
    attention_norm: str | None = None
    mlp_norm: str | None = None
    depth_key: str = "num_hidden_layers"
    lists: tuple[str, ...] = ()
    refuse: tuple[tuple[str, Any, str], ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    inferred: bool = False

    @property
    def prefix(self) -> str:
        """What every tensor name of layer i begins with, up to the number."""
        return self.layers + "."

    def is_norm(self, suffix: str) -> bool:
        """Whether a tensor of a layer (`self_attn.q_norm.weight`) belongs to a normalisation."""
        return bool(re.search(r"norm|(^|\.)ln_", suffix))

    def half(self, suffix: str) -> str | None:
        """`attention`, `mlp` or None (norms between halves) for a tensor of a layer."""
        if suffix.startswith(self.attention + "."):
            return "attention"
        inside = self.mlp + "." if self.mlp else ("fc1.", "fc2.")
        return "mlp" if suffix.startswith(inside) else None

    def silenced(self, suffix: str, attention_gone: bool, mlp_gone: bool) -> bool:
        """Whether a tensor must be zero so that a removed half adds nothing in stock classes."""
        gone = (self.attention_out,) * attention_gone + (self.mlp_out,) * mlp_gone
        # Experts are stacked in a tensor that no module holds by itself.
        return any(suffix == out or suffix.startswith(out + ".") for out in gone)


POST_NORMS = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}

FAMILIES: Mapping[str, Family] = {
    f.model_type: f
    for f in (
        Family("llama"),
        Family("mistral", lists=("layer_types",)),
        Family("qwen2", lists=("layer_types",)),
        Family("qwen3", lists=("layer_types",)),
        Family("gemma2", lists=("layer_types",), **POST_NORMS),
        Family("gemma3_text", lists=("layer_types",), **POST_NORMS),
        Family("phi3", lists=("layer_types",)),
        Family("olmo2", lists=("layer_types",), **POST_NORMS),
        Family("smollm3", lists=("layer_types", "no_rope_layers")),
        Family(
            "qwen3_moe",
            mlp_out="mlp.experts.down_proj",
            lists=("layer_types",),
            refuse=(
                ("decoder_sparse_step", 1, "it has experts in some layers only, by their number"),
                ("mlp_only_layers", [], "it has experts in some layers only, by their number"),
            ),
        ),
        Family(
            "gpt_neox",
            layers="gpt_neox.layers",
            norm="gpt_neox.final_layer_norm",
            attention="attention",
            attention_out="attention.dense",
            mlp_out="mlp.dense_4h_to_h",
            renames=(("lm_head.", "embed_out."),),
        ),
        Family(
            "gpt2",
            layers="transformer.h",
            norm="transformer.ln_f",
            attention="attn",
            attention_out="attn.c_proj",
            mlp_out="mlp.c_proj",
            depth_key="n_layer",
            refuse=(("scale_attn_by_inverse_layer_idx", False, "it scales attention by the layer's number"),),
        ),
        Family(
            "opt",
            layers="model.decoder.layers",
            norm="model.decoder.final_layer_norm",
            attention_out="self_attn.out_proj",
            mlp=None,
            mlp_out="fc2",
            refuse=(
                ("do_layer_norm_before", True, "its layers normalise after the sum, so none is a residual update"),
                ("_remove_final_layer_norm", False, "it has no final norm before the head"),
            ),
        ),
    )
}

SLICEABLE = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")
"""Config lists with one entry per layer that any family may carry."""

PERIODIC = ("first_k_dense_replace", "moe_layer_freq", "decoder_sparse_step", "mlp_only_layers", "attn_layer_period",
            "expert_layer_period", "cross_attention_layers", "layer_group_size", "num_kv_shared_layers")  # fmt: skip
"""Config keys that tell layers apart by their number: dropping a layer would silently change the others."""

NUMBERS = ("layer_idx", "layer_id", "layer_number", "layer_index", "block_idx")
"""Attributes that hold a layer's number, which its cache needs."""

CODE = ("auto_map", "custom_pipelines")
"""Config keys that point at Python files beside the weights."""

ATTENTION_OUT = ("o_proj", "out_proj", "dense", "c_proj", "wo")
MLP_OUT = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "w2", "fc_out")


def family_of(config: PretrainedConfig) -> Family:
    """The row of a config's family, or an inferred one.

    Raises:
        UnsupportedArchitecture: the family is unknown and ambiguous, or its config has a rule that depends on numbers.
    """
    # A model cut by width keeps its tensors where its family does.
    row = FAMILIES.get(config.model_type.removeprefix(PREFIX)) or infer(config)
    for key, fine, reason in row.refuse:
        if getattr(config, key, fine) != fine:
            raise UnsupportedArchitecture(
                f"{config.model_type} with {key}={getattr(config, key)} cannot be cut: {reason}. Choose another base."
            )
    if row.inferred:
        _refuse_periodic(config)
        _refuse_numbered(config, row)
    return row


def depth_of(config: PretrainedConfig, family: Family) -> int:
    """Number of layers."""
    return int(getattr(config, family.depth_key))


def skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> torch.nn.Module:
    """The model without weights (meta device).

    Raises:
        UnsupportedArchitecture: transformers has no causal language model for this family.
        BrokenCheckpoint: it has one, and does not build it from what this config says.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    # Modelling code trips over a config it does not expect in any error there is.
    except Exception as e:
        if "Unrecognized configuration class" not in str(e):
            raise BrokenCheckpoint(
                f"transformers builds no {config.model_type} from this config.json ({_reason(e, config.to_dict())}); "
                "correct it, or fetch the source afresh."
            ) from None
        raise UnsupportedArchitecture(
            f"transformers has no causal language model for model_type {config.model_type!r}; choose another base."
        ) from None


def read_config(folder: Any, trust_remote_code: bool = False, what: str | None = None) -> PretrainedConfig:
    """The transformers config in a local folder (`what`, in errors); without pointers to code where none is run.

    Raises:
        UnsupportedArchitecture: transformers does not know the model type.
        BrokenCheckpoint: it does, and refuses what the config says.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    # What transformers raises on a value of the wrong type derives from Exception alone.
    except Exception as e:
        raise _refusal(Path(folder), what or Path(folder).name, e, trust_remote_code) from None
    if type(config).__module__.startswith("transformers."):
        for key in CODE:
            vars(config).pop(key, None)
    return config


def _refusal(folder: Path, what: str, error: Exception, trusted: bool) -> HfPruneError:
    """Why a config.json cannot be read, whole, and what helps; trusting code only where that is what is missing."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        return BrokenCheckpoint(f"config.json of {what} is missing or no JSON object; fetch the source afresh.")
    if raw.get("model_type") in CONFIG_MAPPING or raw.get("auto_map") and trusted:
        reason = _reason(error, raw)
        return BrokenCheckpoint(
            f"config.json of {what} is not what transformers accepts ({reason}); correct it, or fetch the "
            "source afresh."
        )
    trust = ", or pass --trust-remote-code if you trust the code beside it" * bool(raw.get("auto_map"))
    return UnsupportedArchitecture(
        f"config.json of {what} is of no family this transformers version knows (model_type "
        f"{raw.get('model_type')!r}); upgrade transformers{trust}."
    )


def _reason(error: Exception, raw: Mapping[str, Any]) -> str:
    """An error in one line, and the entry of the config whose value it stumbled over, where that is all it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first line of a failed validation names the validator.
    text = " ".join(lines[1:] if len(lines) > 1 and "alidation error" in lines[0] else lines)
    match = re.search(r"for field '(\w+)'", str(error))
    # A value that is the name of nothing: an activation, a dtype.
    value = {KeyError: error.args[:1], AttributeError: (getattr(error, "name", None),)}.get(type(error), ())
    field = match[1] if match else next((f for v in value if v and (f := _holder(raw, v))), None)
    return f"{field}: {text}" if field and field not in text else text[:400]


def _holder(raw: Mapping[str, Any], value: Any) -> str | None:
    """The entry that has a value, `rope_parameters.rope_type` where it is further down."""
    for key, found in raw.items():
        if found == value:
            return key
        if isinstance(found, Mapping) and (inner := _holder(found, value)):
            return f"{key}.{inner}"
    return None


def sliced(config: PretrainedConfig, family: Family, kept: Sequence[int]) -> PretrainedConfig:
    """A copy of `config` for the layers `kept` (source numbers, in output order), every per-layer list sliced.

    Raises:
        UnsupportedArchitecture: a list of one entry per layer has no known meaning.
    """
    depth = depth_of(config, family)
    new = copy.deepcopy(config)
    setattr(new, family.depth_key, len(kept))
    for key, value in config.to_dict().items():
        if not isinstance(value, list | tuple) or len(value) != depth or key == "architectures":
            continue
        if key in family.lists or key in SLICEABLE:
            setattr(new, key, [value[i] for i in kept])
        elif family.inferred:
            raise UnsupportedArchitecture(
                f"{config.model_type} lists {key!r} with one entry per layer and hf_prune does not know what it means; "
                "add a row to hf_prune/architecture.py."
            )
    return new


def infer(config: PretrainedConfig) -> Family:
    """Read a family off its module tree.

    Raises:
        UnsupportedArchitecture: no layer list, or more than one candidate for any part.
    """
    name = config.model_type
    model = skeleton(config)
    depth = getattr(config, "num_hidden_layers", None)
    lists = [
        path
        for path, m in model.named_modules()
        if isinstance(m, torch.nn.ModuleList) and len(m) == depth and len(m) > 0
    ]
    layers = _only(lists, name, f"a list of {depth} layers")
    layer = model.get_submodule(layers)[0]
    trunk = model.get_submodule(layers.rpartition(".")[0])
    norm = _only(
        [k for k, m in trunk.named_children() if "norm" in k.lower() or k.startswith("ln_")], name, "a final norm"
    )
    attention = _only(
        [k for k, m in layer.named_children() if _is_attention(m)], name, "an attention module in a layer"
    )
    mlps = [k for k, m in layer.named_children() if _is_mlp(m)]
    if not mlps and any(re.search("moe|experts", type(m).__name__.lower()) for m in layer.modules()):
        raise UnsupportedArchitecture(
            f"Model family {name!r} is a mixture of experts, and of those hf_prune knows qwen3_moe alone; "
            "choose that or a dense base."
        )
    mlp = _only(mlps, name, "an MLP module in a layer")
    return Family(
        model_type=name,
        layers=layers,
        norm=f"{layers.rpartition('.')[0]}.{norm}",
        attention=attention,
        attention_out=f"{attention}.{_only(_named(layer, attention, ATTENTION_OUT), name, 'an attention output')}",
        mlp=mlp,
        mlp_out=f"{mlp}.{_only(_named(layer, mlp, MLP_OUT), name, 'an MLP output')}",
        # Llama calls the norm before its MLP post_attention_layernorm; only beside this other name is it what it says.
        **(POST_NORMS if hasattr(layer, POST_NORMS["mlp_norm"]) else {}),
        lists=tuple(k for k in SLICEABLE if isinstance(getattr(config, k, None), list)),
        inferred=True,
    )


def _is_attention(module: torch.nn.Module) -> bool:
    return type(module).__name__.lower().endswith("attention")


def _is_mlp(module: torch.nn.Module) -> bool:
    return bool(re.search(r"(mlp|feedforward|ffn)$", type(module).__name__.lower()))


def _named(layer: torch.nn.Module, child: str, names: Iterable[str]) -> list[str]:
    return [k for k, _ in layer.get_submodule(child).named_children() if k in names]


def _only(found: list[str], name: str, what: str) -> str:
    if len(found) != 1:
        seen = f"{len(found)} candidates ({', '.join(found)})" if found else "none"
        raise UnsupportedArchitecture(
            f"Model family {name!r} has no row in hf_prune and cannot be inferred: looking for {what} found {seen}."
        )
    return found[0]


def _refuse_numbered(config: PretrainedConfig, family: Family) -> None:
    """Refuse layers that are built by their number: without the first layer, the others must be what they were."""
    depth = depth_of(config, family)
    if depth < 2:
        return
    before = skeleton(config).get_submodule(family.layers)
    after = skeleton(sliced(config, family, range(1, depth))).get_submodule(family.layers)
    for old, new in zip(list(before)[1:], after, strict=True):
        for (name, mine), (_, other) in zip(_traits(old), _traits(new), strict=False):
            if mine != other:
                raise UnsupportedArchitecture(
                    f"Model family {family.model_type!r} makes {name} of a layer from its number, so dropping one "
                    "would change the others; hf_prune has no row that says how to renumber it."
                )


def _traits(layer: torch.nn.Module) -> list[tuple[str, Any]]:
    """What a layer is made of besides weights: classes, and settings other than its number."""
    found: list[tuple[str, Any]] = []
    for path, module in layer.named_modules():
        found.append((path, type(module)))
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | None)}
        found += [(f"{path}.{k}".strip("."), v) for k, v in sorted(plain.items()) if k not in NUMBERS]
    return found


def _refuse_periodic(config: PretrainedConfig) -> None:
    for key in PERIODIC:
        if getattr(config, key, None) not in (None, 0, 1, [], False):
            raise UnsupportedArchitecture(
                f"Model family {config.model_type!r} sets {key}={getattr(config, key)}, which tells layers apart by "
                "number; hf_prune has no row that says how to renumber it."
            )
