"""What the headers of a checkpoint say: where its layers are and how many parameters each has."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_prune.errors import SourceError, UnsupportedArchitecture

if TYPE_CHECKING:
    from hf_prune.hub import Peek, TensorInfo

BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes per number of a safetensors dtype; everything else (8-bit floats, integers, booleans) takes one."""
HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a checkpoint: one count per layer, everything outside the layers, and stored bytes; per layer the
    number of its kind, which is one where tensors have the same names and shapes."""

    layers: tuple[int, ...]
    outside: int
    bytes: int
    kinds: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.layers) + self.outside


def weigh(peek: "Peek") -> Weights:
    """Count the parameters of each layer from tensor names and shapes.

    Raises:
        SourceError: there are no safetensors headers to count from.
        UnsupportedArchitecture: the layers cannot be told from the names.
    """
    tensors = {n: t for n, t in peek.tensors.items() if not _is_buffer(n, t)}
    if not tensors:
        raise SourceError(
            f"{peek.source} has no safetensors, so its sizes cannot be read without loading it; "
            "convert it to safetensors, or skip plan and run compress --allow-pickle."
        )
    if setting(peek.config, "tie_word_embeddings") and len(tensors) > 1:
        tensors = {n: t for n, t in tensors.items() if not n.endswith(HEADS)}
    prefix, depth = layer_prefix(tensors, setting(peek.config, "num_hidden_layers", "n_layer"))
    if "text_config" in peek.config:
        # What sees or hears does not come along when the language tower is taken.
        trunk = re.sub(r"\w+\.$", "", prefix)
        tensors = {n: t for n, t in tensors.items() if n.startswith(trunk) or n.endswith(HEADS)}
    counts: Counter[int] = Counter()
    parts: dict[int, set[tuple[str, tuple[int, ...]]]] = defaultdict(set)
    outside = size = 0
    for name, info in tensors.items():
        count = math.prod(info.shape)
        size += count * BYTES.get(info.dtype, 1)
        index, _, suffix = name.removeprefix(prefix).partition(".") if name.startswith(prefix) else ("", "", "")
        if index.isdigit():
            counts[int(index)] += count
            parts[int(index)].add((suffix, tuple(info.shape)))
        else:
            outside += count
    sets = [frozenset(parts[i]) for i in range(depth)]
    kinds = tuple(map(list(dict.fromkeys(sets)).index, sets))
    return Weights(tuple(counts[i] for i in range(depth)), outside, size, kinds)


def layer_prefix(names: "Mapping[str, TensorInfo]", depth: int | None = None) -> tuple[str, int]:
    """What every tensor name of a layer begins with ("model.layers."), and the number of layers.

    The first numbered component of a name counts. Several stacks (a vision tower beside the text model) are told apart
    by `depth` from the config, then by size.

    Raises:
        UnsupportedArchitecture: no stack is numbered 0, 1, 2 ... without a gap, or none has `depth` layers.
    """
    stacks: dict[str, set[int]] = defaultdict(set)
    sizes: Counter[str] = Counter()
    for name, info in names.items():
        if match := re.match(r"((?:.*?\.)?)(\d+)\.", name):
            stacks[match[1]].add(int(match[2]))
            sizes[match[1]] += math.prod(info.shape)
    whole = {p: len(n) for p, n in stacks.items() if n == set(range(len(n))) and depth in (None, len(n))}
    if not whole:
        found = ", ".join(f"{p}N ({len(n)})" for p, n in stacks.items()) or "no numbered tensors"
        raise UnsupportedArchitecture(
            f"The layers cannot be told from the tensor names: expected {depth or 'a run of'} layers numbered from 0, "
            f"found {found}."
        )
    prefix = max(whole, key=lambda p: sizes[p])
    return prefix, whole[prefix]


def _is_buffer(name: str, info: "TensorInfo") -> bool:
    """Masks and rotary tables that older checkpoints store; transformers does not count or load them."""
    if name.endswith(("rotary_emb.inv_freq", ".masked_bias")):
        return True
    return name.endswith((".attn.bias", ".attention.bias")) and len(info.shape) > 2


def setting(config: Mapping[str, Any], *names: str) -> Any:
    """The first of `names` in the config or in its text part."""
    for part in (config, config.get("text_config") or {}):
        for name in names:
            if part.get(name) is not None:
                return part[name]
    return None


def number(peek: "Peek", *names: str) -> int:
    """The same, as a whole number.

    Raises:
        UnsupportedArchitecture: the config does not have it.
    """
    value = setting(peek.config, *names)
    if not isinstance(value, int):
        raise UnsupportedArchitecture(f"The config of {peek.source} does not say its {names[0]}.")
    return value
