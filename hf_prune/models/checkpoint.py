"""Read one tensor of a source at a time (memory-mapped, LoRA merged on read); write shards and their index."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_prune.atomic_files import written
from hf_prune.errors import BrokenCheckpoint, IncompatibleSources, UnsafeSource
from hf_prune.hub import contents
from hf_prune.models.adapter import Adapter
from hf_prune.models.dtypes import DTYPES

SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True, eq=False)
class Stored:
    """One tensor of an open safetensors file; calling it maps it."""

    handle: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """From the header."""
        return tuple(self.handle.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> torch.dtype:
        """From the header."""
        return DTYPES.get(self.handle.get_slice(self.name).get_dtype(), torch.uint8)

    @property
    def nbytes(self) -> int:
        """In the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __call__(self) -> torch.Tensor:
        """The tensor, memory-mapped."""
        return self.handle.get_tensor(self.name)


@dataclass(frozen=True, eq=False)
class Loaded:
    """One tensor of a pickle, under the same face as `Stored`."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.tensor.dtype

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.tensor.nbytes

    def __call__(self) -> torch.Tensor:
        """The tensor, memory-mapped where the file allows it."""
        return self.tensor


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one model folder, read lazily; `own` has them by the model's names, once these are known."""

    folder: Path
    adapter: Adapter | None = None
    allow_pickle: bool = False
    own: Mapping[str, Any] | None = None
    _finite: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def open(cls, folder: str | Path, adapter: str | Path | None = None, allow_pickle: bool = False) -> "Checkpoint":
        """Open the headers of every shard.

        Raises:
            BrokenCheckpoint: a shard is missing, truncated or malformed.
            UnsafeSource: only pickles, and they are not allowed.
        """
        return cls(Path(folder), Adapter(Path(adapter)) if adapter else None, allow_pickle).opened()

    def opened(self) -> "Checkpoint":
        """The same, with all headers read; errors as `open` has them."""
        len(self.tensors)
        if self.adapter:
            len(self.adapter.modules)
        return self

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json as it is written."""
        return contents.config(self.folder.name, self._names, self._read)

    @property
    def tokenizer_code(self) -> bool:
        """Whether the tokenizer is known to code beside it alone."""
        return contents.tokenizer_code(self._names, self._read)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """Where the weights are: of several candidates the files that transformers reads, as `hub.peek` sees them."""
        named = self.config.get("transformers_weights")
        found = contents.weights(self.folder.name, self._names, self._read, self.allow_pickle, named)
        return tuple(self.folder / n for n in found if not n.endswith(".json"))

    @cached_property
    def _names(self) -> list[str]:
        return [p.name for p in self.folder.iterdir() if p.is_file()]

    def _read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    @cached_property
    def tensors(self) -> "Mapping[str, Stored | Loaded]":
        """Readers by the names in the files."""
        return self._readers(self.files)

    def _readers(self, files: Sequence[Path]) -> "Mapping[str, Stored | Loaded]":
        return (stored_tensors if files[0].suffix == ".safetensors" else _pickled)(files)

    @property
    def first_dtype(self) -> torch.dtype:
        """Of the first floating tensor of the first file, by which transformers goes where a config names none."""
        dtypes = [t.dtype for t in self._readers(self.files[:1]).values()]
        return next((d for d in dtypes if d.is_floating_point), dtypes[0])

    def named(self, readers: Mapping[str, Any], transposed: Iterable[str] = ()) -> "Checkpoint":
        """The same checkpoint under the model's own names.

        Args:
            readers: of every tensor of the model, tied duplicates left out.
            transposed: modules whose weights are stored [in, out].

        Raises:
            IncompatibleSources: an adapter changes modules that the model does not have.
        """
        adapter = self.adapter and replace(self.adapter, transposed=frozenset(transposed))
        if adapter:
            strange = [f"{m}.weight" for m in adapter.modules] + list(adapter.saved)
            if strange := [n for n in strange if n not in readers]:
                raise IncompatibleSources(
                    f"The adapter {adapter.folder.name} changes {strange[0]}, which {self.folder.name} does not have "
                    "as a tensor of its own."
                )
        return Checkpoint(self.folder, adapter, self.allow_pickle, readers)

    def __contains__(self, name: str) -> bool:
        return name in (self.tensors if self.own is None else self.own)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in its own dtype, adapter merged.

        Raises:
            BrokenCheckpoint: absent, unreadable, or not finite.
        """
        tensor = self._stored(name)()
        if self.adapter:
            tensor = self.adapter.apply(name, tensor)
        # A tensor may be read often, and is looked at once.
        if name in self._finite:
            return tensor
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BrokenCheckpoint(
                f"{self.folder.name}: tensor {name} holds NaN or infinite values; nothing can be measured on it."
            )
        self._finite.add(name)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """Of a stored tensor, from its header where there is one."""
        return self._stored(name).dtype

    def nbytes(self, name: str) -> int:
        """Of a stored tensor, in its file."""
        return self._stored(name).nbytes

    def _stored(self, name: str) -> Any:
        found = (self.tensors if self.own is None else self.own).get(name)
        if found is None:
            raise BrokenCheckpoint(f"{self.folder.name} has no tensor {name}; the checkpoint is incomplete.")
        return found


