"""Families: the row of one, or what is read off the module tree where there is none.

What is inferred leaves no doubt, or is refused by name with the reason. A layer is whatever stands in the one list of
layers, attention or state-space; its halves are inferred where all layers have the same two.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.configs import skeleton
from hf_prune.models.families import FAMILIES, POST_NORMS, Family, refuse
from hf_prune.models.modeling_pruned import PREFIX
from hf_prune.models.numbering import DEPTHS, depth_of, sliced

NUMBERS = ("layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "num_hidden_layers")
"""Attributes that hold a layer's number, which its cache needs, or how many layers there are."""
ATTENTION_OUT = ("o_proj", "out_proj", "dense", "c_proj", "wo")
MLP_OUT = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "w2", "fc_out")
BESIDE = re.compile(r"Embed|Norm|Rotary|R[Oo]PE|Rope|Dropout|Identity")
"""What may stand beside the layers, by class."""
NO_LAYER = re.compile(r"(Norm|Embeddings?|Rotary\w*|Dropout|Identity)$")
"""What a list of layers is not made of, by class; a layer may be called after a norm that it has."""


def family_of(config: PretrainedConfig) -> Family:
    """The row of a config's family, or an inferred one.

    Raises:
        UnsupportedArchitecture: the family is unknown and ambiguous, or its config has a rule that depends on numbers.
    """
    # A model cut by width keeps its tensors where its family does.
    row = FAMILIES.get(config.model_type.removeprefix(PREFIX)) or infer(config)
    refuse(row, config.to_dict())
    if row.inferred:
        _refuse_numbered(config, row)
    return row


def infer(config: PretrainedConfig) -> Family:
    """Read a family off its module tree.

    Raises:
        UnsupportedArchitecture: no layer list, or more than one candidate for any part.
    """
    name = config.model_type
    refuse(Family(name), config.to_dict())
    if any(re.search(r"text|vision|audio|decoder", key) for key in config.sub_configs):
        tower = getattr(getattr(config, "text_config", None), "model_type", None)
        loads = (
            f", {tower}, once that is a model of its own" if tower in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else " alone"
        )
        raise UnsupportedArchitecture(
            f"{name!r} is a model of more than language, and hf_prune cuts the language tower of such{loads}."
        )
    model = skeleton(config)
    depth_key, path = _layers(model, config)
    trunk, _, own = path.rpartition(".")
    layers = model.get_submodule(path)
    _refuse_readers(layers, name)
    if getattr(config, "is_decoder", True) is False and type(model.get_submodule(trunk)).__name__.endswith("Encoder"):
        raise UnsupportedArchitecture(f"{name!r} is an encoder, whose tokens see those behind them; choose a decoder.")
    _refuse_company(model.get_submodule(trunk), own, name)
    norm = _norm(model.get_submodule(trunk), name)
    if any(tensor.startswith(f"{path}.") for tensor in _shared(model)):
        raise UnsupportedArchitecture(
            f"Some layers of the model family {name!r} share their weights, so none of those can go by itself."
        )
    return Family(
        model_type=name,
        layers=path,
        norm=f"{trunk}.{norm}",
        depth_key=depth_key,
        opaque=True,
        inferred=True,
        **_halves(layers),
    )


