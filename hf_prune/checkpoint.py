"""Read one tensor of a source at a time (memory-mapped, LoRA merged on read); write shards and their index."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_prune.errors import BrokenCheckpoint, IncompatibleSources, UnsafeSource

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
    def itemsize(self) -> int:
        """Bytes per element, from the header."""
        return ITEM_BYTES.get(self.handle.get_slice(self.name).get_dtype(), 1)

    def __call__(self) -> torch.Tensor:
        """The tensor, memory-mapped."""
        return self.handle.get_tensor(self.name)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A PEFT LoRA, merged tensor by tensor: W + scale * B A (Hu et al. 2021, eq. 3)."""

    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """adapter_config.json.

        Raises:
            IncompatibleSources: not a plain LoRA (DoRA, bias training and other PEFT types are refused by name).
        """
        raw = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        odd = [
            k for k in ("use_dora", "layer_replication", "trainable_token_indices", "target_parameters") if raw.get(k)
        ]
        odd += ["bias"] if raw.get("bias", "none") != "none" else []
        if raw.get("peft_type") != "LORA" or odd:
            what = f"uses {', '.join(odd)}" if odd else f"is of type {raw.get('peft_type')}"
            raise IncompatibleSources(
                f"The adapter {self.folder.name} {what}; hf_prune merges plain LoRA on load. "
                "Merge it with peft's merge_and_unload() and use the merged model."
            )
        return raw

    @cached_property
    def tensors(self) -> "Mapping[str, Callable[[], torch.Tensor]]":
        """Readers by adapter tensor name."""
        return _readers([self.folder / "adapter_model.safetensors"])

    @cached_property
    def modules(self) -> Mapping[str, tuple[str, str]]:
        """Module path -> names of its A and B tensors."""
        found: dict[str, tuple[str, str]] = {}
        for name in self.tensors:
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_A(?:\.default)?\.weight", name)
            if match:
                found[match[1]] = (name, name.replace("lora_A", "lora_B"))
        known = {n for pair in found.values() for n in pair} | set(self.saved.values())
        if unknown := sorted(set(self.tensors) - known):
            raise IncompatibleSources(
                f"The adapter {self.folder.name} holds {unknown[0]}, which is neither a linear LoRA pair nor a "
                "saved module."
            )
        return found

    @cached_property
    def saved(self) -> Mapping[str, str]:
        """Tensors that replace the base's (`modules_to_save`): model name -> adapter name."""
        names = tuple(self.config.get("modules_to_save") or ())
        return {
            re.sub(r"\.modules_to_save(\.default)?", "", n.removeprefix("base_model.model.")): n
            for n in self.tensors
            if any(f".{m}." in n for m in names)
        }

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rank stabilisation; patterns override both."""
        c = self.config
        rank = _pattern(c.get("rank_pattern"), module, c["r"])
        alpha = _pattern(c.get("alpha_pattern"), module, c["lora_alpha"])
        return alpha / (math.sqrt(rank) if c.get("use_rslora") else rank)

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The merged tensor, in the base's dtype; `weight` itself where the adapter does not reach."""
        if name in self.saved:
            return self.tensors[self.saved[name]]().to(weight.dtype)
        module = name.removesuffix(".weight")
        if module == name or module not in self.modules:
            return weight
        a, b = (self.tensors[n]().float() for n in self.modules[module])
        delta = (b @ a) * self.scale(module)
        if self.config.get("fan_in_fan_out"):
            delta = delta.T
        if delta.shape != weight.shape:
            raise IncompatibleSources(
                f"The adapter {self.folder.name} does not fit: {name} is {tuple(weight.shape)}, "
                f"its update {tuple(delta.shape)}."
            )
        return (weight.float() + delta).to(weight.dtype)


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
    def tensors(self) -> "Mapping[str, Callable[[], torch.Tensor]]":
        """Readers by tensor name."""
        files = _weight_files(self.folder)
        if files:
            return _readers(files)
        pickles = sorted(self.folder.glob("pytorch_model*.bin"))
        if not pickles:
            raise BrokenCheckpoint(f"{self.folder.name} holds no weights: neither {SINGLE} nor {INDEX} is there.")
        if not self.allow_pickle:
            raise UnsafeSource(
                f"{self.folder.name} holds only pickles ({pickles[0].name}), which can run code when read; convert it "
                "to safetensors, or pass --allow-pickle if you trust its author."
            )
        return _pickled(pickles)

    def named(self, expected: Iterable[str], base_prefix: str, renames: Sequence[tuple[str, str]] = ()) -> "Checkpoint":
        """The same checkpoint under the model's own names.

        Files may be saved from the bare trunk (`h.0...` in GPT-2) or spell a prefix otherwise (`embed_out.` in
        GPT-NeoX).

        Raises:
            IncompatibleSources: an adapter changes modules that the model does not have.
        """
        expected = set(expected)
        others = [(base_prefix + ".", ""), *renames]
        spelled = [(n, old + n.removeprefix(new)) for n in expected for new, old in others if n.startswith(new)]
        aliases = {n: s for n, s in spelled if n not in self.tensors and s in self.tensors}
        if self.adapter:
            strange = [m for m in self.adapter.modules if f"{m}.weight" not in expected]
            if strange:
                raise IncompatibleSources(
                    f"The adapter {self.adapter.folder.name} changes {strange[0]}, which {self.folder.name} does "
                    "not have."
                )
        return Checkpoint(self.folder, self.adapter, self.allow_pickle, aliases)

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
        reader = self.tensors[stored]
        return reader.itemsize if isinstance(reader, Stored) else reader().element_size()


def write_shards(
    tensors: Iterable[tuple[str, int, Callable[[], torch.Tensor]]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Stream tensors to safetensors shards; at most one shard is in memory.

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
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, path)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        return [folder / SINGLE] if (folder / SINGLE).exists() else []
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise BrokenCheckpoint(f"{folder.name}/{INDEX} is malformed; download the checkpoint again.") from None
    for shard in shards:
        if Path(shard).name != shard:
            raise UnsafeSource(
                f"{folder.name}/{INDEX} points outside its folder ({shard}); do not use this checkpoint."
            )
        if not (folder / shard).exists():
            raise BrokenCheckpoint(f"{folder.name} lacks the shard {shard} that its index names; download it again.")
    return [folder / s for s in shards]


def _readers(files: list[Path]) -> dict[str, Callable[[], torch.Tensor]]:
    readers: dict[str, Callable[[], torch.Tensor]] = {}
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


def _pickled(files: list[Path]) -> dict[str, Callable[[], torch.Tensor]]:
    readers: dict[str, Callable[[], torch.Tensor]] = {}
    for path in files:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        readers |= {name: lambda t=t: t for name, t in state.items()}
    return readers


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