def write_shards(
    tensors: Iterable[tuple[str, int, Callable[[], torch.Tensor]]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Stream tensors to safetensors shards; only one shard's made tensors are in memory, the others are mapped.

    Args:
        tensors: (name, bytes, reader), in file order.
        folder: where `model.safetensors`, or shards and their index, are written.
        shard_bytes: a shard is closed before it would exceed this.

    Returns:
        The file names written.
    """
    groups: list[list[tuple[str, int, Callable[[], torch.Tensor]]]] = [[]]
    for item in tensors:
        if groups[-1] and sum(i[1] for i in groups[-1]) + item[1] > shard_bytes:
            groups.append([])
        groups[-1].append(item)
    names = (
        [contents.SINGLE]
        if len(groups) == 1
        else [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    )
    for name, group in zip(names, groups, strict=True):
        _save(folder / name, {n: read().contiguous() for n, _, read in group})
    if len(groups) > 1:
        total = sum(size for group in groups for _, size, _ in group)
        weight_map = {n: name for name, group in zip(names, groups, strict=True) for n, _, _ in group}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (folder / contents.INDEX).write_text(text, encoding="utf-8")
        names.append(contents.INDEX)
    return names


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # A layer used twice is mapped once, and safetensors refuses to write the same memory under two names.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    with written(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def stored_tensors(files: Sequence[Path]) -> dict[str, Stored]:
    """Readers of every tensor of some safetensors files, by name; the last file counts where two have one.

    Raises:
        BrokenCheckpoint: a file is truncated or malformed.
    """
    readers: dict[str, Stored] = {}
    for path in files:
        try:
            handle = safe_open(path, framework="pt")
            names = list(handle.keys())
        except (SafetensorError, OSError) as e:
            raise BrokenCheckpoint(
                f"{path.parent.name}/{path.name} is truncated or malformed ({e}); download it again."
            ) from None
        readers |= {name: Stored(handle, name) for name in names}
    return readers


def _pickled(files: Sequence[Path]) -> dict[str, Loaded]:
    readers: dict[str, Loaded] = {}
    for path in files:
        where = f"{path.parent.name}/{path.name}"
        try:
            # Files older than torch 1.6 are no zip and cannot be mapped.
            state = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
            readers |= {name: Loaded(tensor.detach()) for name, tensor in state.items()}
        # A cut file ends torch's reader in whatever error its last byte leads to.
        except Exception as e:
            if "GLOBAL" in str(e):
                raise UnsafeSource(
                    f"{where} holds more than tensors, and reading that may run code; do not use this checkpoint."
                ) from None
            reason = str(e).split("\n")[0][:200]
            raise BrokenCheckpoint(f"{where} is truncated or malformed ({reason}); download it again.") from None
    return readers