def _shared(model: PreTrainedModel) -> set[str]:
    """Names of tensors that stand for another, and those they stand for."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {*tied, *tied.values()}


def _layers(model: PreTrainedModel, config: PretrainedConfig) -> tuple[str, str]:
    """The config key that counts the layers, and the path of their list."""
    lists = {
        path: len(module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and not re.search(r"\.\d+(\.|$)", path)
        and not all(NO_LAYER.search(type(m).__name__) for m in module)
    }
    for key in DEPTHS:
        depth = getattr(config, key, None)
        found = [path for path, length in lists.items() if length == depth]
        if any(re.search(r"vision|visual|image|img|audio", path) for path in found):
            raise UnsupportedArchitecture(
                f"{config.model_type!r} is a model of more than language, and hf_prune cuts language models alone."
            )
        if found:
            return key, _only(found, config.model_type, f"a list of {depth} layers")
    raise UnsupportedArchitecture(
        f"Model family {config.model_type!r} has no row in hf_prune and cannot be inferred: no list of modules is as "
        f"long as its config says ({', '.join(f'{k}={getattr(config, k)}' for k in DEPTHS if hasattr(config, k))})."
    )


def _norm(trunk: torch.nn.Module, name: str) -> str:
    """The norm behind the layers."""
    norms = [k for k, m in trunk.named_children() if "norm" in type(m).__name__.lower()]
    if not norms:
        raise UnsupportedArchitecture(
            f"Model family {name!r} has no norm behind its layers: they normalise after the sum, so none of them is a "
            "residual update that could go."
        )
    behind = [k for k in norms if "embed" not in k]
    return _only(behind or norms, name, "a final norm")


def _refuse_readers(layers: torch.nn.ModuleList, name: str) -> None:
    """Refuse layers that read something else than the layer before."""
    for layer in layers:
        for child, _ in layer.named_children():
            if re.search(r"encoder_attn|cross_?att", child):
                raise UnsupportedArchitecture(
                    f"Layers of the model family {name!r} read another model's states ({child}), as decoders of an "
                    "encoder or readers of images do; choose a decoder-only language model."
                )


def _refuse_company(trunk: torch.nn.Module, layers: str, name: str) -> None:
    """Refuse modules beside the layers that may do something to them."""
    for child, module in trunk.named_children():
        kinds = {type(m).__name__ for m in (module if isinstance(module, torch.nn.ModuleList) else [module])}
        if child != layers and not all(map(BESIDE.search, kinds)):
            raise UnsupportedArchitecture(
                f"Model family {name!r} has {child} ({min(kinds)}) beside its layers, and hf_prune has no row that "
                "says what becomes of it when layers go."
            )


def _halves(layers: torch.nn.ModuleList) -> dict[str, Any]:
    """The halves that all layers have; none where one of them is unclear."""
    found: dict[str, dict[str, None]] = {"attention": {}, "attention_out": {}, "mlp": {}, "mlp_out": {}}
    for layer in layers:
        mine = _halves_of(layer)
        if mine is None:
            return dict.fromkeys(found)
        for key, names in mine.items():
            found[key] |= dict.fromkeys(names)
    names = {k: next(iter(v)) if len(v) == 1 else tuple(v) for k, v in found.items()}
    # Llama calls the norm before its MLP post_attention_layernorm; only beside this other name is it what it says.
    return names | (POST_NORMS if all(hasattr(layer, POST_NORMS["mlp_norm"]) for layer in layers) else {})


def _halves_of(layer: torch.nn.Module) -> dict[str, list[str]] | None:
    parts = {k: m for k, m in layer.named_children() if next(m.parameters(), None) is not None}
    attention, mlp = [k for k, m in parts.items() if _is_attention(m)], [k for k, m in parts.items() if _is_mlp(m)]
    others = [k for k, m in parts.items() if k not in attention + mlp and "norm" not in type(m).__name__.lower()]
    if len(attention) != 1 or len(mlp) != 1 or others:
        return None
    attention_out = _named(layer, attention[0], ATTENTION_OUT)
    mlp_out = _stacked(layer, mlp[0]) or _named(layer, mlp[0], MLP_OUT)
    if len(attention_out) != 1 or not mlp_out or len(mlp_out) > 1 and not _stacked(layer, mlp[0]):
        return None
    return {"attention": attention, "attention_out": attention_out, "mlp": mlp, "mlp_out": mlp_out}


def _is_attention(module: torch.nn.Module) -> bool:
    return type(module).__name__.lower().endswith("attention")


def _is_mlp(module: torch.nn.Module) -> bool:
    return bool(re.search(r"(mlp|feedforward|ffn|moe|moelayer|moeblock)$", type(module).__name__.lower()))


def _stacked(layer: torch.nn.Module, child: str) -> list[str]:
    """What a mixture of experts adds by: the stack of all experts, and the map of one that all tokens pass."""
    names = [n for n, _ in layer.get_submodule(child).named_parameters(prefix=child)]
    last = [n for n in names if re.search(r"(^|\.)(down_proj|down_proj_bias|down_proj\.weight)$", n)]
    return [n.removesuffix(".weight") for n in last] if any(n.endswith("experts.down_proj") for n in names) else []


def _named(layer: torch.nn.Module, child: str, names: Iterable[str]) -> list[str]:
    return [f"{child}.{k}" for k, _ in layer.get_submodule(child).named_children() if k in names]


def _only(found: list[str], name: str, what: str) -> str:
    if len(found) != 1:
        seen = f"{len(found)} candidates ({', '.join(found)})" if found else "none"
        raise UnsupportedArchitecture(
            f"Model family {name!r} has no row in hf_prune and cannot be inferred: looking for {what} found {seen}."
        )
    return found[0]


def _refuse_numbered(config: PretrainedConfig, family: Family) -> None:
    """Refuse layers that are built by their number: those that stay must be what they were, and so must the rest."""
    depth = depth_of(config, family)
    before = skeleton(config)
    for kept, cut in _writable(config, family, (range(1, depth), range(0, depth, 2), range(depth - 1))):
        after = skeleton(cut)
        for number, (old, new) in enumerate(zip(kept, after.get_submodule(family.layers), strict=True)):
            if other := _difference(before.get_submodule(family.layers)[old], new):
                raise UnsupportedArchitecture(
                    f"Model family {family.model_type!r} makes {other} of a layer from its number ({old}, then "
                    f"{number}), so dropping one would change the others; hf_prune has no row that says how to "
                    "renumber it."
                )
        for name, shape in _outside(before, family).items():
            if _outside(after, family).get(name) != shape:
                raise UnsupportedArchitecture(
                    f"Model family {family.model_type!r} keeps something of every layer in {name}, so dropping one "
                    "would change it; hf_prune has no row that says how to cut it."
                )


def _writable(
    config: PretrainedConfig, family: Family, cuts: Iterable[range]
) -> Iterator[tuple[range, PretrainedConfig]]:
    """The cuts that a config can say, as whoever reads it sees them.

    Raises:
        UnsupportedArchitecture: it can say none of them.
    """
    refused, said = None, False
    for kept in filter(len, cuts):
        try:
            cut = sliced(config, family, kept)
        except UnsupportedArchitecture as e:
            refused = e
            continue
        said = True
        yield kept, type(cut).from_dict(cut.to_dict())
    if refused and not said:
        raise refused


def _outside(model: PreTrainedModel, family: Family) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in model.state_dict().items() if not n.startswith(family.prefix)}


def _difference(old: torch.nn.Module, new: torch.nn.Module) -> str | None:
    """What two layers differ in."""
    mine, other = _traits(old), _traits(new)
    return next((k for k in {**mine, **other} if mine.get(k) != other.get(k)), None)


def _traits(layer: torch.nn.Module) -> dict[str, Any]:
    """What a layer is made of besides weights: classes, shapes, and settings other than its number."""
    found: dict[str, Any] = {n: tuple(t.shape) for n, t in layer.state_dict().items()}
    for path, module in layer.named_modules():
        found[path or "its class"] = type(module).__name__
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | None)}
        found |= {f"{path}.{k}".strip("."): v for k, v in plain.items() if k not in NUMBERS}
    return found
