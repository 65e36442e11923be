"""Which fine-tunes of a base could be its variants: the Hub's model tree, read by headers and byte ranges alone."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from hf_prune import hub
from hf_prune.errors import HfPruneError
from hf_prune.hub import Peek, Relative, TensorInfo
from hf_prune.models.adapter import lora_scale
from hf_prune.models.dtypes import DTYPES
from hf_prune.models.headers import layer_prefix
from hf_prune.models.variants import verdict

AT_ONCE = 4
"""Repos looked at side by side."""
MATRICES = 12
"""Sampled per model at least, the same ones in all."""
SAMPLE_BYTES = 2**16
"""Read of each, from its middle."""


@dataclass(frozen=True, slots=True)
class Difference:
    """|W' - W| / |W| (Frobenius) over sampled rows of matrices of the layers: mean, least and most of the matrices."""

    mean: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Scouted:
    """A relative of the base; `note` says why it does not fit, or what has to be known where it does."""

    repo: str
    relation: str
    downloads: int
    license: str | None
    fits: bool
    note: str
    difference: Difference | None = None


def scout(base: str, most: int = 20, *, sleep: Callable[[float], None] | None = None) -> Iterator[Scouted]:
    """Look at the relatives of a repo, the most downloaded first; one at a time is yielded as they are read.

    Args:
        base: a repo of the Hub.
        most: how many relatives.
        sleep: pause between tries, in seconds.

    Raises:
        InvalidRecipe: the base is no repo.
        SourceError: the base or the tree cannot be read. A relative that cannot be read is a candidate that does not
            fit.
    """
    retry = {"sleep": sleep} if sleep else {}
    dense = hub.peek(base, **retry)
    samples = _Samples(dense)
    # The lazy modules of transformers cannot be imported by several threads at once.
    verdict(dense, dense)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(
            lambda r: _candidate(base, dense, samples, r, retry), hub.relatives(base, most, sleep=sleep)
        )


def _candidate(base: str, dense: Peek, samples: "_Samples", relative: Relative, retry: Mapping[str, Any]) -> Scouted:
    known = (relative.repo, relative.relation, relative.downloads, relative.license)
    try:
        seen = hub.peek(f"{base}+{relative.repo}" if relative.relation == "adapter" else relative.repo, **retry)
        found = verdict(dense, seen)
        if not found.fits:
            return Scouted(*known, False, found.sentence)
        harmless = [r.aspect for r in found.rows if r.severity == "harmless" and r.aspect != "licence"]
        note = f"differs in {', '.join(harmless)}" if harmless else ""
        return Scouted(*known, True, note, samples.difference(seen))
    except HfPruneError as e:
        return Scouted(*known, False, str(e))


class _Samples:
    """The same rows of the same matrices of the base and of others."""

    def __init__(self, base: Peek) -> None:
        self.base = base
        prefix, _ = layer_prefix(base.tensors)
        names = [n for n, t in base.tensors.items() if n.startswith(prefix) and _readable(t)]
        self.names = _spread([n.removeprefix(prefix) for n in names], prefix)
        self.ours = {n: _rows(base.span, base.tensors[n]) for n in self.names}

    def difference(self, other: Peek) -> Difference | None:
        """None where nothing could be compared."""
        change = self._of_adapter(other) if other.adapter else self._of_model(other)
        shares = [float(d.norm() / self.ours[n].norm()) for n, d in change if self.ours[n].norm() > 0]
        return Difference(sum(shares) / len(shares), min(shares), max(shares)) if shares else None

    def _of_model(self, other: Peek) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self.names:
            if _readable(other.tensors[name]):
                rows = len(self.ours[name])
                yield name, _rows(other.span, other.tensors[name], rows) - self.ours[name]

    def _of_adapter(self, other: Peek) -> Iterator[tuple[str, torch.Tensor]]:
        config = json.loads(other.read_adapter("adapter_config.json"))
        pairs = {n.replace(".default", ""): t for n, t in other.adapter.items() if _readable(t)}
        for name in self.names:
            module = name.removesuffix(".weight")
            a, b = (pairs.get(f"base_model.model.{module}.lora_{side}.weight") for side in "AB")
            if a is None or b is None:
                yield name, torch.zeros_like(self.ours[name])
                continue
            rows = len(self.ours[name])
            first, second = (_rows(other.span_adapter, a, a.shape[0]), _rows(other.span_adapter, b, rows))
            if config.get("fan_in_fan_out"):
                second = _rows(other.span_adapter, b, b.shape[0])
                middle = (a.shape[1] - rows) // 2
                yield name, (second @ first).T[middle : middle + rows] * lora_scale(config, module)
            else:
                yield name, second @ first * lora_scale(config, module)


def _spread(names: Sequence[str], prefix: str) -> list[str]:
    """Of `LAYER.KIND`, equally many of every kind, from layers far apart: an adapter may change few kinds."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        layer, _, kind = name.partition(".")
        kinds.setdefault(kind, []).append(int(layer))
    each = -(-MATRICES // max(len(kinds), 1))
    places = [(2 * j + 1) / (2 * each) for j in range(each)]
    return [
        f"{prefix}{layer}.{kind}"
        for kind, layers in sorted(kinds.items())
        for layer in sorted({sorted(layers)[int(p * len(layers))] for p in places})
    ]


def _readable(tensor: TensorInfo) -> bool:
    return len(tensor.shape) == 2 and tensor.dtype in ("F64", "F32", "F16", "BF16")


def _rows(span: Callable[[str, int, int], bytes], tensor: TensorInfo, rows: int | None = None) -> torch.Tensor:
    """Rows from the middle of a matrix in float32; by default as many as a sample has bytes for."""
    dtype = DTYPES[tensor.dtype]
    height, width = tensor.shape
    row = width * dtype.itemsize
    count = min(height, rows or max(1, SAMPLE_BYTES // row))
    begin = tensor.begin + (height - count) // 2 * row
    raw = bytearray(span(tensor.file, begin, begin + count * row))
    return torch.frombuffer(raw, dtype=dtype).view(count, width).float()
