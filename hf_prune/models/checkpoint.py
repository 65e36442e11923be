"""Read one tensor of a source at a time (memory-mapped, LoRA merged on read); write shards and their index."""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_prune.errors import BrokenCheckpoint, IncompatibleSources, UnsafeSource
from hf_prune.models.adapter import Adapter
from hf_prune.models.experts import Stack, stacks

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 4 * 2**30


ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}


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
    def itemsize(self) -> int:
        """Bytes per element, from the header."""
        return ITEM_BYTES.get(self.handle.get_slice(self.name).get_dtype(), 1)

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
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.tensor.element_size()

    def __call__(self) -> torch.Tensor:
        """The tensor, memory-mapped where the file allows it."""
        return self.tensor


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one model folder, read lazily."""

    folder: Path
    adapter: Adapter | None = None
    allow_pickle: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, adapter: str | Path | None = None, allow_pickle: bool = False) -> "Checkpoint":
        """Open the headers of every shard.

        Raises:
            BrokenCheckpoint: a shard is missing, truncated or malformed.
            UnsafeSource: only pickles, and they are not allowed.
        """
        self = cls(Path(folder), Adapter(Path(adapter)) if adapter else None, allow_pickle)
        len(self.tensors)
        if self.adapter:
            len(self.adapter.modules)
        return self

    @cached_property
    def tensors(self) -> "Mapping[str, Stored | Loaded | Stack]":
        """Readers by tensor name; experts that have a matrix each are also read as one stack."""
        files = _weight_files(self.folder)
        if files:
            return (readers := _readers(files)) | stacks(readers)
        pickles = sorted(self.folder.glob("pytorch_model*.bin"))
        if not pickles:
            raise BrokenCheckpoint(f"{self.folder.name} holds no weights: neither {SINGLE} nor {INDEX} is there.")
        if not self.allow_pickle:
            raise UnsafeSource(
                f"{self.folder.name} holds only pickles ({pickles[0].name}), which can run code when read; convert it "
                "to safetensors, or pass --allow-pickle if you trust its author."
            )
        return (readers := _pickled(pickles)) | stacks(readers)

    def named(
        self,
        expected: Mapping[str, Sequence[int]],
        base_prefix: str,
        renames: Sequence[tuple[str, str]] = (),
        transposed: Iterable[str] = (),
    ) -> "Checkpoint":
        """The same checkpoint under the model's own names.

        Files may be saved from the bare trunk (`h.0...` in GPT-2) or spell a prefix otherwise (`embed_out.` in
        GPT-NeoX).

        Args:
            expected: shape of every tensor of the model, tied duplicates left out.
            base_prefix: of the trunk.
            renames: prefixes (module, file).
            transposed: modules whose weights are stored [in, out].

        Raises:
            BrokenCheckpoint: a tensor has another shape than the model's.
            IncompatibleSources: an adapter changes modules that the model does not have.
        """
        others = [(base_prefix + ".", ""), *renames]
        spelled = [(n, old + n.removeprefix(new)) for n in expected for new, old in others if n.startswith(new)]
        aliases = {n: s for n, s in spelled if n not in self.tensors and s in self.tensors}
        for name, shape in expected.items():
            stored = self.tensors.get(aliases.get(name, name))
            if stored and tuple(stored.shape) != tuple(shape):
                raise BrokenCheckpoint(
                    f"{self.folder.name}: tensor {name} has shape {list(stored.shape)}, but by its config.json it "
                    f"must have {list(shape)}; download the checkpoint again."
                )
        adapter = self.adapter and replace(self.adapter, transposed=frozenset(transposed))
        if adapter:
            strange = [f"{m}.weight" for m in adapter.modules] + list(adapter.saved)
            if strange := [n for n in strange if n not in expected]:
                raise IncompatibleSources(
                    f"The adapter {adapter.folder.name} changes {strange[0]}, which {self.folder.name} does not have "
                    "as a tensor of its own."
                )
        return Checkpoint(self.folder, adapter, self.allow_pickle, aliases)

    def __contains__(self, name: str) -> bool:
        return self.aliases.get(name, name) in self.tensors

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in the checkpoint's dtype, adapter merged.

        Raises:
            BrokenCheckpoint: absent, unreadable, or not finite.
        """
        stored = self.aliases.get(name, name)
        if stored not in self.tensors:
            raise BrokenCheckpoint(f"{self.folder.name} has no tensor {name}; the checkpoint is incomplete.")
        tensor = self.tensors[stored]()
        if self.adapter:
            tensor = self.adapter.apply(name, tensor)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BrokenCheckpoint(
                f"{self.folder.name}: tensor {name} holds NaN or infinite values; nothing can be measured on it."
            )
        return tensor

    def itemsize(self, name: str) -> int:
        """Bytes per element of a stored tensor, from its header where there is one."""
        stored = self.aliases.get(name, name)
        if stored not in self.tensors:
            raise BrokenCheckpoint(f"{self.folder.name} has no tensor {name}; the checkpoint is incomplete.")
        return self.tensors[stored].itemsize


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
        [SINGLE]
        if len(groups) == 1
        else [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    )
    for name, group in zip(names, groups, strict=True):
        _save(folder / name, {n: read().contiguous() for n, _, read in group})
    if len(groups) > 1:
        total = sum(size for group in groups for _, size, _ in group)
        weight_map = {n: name for name, group in zip(names, groups, strict=True) for n, _, _ in group}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (folder / INDEX).write_text(text, encoding="utf-8")
        names.append(INDEX)
    return names


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # A layer used twice is mapped once, and safetensors refuses to write the same memory under two names.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, path)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        return [folder / SINGLE] if (folder / SINGLE).exists() else []
    try:
        shards = sorted({Path(s).as_posix() for s in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise BrokenCheckpoint(f"{folder.name}/{INDEX} is malformed; download the checkpoint again.") from None
    for shard in shards:
        if Path(shard).name != shard or shard == "..":
            raise UnsafeSource(
                f"{folder.name}/{INDEX} points outside its folder ({shard}); do not use this checkpoint."
            )
        if not (folder / shard).exists():
            raise BrokenCheckpoint(f"{folder.name} lacks the shard {shard} that its index names; download it again.")
    return [folder / s for s in shards]


def _readers(files: list[Path]) -> dict[str, Stored]:
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


def _pickled(files: list[Path]) -> dict[str, Loaded]:
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
