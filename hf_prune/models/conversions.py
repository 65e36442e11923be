"""Tensors as files have them and as modules do: the conversions of transformers, tensor by tensor, both ways.

Files may hold a matrix per expert where a module stacks them, spell a prefix otherwise, or keep a language tower inside
of another model. What transformers does to a whole state dict when it loads and saves is done here to one tensor at a
time, on headers first, so that sizes are known and nothing is read before it is needed.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

from hf_prune.models.dtypes import widest

Read = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Converted:
    """A tensor that a conversion makes of others, under the same face as a stored one; calling it reads them."""

    group: "_Group"
    name: str
    shape: tuple[int, ...]

    @property
    def parts(self) -> list[Any]:
        """Readers of what it is made of; others may be made of the same."""
        return [r for parts in self.group.parts.values() for r in parts]

    @property
    def share(self) -> float:
        """Of its parts, by numbers: 1.0 unless several tensors are made of them."""
        return math.prod(self.shape) / sum(map(math.prod, self.group.shapes.values()))

    @property
    def dtype(self) -> torch.dtype:
        """The widest of the parts', from the headers."""
        return self.group.dtype

    @property
    def nbytes(self) -> int:
        """Its share of the files."""
        return round(self.share * sum(p.nbytes for p in self.parts))

    def __call__(self) -> Tensor:
        """The tensor, in memory."""
        return self.group.made()[self.name]


@dataclass(eq=False)
class _Group:
    """What one conversion takes, by the pattern it was found by, and makes."""

    model: PreTrainedModel
    first: str
    converter: WeightConverter
    parts: dict[str, list[Any]] = field(default_factory=dict)
    renamings: tuple[WeightRenaming, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The widest of the parts'."""
        return widest({r.dtype for parts in self.parts.values() for r in parts})

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what it makes, from headers; nothing where a part is missing. Asked once all parts are known."""
        if set(self.parts) != set(self.converter.source_patterns):
            return {}
        try:
            made = self._run(lambda r: torch.empty(tuple(r.shape), device="meta"))
        # Matrices of one stack that do not fit each other.
        except RuntimeError:
            return {}
        return {n: tuple(t.shape) for n, t in made.items()}

    def made(self) -> dict[str, Tensor]:
        """What it makes, in one dtype."""
        dtype = self.dtype
        return self._run(lambda read: read().to(dtype))

    def _run(self, read: Callable[[Any], Tensor]) -> dict[str, Tensor]:
        converter = copy.deepcopy(self.converter)
        for pattern, readers in self.parts.items():
            for reader in readers:
                converter.add_tensor(self.first, pattern, pattern, read(reader))
        made = converter.convert(self.first, model=self.model, config=self.model.config)
        tensors = {n: t[0] if isinstance(t, list) else t for n, t in made.items()}
        return {apply_renamings(n, list(self.renamings)): t for n, t in tensors.items()}


def as_modules(stored: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Readers of a model's tensors, by their names in modules; where two names of files lead to one, as transformers.

    Args:
        stored: what files hold, by their names there; each has a shape, and a dtype to be read.
        model: on the meta device.
    """
    renamings, converters = _split(get_model_conversion_mapping(model))
    known, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Any] = {}
    groups: dict[str, _Group] = {}
    for name in sorted(stored, key=dot_natural_key):
        own, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if own not in known and name in known:
            own, pattern = rename_source_key(name, [], [], prefix, known)
        if own not in known:
            continue
        if pattern is None:
            # Of two spellings in one file, the first counts for transformers, too.
            found.setdefault(own, stored[name])
            continue
        converter = next(c for c in converters if pattern in c.source_patterns)
        group = groups.setdefault(own, _Group(model, own, converter))
        group.parts.setdefault(pattern, []).append(stored[name])
    for group in groups.values():
        found |= {n: Converted(group, n, shape) for n, shape in group.shapes.items()}
    return found


def parts_of(reader: Any) -> list[Any]:
    """What one tensor of a model is made of in the files: itself, or others."""
    return reader.parts if isinstance(reader, Converted) else [reader]


def share_of(reader: Any) -> float:
    """How much of those parts is in this tensor, by numbers; below 1 where several are made of the same."""
    return reader.share if isinstance(reader, Converted) else 1.0


def as_files(tensors: Iterable[tuple[str, Any]], model: PreTrainedModel) -> Iterator[tuple[str, int, Read]]:
    """Name, bytes and reader of every tensor as transformers writes it to files.

    Args:
        tensors: readers by their names in modules; each has a shape, a dtype and bytes.
        model: on the meta device.
    """
    mapping = [c for c in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(c, PrefixChange)]
    renamings, converters = _split([c.reverse_transform() for c in mapping[::-1]])
    groups: dict[str, _Group] = {}
    ready: list[tuple[str, int, Read] | _Group] = []
    for name, made in tensors:
        first, pattern = apply_converters(name, converters)
        if pattern is None:
            ready.append((apply_renamings(name, renamings), made.nbytes, made))
            continue
        converter = next(c for c in converters if pattern in c.source_patterns)
        if first not in groups:
            groups[first] = _Group(model, first, converter, renamings=tuple(renamings))
            ready.append(groups[first])
        groups[first].parts.setdefault(pattern, []).append(made)
    for entry in ready:
        yield from _pieces(entry) if isinstance(entry, _Group) else (entry,)


def _pieces(group: _Group) -> Iterator[tuple[str, int, Read]]:
    """What a conversion makes of tensors to be written; it is made once, and held until the last piece is taken."""
    held: dict[str, Tensor] = {}

    def take(name: str, last: bool) -> Tensor:
        held.update(held or group.made())
        piece = held[name].clone()
        if last:
            held.clear()
        return piece

    final = next(reversed(group.shapes), None)
    for name, shape in group.shapes.items():
        size = math.prod(shape) * group.dtype.itemsize
        yield name, size, lambda name=name, last=name == final: take(name, last)


def _split(transforms: Iterable[WeightTransform]) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    kinds = list(transforms)
    return [t for t in kinds if isinstance(t, WeightRenaming)], [t for t in kinds if isinstance(t, WeightConverter)]
