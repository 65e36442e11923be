"""What the headers of a source say: which tensors are loaded, where its layers are, what all of them weigh."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_prune.errors import SourceError, UnsupportedArchitecture
from hf_prune.hub.adapters import has_rows
from hf_prune.hub.contents import needs_code
from hf_prune.models.mixtures import Mixture, mixture_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hf_prune.hub import Peek, TensorInfo
    from hf_prune.models.families import Family

BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes per number of a safetensors dtype; everything else (8-bit floats, integers, booleans) takes one."""
HEADS = ("lm_head.weight", "embed_out.weight")


SAMPLE = 2**14
"""Numbers of two tensors that are compared at their beginning, middle and end."""


class Size(NamedTuple):
    """Of one tensor: its layer (None outside of the layers), numbers, bytes in the files, and in those of a result."""

    layer: int | None
    count: int
    bytes: int
    written: int


@dataclass(frozen=True)
class Weights:
    """The tensors that transformers loads of a source, tied ones once.

    notes: what is left out or not as the config has it.
    kinds: per layer the number of its kind; tensors of layers of one kind have the same names and shapes.
    config, family: as transformers reads it, and where the parts are; None where only the source's own code would tell.
    """

    sizes: Mapping[str, Size]
    depth: int
    notes: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()
    config: "PretrainedConfig | None" = None
    family: "Family | None" = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Parameters of each layer."""
        counts: Counter[int | None] = Counter()
        for size in self.sizes.values():
            counts[size.layer] += size.count
        return tuple(counts[i] for i in range(self.depth))

    @property
    def outside(self) -> int:
        """Parameters outside of the layers."""
        return self.total - sum(self.layers)

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(size.count for size in self.sizes.values())

    @property
    def mixture(self) -> Mixture | None:
        """Its experts, where it has some that are known."""
        return self.family and mixture_of(self.family, self.config, {n: size.count for n, size in self.sizes.items()})

    @property
    def bytes(self) -> int:
        """Of all tensors in the files."""
        return sum(size.bytes for size in self.sizes.values())

    def written(self, share: float) -> float:
        """Bytes of a result that has lost this share of its layers' parameters."""
        whole = sum(size.written for size in self.sizes.values())
        return whole - share * sum(size.written for size in self.sizes.values() if size.layer is not None)

    def tokens(self, rows: int) -> int:
        """Parameters that a vocabulary of so many rows has: of the embedding and, untied, of the head."""
        return sum(size.count for name, size in self.sizes.items() if self._by_token(name, rows))

    def with_tokens(self, rows: int, kept: int) -> "Weights":
        """The same with fewer rows of the vocabulary."""

        def cut(size: Size) -> Size:
            return Size(size.layer, *(n * kept // rows for n in size[1:]))

        sizes = {n: cut(s) if self._by_token(n, rows) else s for n, s in self.sizes.items()}
        return replace(self, sizes=sizes)

    def _by_token(self, name: str, rows: int) -> bool:
        inside = self.sizes[name].layer is not None
        return not inside and has_rows(name.rpartition(".")[0]) and self.sizes[name].count % rows == 0

    def beside(self, others: "Iterable[Weights]") -> "Weights":
        """The same tensors, each to be written as wide as the widest of these sources stores it."""
        others, sizes = tuple(others), {}
        for name, size in self.sizes.items():
            widths = [o.sizes[name].written / o.sizes[name].count for o in others if name in o.sizes]
            sizes[name] = size._replace(written=max([size.written, *(round(w * size.count) for w in widths)]))
        return replace(self, sizes=sizes)


def weigh(peek: "Peek") -> Weights:
    """Which tensors transformers loads of a source, and what they weigh, from config and headers.

    Raises:
        SourceError: there are no safetensors headers to count from.
        UnsupportedArchitecture: the family is not known, or cannot be cut.
        BrokenCheckpoint: the tensors are not those that the config asks for.
    """
    if not peek.tensors:
        raise SourceError(
            f"{peek.source} has no safetensors, so its sizes cannot be read without loading it; "
            "convert it to safetensors, or skip plan and run compress --allow-pickle."
        )
    # What a source's own code expects is known once it runs, which a plan does not; GGUF has names of its own.
    apart = needs_code(peek.config) or any(n.endswith(".gguf") for n in peek.weights)
    return _by_names(peek) if apart else _as_loaded(peek)


def _as_loaded(peek: "Peek") -> Weights:
    from hf_prune.models.configs import config_of
    from hf_prune.models.conversions import parts_of, share_of
    from hf_prune.models.loading import match_tensors, notes
    from hf_prune.models.numbering import depth_of, kinds_of

    what = getattr(peek.source, "repo", None) or str(peek.source)
    config = config_of(peek.config, what)
    found = match_tensors(what, config, peek.tensors, lambda *pair: _alike(peek, *pair))
    depth, prefix, sizes = depth_of(config, found.family), found.family.prefix, {}
    for name, shape in found.shapes.items():
        parts, count = parts_of(reader := found.readers[name]), math.prod(shape)
        layer = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        # What is made of several is written alike.
        written = count * max(BYTES.get(p.dtype, 1) for p in parts)
        stored = round(share_of(reader) * sum(map(_stored, parts)))
        sizes[name] = Size(int(layer) if layer else None, count, stored, written)
    kinds = kinds_of(found.shapes, prefix, depth)
    return Weights(sizes, depth, notes(found), kinds, found.config, found.family)


def _stored(info: "TensorInfo") -> int:
    return math.prod(info.shape) * BYTES.get(info.dtype, 1)


def _alike(peek: "Peek", a: "TensorInfo", b: "TensorInfo") -> bool:
    """Whether two tensors hold the same numbers, told from samples: a plan reads no weights."""
    if tuple(a.shape) != tuple(b.shape):
        return False
    count = math.prod(a.shape)
    firsts = {0, max(0, (count - SAMPLE) // 2), max(0, count - SAMPLE)}
    return all(_numbers(peek, a, i, count) == _numbers(peek, b, i, count) for i in sorted(firsts))


def _numbers(peek: "Peek", info: "TensorInfo", first: int, count: int) -> list[float]:
    import torch

    from hf_prune.models.dtypes import DTYPES

    size = BYTES.get(info.dtype, 1)
    begin, last = info.begin + first * size, info.begin + min(first + SAMPLE, count) * size
    raw = bytearray(peek.span(info.file, begin, last))
    return torch.frombuffer(raw, dtype=DTYPES.get(info.dtype, torch.uint8)).double().tolist()


def _by_names(peek: "Peek") -> Weights:
    """Of a model whose class is not known: every tensor, and the layers by their numbers.

    Raises:
        UnsupportedArchitecture: the layers cannot be told from the names.
    """
    from hf_prune.models.numbering import kinds_of

    tensors = {n: t for n, t in peek.tensors.items() if not _is_buffer(n, t)}
    if setting(peek.config, "tie_word_embeddings") and len(tensors) > 1:
        tensors = {n: t for n, t in tensors.items() if not n.endswith(HEADS)}
    prefix, depth = layer_prefix(tensors, setting(peek.config, "num_hidden_layers", "n_layer"))
    sizes = {}
    for name, info in tensors.items():
        index = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        stored = _stored(info)
        sizes[name] = Size(int(index) if index.isdigit() else None, math.prod(info.shape), stored, stored)
    return Weights(sizes, depth, kinds=kinds_of({n: t.shape for n, t in tensors.items()}, prefix, depth))


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
