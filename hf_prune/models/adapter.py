"""A PEFT adapter on this disk: a plain LoRA is merged tensor by tensor, as its base is read."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hf_prune.errors import BrokenCheckpoint, IncompatibleSources
from hf_prune.hub import adapters


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter's config and tensors; of a plain LoRA W + scale * B A (Hu et al. 2021, eq. 3).

    `transposed` names the modules that store [in, out], as GPT-2 does; None: as the adapter's config says.
    """

    folder: Path
    transposed: frozenset[str] | None = None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """adapter_config.json.

        Raises:
            BrokenCheckpoint: it is missing or malformed.
            IncompatibleSources: it is of a kind that no weights can express.
        """
        path = self.folder / adapters.CONFIG
        return adapters.parse_config(self.folder.name, path.read_bytes() if path.is_file() else b"")

    @cached_property
    def _file(self) -> Any:
        path = self.folder / adapters.WEIGHTS
        if not path.exists() and (self.folder / adapters.PICKLE).exists():
            return None
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as e:
            raise BrokenCheckpoint(
                f"{path.parent.name}/{path.name} is truncated or malformed ({e}); download it again."
            ) from None

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of its tensors, from the header; none of a pickle."""
        return {n: tuple(self._file.get_slice(n).get_shape()) for n in self._file.keys()} if self._file else {}

    @cached_property
    def modules(self) -> Mapping[str, tuple[str, str]]:
        """Module path -> names of its A and B tensors."""
        pairs = [m for m in map(adapters.PAIR.fullmatch, self.shapes) if m]
        found = {m["module"]: (_half(m[0], "A"), _half(m[0], "B")) for m in pairs}
        if absent := sorted(n for pair in found.values() for n in pair if n not in self.shapes):
            raise BrokenCheckpoint(f"The adapter {self.folder.name} lacks {absent[0]}; download it again.")
        return found

    @cached_property
    def saved(self) -> Mapping[str, str]:
        """Tensors that replace the base's (`modules_to_save`): model name -> adapter name."""
        names = tuple(self.config.get("modules_to_save") or ())
        return {adapters.target(n): n for n in self.shapes if any(f".{m}." in n for m in names)}

    def is_read(self, base: Mapping[str, Sequence[int]], modules: Collection[str], tied: Collection[str]) -> bool:
        """Whether every change is one of a single tensor, so that it is merged as that is read.

        Args:
            base: shapes of the base's tensors.
            modules: paths of the base's modules.
            tied: tensors that the base uses twice.

        Raises:
            IncompatibleSources: it was made for another model.
            BrokenCheckpoint: its matrices are not what its config says.
        """
        if self.config["peft_type"] == "LORA" and not self.config.get("target_parameters"):
            for module, pair in self.modules.items():
                self._check_pair(module, pair, base, modules)
        changed = {f"{m}.weight" for m in self.modules} | set(self.saved)
        if not adapters.reads_plainly(self.config, self.shapes) or not changed <= set(base) or changed & set(tied):
            return False
        return all(self.shapes[n] == tuple(base[name]) for name, n in self.saved.items())

    def _check_pair(
        self, module: str, pair: tuple[str, str], base: Mapping[str, Sequence[int]], modules: Collection[str]
    ) -> None:
        shape = base.get(f"{module}.weight")
        if shape is None and module not in modules and ".experts." not in module:
            raise IncompatibleSources(
                f"The adapter {self.folder.name} changes {module}.weight, which its base does not have{self._made_for}."
            )
        if shape is None or len(shape) != 2:
            return
        (rank, width), (height, _) = (self.shapes[n] for n in pair)
        if not adapters.has_rows(module) and {*shape} != {width, height}:
            raise IncompatibleSources(
                f"The adapter {self.folder.name} does not fit: {module}.weight is {tuple(shape)}, its update "
                f"{(height, width)}{self._made_for}."
            )
        asked = _pattern(self.config.get("rank_pattern"), module, self.config.get("r", 8))
        if rank != asked:
            raise BrokenCheckpoint(
                f"The adapter {self.folder.name} says rank {asked} for {module}, and its matrices have {rank}; "
                "download it again."
            )

    @property
    def _made_for(self) -> str:
        name = self.config.get("base_model_name_or_path")
        return f"; it says that it was made for {adapters.public(str(name))}" if name else ""

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The merged tensor, in the base's dtype; `weight` itself where the adapter does not reach."""
        module = name.removesuffix(".weight")
        if name in self.saved:
            change = self._file.get_tensor(self.saved[name])
        elif module == name or module not in self.modules:
            return weight
        else:
            change = self._delta(module)
        if change.shape != weight.shape:
            raise IncompatibleSources(
                f"The adapter {self.folder.name} does not fit: {name} is {tuple(weight.shape)}, "
                f"its update {tuple(change.shape)}{self._made_for}."
            )
        return (change if name in self.saved else weight.float() + change).to(weight.dtype)

    def _delta(self, module: str) -> torch.Tensor:
        a, b = (self._file.get_tensor(n).float() for n in self.modules[module])
        flipped = self.config.get("fan_in_fan_out") if self.transposed is None else module in self.transposed
        return ((b @ a).T if flipped else b @ a) * lora_scale(self.config, module)


def lora_scale(config: Mapping[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation; patterns override both, peft's default is 8."""
    rank = _pattern(config.get("rank_pattern"), module, config.get("r", 8))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _half(name: str, side: str) -> str:
    head, _, tail = name.rpartition(".lora_")
    return f"{head}.lora_{side}{tail[1:]}"


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
