"""Read one tensor of a source at a time (memory-mapped, LoRA merged on read); write shards and their index."""

import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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


BEYOND_LORA = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "trainable_token_indices",
               "target_parameters", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
               "velora_config")  # fmt: skip
"""Settings of an adapter that make it more than W + scale * B A."""
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base as it is; PiSSA, OLoRA and others subtract their start from it."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """A PEFT LoRA, merged tensor by tensor: W + scale * B A (Hu et al. 2021, eq. 3).

    `transposed` names the modules that store [in, out], as GPT-2 does; None: as the adapter's config says.
    """

    folder: Path
    transposed: frozenset[str] | None = None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """adapter_config.json.

        Raises:
            BrokenCheckpoint: it is missing or malformed.
            IncompatibleSources: not a plain LoRA (DoRA, bias training and other PEFT types are refused by name).
        """
        try:
            raw = dict(json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise BrokenCheckpoint(
                f"{self.folder.name}/adapter_config.json is missing or malformed; download the adapter again."
            ) from None
        odd = [k for k in BEYOND_LORA if raw.get(k)]
        odd += ["bias"] if raw.get("bias", "none") != "none" else []
        start = raw.get("init_lora_weights")
        odd += [] if start in PLAIN_STARTS else [f"init_lora_weights={start}"]
        if raw.get("peft_type") != "LORA" or odd:
            what = f"uses {', '.join(odd)}" if odd else f"is of type {raw.get('peft_type')}"
            raise IncompatibleSources(
                f"The adapter {self.folder.name} {what}; hf_prune merges plain LoRA on load. "
                "Merge it with peft's merge_and_unload() and use the merged model."
            )
        return raw

    @cached_property
    def tensors(self) -> "Mapping[str, Stored]":
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
        if absent := sorted(known - set(self.tensors)):
            raise BrokenCheckpoint(f"The adapter {self.folder.name} lacks {absent[0]}; download it again.")
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
        """See `lora_scale`."""
        return lora_scale(self.config, module)

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The merged tensor, in the base's dtype; `weight` itself where the adapter does not reach."""
        module = name.removesuffix(".weight")
        if name in self.saved:
            change = self.tensors[self.saved[name]]()
        elif module == name or module not in self.modules:
            return weight
        else:
            change = self._delta(module)
        if change.shape != weight.shape:
            raise IncompatibleSources(
                f"The adapter {self.folder.name} does not fit: {name} is {tuple(weight.shape)}, "
                f"its update {tuple(change.shape)}."
            )
        return (change if name in self.saved else weight.float() + change).to(weight.dtype)

    def _delta(self, module: str) -> torch.Tensor:
        a, b = (self.tensors[n]().float() for n in self.modules[module])
        flipped = self.config.get("fan_in_fan_out") if self.transposed is None else module in self.transposed
        return ((b @ a).T if flipped else b @ a) * self.scale(module)


def lora_scale(config: Mapping[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation; patterns override both, peft's default is 8."""
    rank = _pattern(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of one model folder, read lazily; `own` are readers by the model's names, once these are known."""

    folder: Path
    adapter: Adapter | None = None
    allow_pickle: bool = False
    own: Mapping[str, Any] | None = None

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
    def tensors(self) -> "Mapping[str, Stored | Loaded]":
        """Readers by the names in the files."""
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

    def named(
        self, expected: Mapping[str, Sequence[int]], readers: Mapping[str, Any], transposed: Iterable[str] = ()
    ) -> "Checkpoint":
        """The same checkpoint under the model's own names.

        Args:
            expected: shape of every tensor of the model, tied duplicates left out.
            readers: by the model's names, see `conversions.as_modules`.
            transposed: modules whose weights are stored [in, out].

        Raises:
            BrokenCheckpoint: a tensor has another shape than the model's.
            IncompatibleSources: an adapter changes modules that the model does not have.
        """
        for name, shape in expected.items():
            if name in readers and tuple(readers[name].shape) != tuple(shape):
                raise BrokenCheckpoint(
                    f"{self.folder.name}: tensor {name} has shape {list(readers[name].shape)}, but by its config.json "
                    f"it must have {list(shape)}; download the checkpoint again."
                )
        adapter = self.adapter and replace(self.adapter, transposed=frozenset(transposed))
        if adapter:
            strange = [f"{m}.weight" for m in adapter.modules] + list(adapter.saved)
            if strange := [n for n in strange if n not in expected]:
                raise IncompatibleSources(
                    f"The adapter {adapter.folder.name} changes {strange[0]}, which {self.folder.name} does not have "
                    "as a tensor of its own."
                )
        return Checkpoint(self.folder, adapter, self.allow_pickle, readers)

    def __contains__(self, name: str) -> bool:
        return name in (self.tensors if self.own is None else self.own)

    def _reader(self, name: str) -> Any:
        found = (self.tensors if self.own is None else self.own).get(name)
        if found is None:
            raise BrokenCheckpoint(f"{self.folder.name} has no tensor {name}; the checkpoint is incomplete.")
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in the checkpoint's dtype, adapter merged.

        Raises:
            BrokenCheckpoint: absent, unreadable, or not finite.
        """
        tensor = self._reader(name)()
        if self.adapter:
            tensor = self.adapter.apply(name, tensor)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BrokenCheckpoint(
                f"{self.folder.name}: tensor {name} holds NaN or infinite values; nothing can be measured on it."
            )
        return tensor

    def itemsize(self, name: str) -> int:
        """Bytes per element of a stored tensor, from its header where there is one."""
        return self._reader(name).itemsize


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


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
