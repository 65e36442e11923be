"""One opened source: config, family and tensors, read when they are asked for."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_prune.blueprint import Source
from hf_prune.errors import IncompatibleSources
from hf_prune.models.checkpoint import Checkpoint
from hf_prune.models.conversions import as_modules
from hf_prune.models.families import Family
from hf_prune.models.inference import family_of, read_config, skeleton
from hf_prune.models.numbering import depth_of

VOCABULARIES = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight")
"""Tensors with a row per token."""


@dataclass(frozen=True, eq=False)
class Parent:
    """One opened source: what `Blueprint.sources[i]` points to; `levels` are its level libraries by digest."""

    source: Source
    config: PretrainedConfig
    family: Family
    checkpoint: Checkpoint
    trust_remote_code: bool = False
    base: "Parent | None" = None
    rows: tuple[int, ...] | None = None
    levels: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        source: Source,
        folder: Path,
        adapter: Path | None = None,
        *,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> "Parent":
        """Open config and shard headers of a local folder; no weights are read.

        Raises:
            UnsupportedArchitecture, BrokenCheckpoint, UnsafeSource, IncompatibleSources: as the modules that read.
        """
        config = read_config(folder, trust_remote_code)
        parent = cls(
            source, config, family_of(config), Checkpoint.open(folder, adapter, allow_pickle), trust_remote_code
        )
        skeleton = parent.skeleton
        transposed = [n for n, m in skeleton.named_modules() if type(m).__name__ == "Conv1D"]
        readers = as_modules(parent.checkpoint.tensors, skeleton)
        checkpoint = parent.checkpoint.named(parent.shapes, readers, transposed)
        _refuse_untying(checkpoint, skeleton)
        return replace(parent, checkpoint=checkpoint)

    def beside(self, base: "Parent", rows: tuple[int, ...] | None = None) -> "Parent":
        """This variant in the shape of its base: vocabulary rows matched by token, tied or untied as the base is.

        Args:
            base: whose tensors outside of the layers give names and shapes.
            rows: for every row of the base's vocabulary the one of this model, -1 for the base's own.
        """
        return replace(self, base=base, rows=rows)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return depth_of(self.config, self.family)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the checkpoint."""
        return self.checkpoint.tensor(next(iter(self.shapes))).dtype

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model on the meta device: names and shapes without weights."""
        return skeleton(self.config, self.trust_remote_code)

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor of the dense model, tied duplicates left out; beside a base as the base has them."""
        if self.base:
            inside = {n: s for n, s in self._own_shapes.items() if n.startswith(self.family.prefix)}
            return {n: s for n, s in self.base.shapes.items() if not n.startswith(self.family.prefix)} | inside
        return self._own_shapes

    @cached_property
    def _own_shapes(self) -> dict[str, torch.Size]:
        tied = set(_tied(self.skeleton))
        return {n: t.shape for n, t in self.skeleton.state_dict().items() if n not in tied}

    @cached_property
    def layer_suffixes(self) -> tuple[tuple[str, ...], ...]:
        """Tensor names inside each layer, e.g. `self_attn.q_proj.weight`."""
        found: list[list[str]] = [[] for _ in range(self.depth)]
        for name in self.shapes:
            if name.startswith(self.family.prefix):
                index, _, suffix = name[len(self.family.prefix) :].partition(".")
                found[int(index)].append(suffix)
        return tuple(map(tuple, found))

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """Per layer the number of its kind: layers of one kind have tensors of the same names and shapes."""
        sets = [
            tuple((s, self.shapes[f"{self.family.prefix}{i}.{s}"]) for s in sorted(suffixes))
            for i, suffixes in enumerate(self.layer_suffixes)
        ]
        return tuple(map(list(dict.fromkeys(sets)).index, sets))

    def outside_tensor(self, name: str) -> torch.Tensor:
        """A tensor of the embeddings, the final norm or the head, in the checkpoint's dtype."""
        if self.base is None:
            return self.checkpoint.tensor(name)
        # A tied head is the embedding.
        tensor = self.checkpoint.tensor(name if name in self._own_shapes else _tied(self.skeleton)[name])
        if self.rows is None or not name.endswith(VOCABULARIES) or tensor.dim() < 2:
            return tensor
        rows = torch.tensor(self.rows)
        found = self.base.outside_tensor(name).to(tensor.dtype).clone()
        found[rows >= 0] = tensor[rows[rows >= 0]]
        return found

    def layer_tensor(self, layer: int, suffix: str) -> torch.Tensor:
        """One tensor of one source layer, in the checkpoint's dtype."""
        return self.checkpoint.tensor(f"{self.family.prefix}{layer}.{suffix}")

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of one layer (the largest, should they differ)."""
        return max(
            sum(self.shapes[f"{self.family.prefix}{i}.{s}"].numel() for s in suffixes)
            for i, suffixes in enumerate(self.layer_suffixes)
        )

    @cached_property
    def half_parameters(self) -> tuple[dict[str | None, int], ...]:
        """Per layer: parameters of `attention`, of `mlp`, and (None) of the norms between them."""
        sizes: list[dict[str | None, int]] = []
        for i, suffixes in enumerate(self.layer_suffixes):
            sizes.append({"attention": 0, "mlp": 0, None: 0})
            for suffix in suffixes:
                sizes[i][self.family.half(suffix)] += self.shapes[f"{self.family.prefix}{i}.{suffix}"].numel()
        return tuple(sizes)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the dense model, tied tensors counted once."""
        return sum(s.numel() for s in self.shapes.values())


def _tied(model: PreTrainedModel) -> dict[str, str]:
    keys = getattr(model, "_tied_weights_keys", None) or {}
    return dict(keys) if getattr(model.config, "tie_word_embeddings", False) else {}


def _refuse_untying(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    # PEFT replaces the embedding alone and leaves the head as it was; a tied model cannot hold both.
    adapter = checkpoint.adapter
    if adapter and (both := [name for name in _tied(model).values() if name in adapter.saved]):
        raise IncompatibleSources(
            f"The adapter {adapter.folder.name} replaces {both[0]}, which its base also uses as the head; "
            "merge it with peft's merge_and_unload() and use the merged model."
        )
