"""What a config says of layers by their numbers, and what it must say when some of them are gone."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.families import Family

LISTS = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "activation_sparsity_pattern",
    "attention_layers",
    "indexer_types",
)
"""Config keys with one entry per layer."""
POSITIONS = ("attn_layer_indices", "full_attn_idxs", "mlp_only_layers", "moe_layers")
"""Those that list the numbers of some layers."""
FIRST = ("first_k_dense_replace", "num_dense_layers")
"""Those that count the first layers, which are of another kind than the rest."""
RECURRENT = ("linear_attention", "conv", "mamba")
"""Types of layers that carry a state from token to token and keep no keys."""
DEPTHS = ("num_hidden_layers", "num_layers", "num_blocks")
"""Those that count them all, the usual one first."""
NO_LAYERS = ("architectures", "eos_token_id", "bos_token_id", "begin_suppress_tokens", "suppress_tokens")
"""Lists that never speak of layers, however long they are."""


def depth_of(config: PretrainedConfig, family: Family) -> int:
    """Number of layers."""
    return int(getattr(config, family.depth_key))


def kinds_of(shapes: Mapping[str, Sequence[int]], prefix: str, depth: int) -> tuple[int, ...]:
    """Per layer the number of its kind: layers of one kind have tensors of the same names and shapes.

    Args:
        shapes: of a model's tensors, by name.
        prefix: what those of layer i begin with, up to the number.
        depth: number of layers.
    """
    parts: dict[str, set[tuple[str, tuple[int, ...]]]] = {str(i): set() for i in range(depth)}
    for name, shape in shapes.items():
        number, _, suffix = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and number in parts:
            parts[number].add((suffix, tuple(shape)))
    sets = [frozenset(p) for p in parts.values()]
    return tuple(map(list(dict.fromkeys(sets)).index, sets))


def sliced(config: PretrainedConfig, family: Family, kept: Sequence[int]) -> PretrainedConfig:
    """A copy of `config` for the layers `kept` (source numbers, in output order); all it says of layers follows them.

    Raises:
        UnsupportedArchitecture: a list of one entry per layer has no known meaning, or the config would be read as
            another one than was written.
    """
    _refuse_without_attention(config, kept)
    new = copy.deepcopy(config)
    changes = _changes(config.to_dict(), family, depth_of(config, family), kept)
    by_layer = changes.pop("per_layer_config", None)
    if by_layer is not None:
        new.per_layer_config = None
    for key, value in {family.depth_key: len(kept), **changes}.items():
        setattr(new, key, value)
    if by_layer is not None:
        new.per_layer_config = by_layer
    _read_back(new, changes, family)
    return new


def is_writable(config: PretrainedConfig, family: Family, kept: Sequence[int]) -> bool:
    """Whether a config can say that these layers are left, without the cost of writing it where any can be."""
    if not (family.last or _attention(config)):
        return True
    try:
        sliced(config, family, kept)
    except UnsupportedArchitecture:
        return False
    return True


def _attention(config: PretrainedConfig) -> set[int]:
    """Layers that keep keys, of a model that has others besides."""
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    keep = {i for i, t in enumerate(types) if isinstance(t, str) and "attention" in t and t not in RECURRENT}
    return keep if set(types) & set(RECURRENT) else set()


def _refuse_without_attention(config: PretrainedConfig, kept: Sequence[int]) -> None:
    # What is cached is as long as the attention layers say; where all states are recurrent, no layer is asked.
    attention = _attention(config)
    if attention and not attention & set(kept):
        raise UnsupportedArchitecture(
            f"This cut leaves a {config.model_type} without any attention layer (of {sorted(attention)}), and "
            "transformers cannot decode it with its cache then; keep one of them."
        )


def _changes(raw: Mapping[str, Any], family: Family, depth: int, kept: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in raw.items():
        listed = isinstance(value, list | tuple)
        if key in DEPTHS and value == depth:
            found[key] = len(kept)
        elif listed and len(value) >= depth and key in LISTS:
            # What is beyond the last layer nobody reads.
            found[key] = [value[i] for i in kept]
        elif listed and key in POSITIONS:
            found[key] = [new for new, old in enumerate(kept) if old in value]
        elif key in FIRST and value:
            found[key] = _first(key, value, kept)
        elif listed and len(value) == depth and family.inferred and key not in NO_LAYERS:
            raise UnsupportedArchitecture(
                f"{family.model_type} lists {key!r} with one entry per layer and hf_prune does not know what it means; "
                "add it to hf_prune/models/numbering.py."
            )
    return found | _periods(raw, depth, kept)


def _first(key: str, count: int, kept: Sequence[int]) -> int:
    """How many of the first layers are left."""
    left = sum(i < count for i in kept)
    if any(i >= count for i in kept[:left]):
        raise UnsupportedArchitecture(
            f"Layers {list(kept)} cannot stand in this order: by {key}={count}, those below {count} must come first."
        )
    return left


def _periods(raw: Mapping[str, Any], depth: int, kept: Sequence[int]) -> dict[str, Any]:
    """Rules by which layers are told apart, said layer by layer."""
    found: dict[str, Any] = {}
    if step := raw.get("decoder_sparse_step"):
        dense = {i for i in range(depth) if i in (raw.get("mlp_only_layers") or ()) or (i + 1) % step}
        found |= {"decoder_sparse_step": 1, "mlp_only_layers": [n for n, i in enumerate(kept) if i in dense]}
    if raw.get("attention_types") and "attention_layers" in raw:
        found["attention_types"] = [[[raw["attention_layers"][i]], 1] for i in kept]
    if blocks := raw.get("block_types"):
        found["block_types"] = [blocks[i % len(blocks)] for i in kept]
    if raw.get("moe_layer_start_index") is not None:
        start, end = raw["moe_layer_start_index"], raw["moe_layer_end_index"]
        found["moe_layer_start_index"] = _first("moe_layer_start_index", start, kept)
        found["moe_layer_end_index"] = _first("moe_layer_end_index", end + 1, kept) - 1
    if overrides := raw.get("per_layer_config"):
        by_number = {int(i): own for i, own in overrides.items()}
        found["per_layer_config"] = {n: by_number[i] for n, i in enumerate(kept) if i in by_number}
    return found


def _read_back(config: PretrainedConfig, changes: Mapping[str, Any], family: Family) -> None:
    """Raise unless whoever reads the config sees what was written."""
    try:
        again = type(config).from_dict(config.to_dict()).to_dict()
    # A config that does not hold together is refused by whatever error its checks end in.
    except Exception as e:
        reason = str(e).split("\n")[-1].strip()[:200]
        raise UnsupportedArchitecture(f"This cut of a {family.model_type} cannot be written: {reason}") from None
    for key, value in changes.items():
        if again.get(key) == value:
            continue
        if family.last and key == "layer_types" and again[key][:-1] == value[:-1]:
            raise UnsupportedArchitecture(
                f"The last layer of a {family.model_type} must be of {family.last}, whatever its config says, and this "
                f"cut leaves one of {value[-1]} there; keep the last layer."
            )
        raise UnsupportedArchitecture(
            f"A {family.model_type} reads {key}={value} back as {again.get(key)}, so this cut cannot be written."
        )
