"""One opened source: config, family and tensors, read when they are asked for."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from hf_prune.blueprint import Source
from hf_prune.errors import BrokenCheckpoint, UnsafeSource
from hf_prune.hub.adapters import has_rows
from hf_prune.hub.contents import needs_code
from hf_prune.models.adapter import Adapter
from hf_prune.models.checkpoint import Checkpoint
from hf_prune.models.configs import read_config
from hf_prune.models.families import Family
from hf_prune.models.loading import Fit, match_tensors, same, tied
from hf_prune.models.mixtures import Mixture, mixture_of
from hf_prune.models.numbering import depth_of, kinds_of
from hf_prune.models.prepared import prepared


@dataclass(frozen=True, eq=False)
class Parent:
    """One opened source: what `Blueprint.sources[i]` points to; `levels` are its level libraries by digest, `how` says
    in words what made a plain checkpoint of it. Where it has lost tokens, `kept` has the ids of the others, sorted, and
    `whole` is the source with all of them.

    Code beside the weights is run only where somebody allowed it and transformers cannot do without: of the model with
    `trust_remote_code`, of its tokenizer with `trust_tokenizer_code`.
    """

    source: Source
    fit: Fit
    checkpoint: Checkpoint
    trust_remote_code: bool = False
    trust_tokenizer_code: bool = False
    base: "Parent | None" = None
    rows: tuple[int, ...] | None = None
    levels: dict[str, Any] = field(default_factory=dict)
    how: tuple[str, ...] = ()
    kept: tuple[int, ...] | None = None
    whole: "Parent | None" = None

    @classmethod
    def open(
        cls,
        source: Source,
        folder: Path,
        adapter: Path | None = None,
        *,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
        dequantize: bool = False,
    ) -> "Parent":
        """Open config and shard headers of a local folder; no weights are read, unless they must be prepared first.

        Raises:
            UnsupportedArchitecture, BrokenCheckpoint, UnsafeSource, IncompatibleSources: as the modules that read.
        """
        plain = prepared(
            source,
            folder,
            adapter,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
            dequantize=dequantize,
        )
        folder, adapter = plain.folder, plain.adapter
        checkpoint = Checkpoint(folder, Adapter(adapter) if adapter else None, allow_pickle)
        trusted = trust_remote_code and needs_code(checkpoint.config)
        config = read_config(folder, trusted, source.repo)
        found = match_tensors(source.repo, config, checkpoint.opened().tensors, same, trusted)
        transposed = [n for n, m in found.model.named_modules() if type(m).__name__ == "Conv1D"]
        checkpoint = checkpoint.named(found.readers, transposed)
        tokenizer_code = trust_remote_code and checkpoint.tokenizer_code
        return cls(source, found, checkpoint, trusted, tokenizer_code, how=plain.how)

    @cached_property
    def tokenizer(self) -> Any:
        """Its own.

        Raises:
            SourceError: it cannot be loaded, or not without the code beside it.
        """
        try:
            return AutoTokenizer.from_pretrained(
                self.checkpoint.folder, local_files_only=True, trust_remote_code=self.trust_tokenizer_code
            )
        # Tokenizer files are read by several libraries, each with errors of its own.
        except Exception as e:
            if self.checkpoint.tokenizer_code and not self.trust_tokenizer_code:
                raise UnsafeSource(
                    f"The tokenizer of {self.source.repo} runs its own Python code; read the code, and pass "
                    "--trust-remote-code if you trust it."
                ) from None
            reason = " ".join(str(e).split())[:300]
            raise BrokenCheckpoint(
                f"The tokenizer of {self.source.repo} cannot be loaded ({reason}); copy the files of its base model "
                "next to the weights."
            ) from None

    def beside(self, base: "Parent", rows: tuple[int, ...] | None = None) -> "Parent":
        """This variant in the shape of its base: vocabulary rows matched by token, tied or untied as the base is.

        Args:
            base: whose tensors outside of the layers give names and shapes.
            rows: for every row of the base's vocabulary the one of this model, -1 for the base's own.
        """
        return replace(self, base=base, rows=rows)

    @property
    def alone(self) -> "Parent":
        """This source as it was opened."""
        return replace(self, base=None, rows=None)

    @property
    def config(self) -> PretrainedConfig:
        """Of the model."""
        return self.fit.config

    @property
    def family(self) -> Family:
        """Where its parts are."""
        return self.fit.family

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model on the meta device: names and shapes without weights."""
        return self.fit.model

    @property
    def depth(self) -> int:
        """Number of layers."""
        return depth_of(self.config, self.family)

    @cached_property
    def dtype(self) -> torch.dtype:
        """That transformers loads the whole model in: the config's, else that of the first tensor."""
        named = self.config.dtype
        return getattr(torch, named) if isinstance(named, str) else named or self.checkpoint.first_dtype

    @cached_property
    def coarsest(self) -> torch.dtype:
        """Of its tensors' dtypes the one that rounds most."""
        found = {d for d in map(self.tensor_dtype, self.shapes) if d.is_floating_point}
        return max(found, key=lambda dtype: torch.finfo(dtype).eps)

    def tensor_dtype(self, name: str) -> torch.dtype:
        """Of one tensor of `shapes` in the files; the wider one where rows are of this model and of the base."""
        name = name if name in self.fit.shapes else tied(self.skeleton)[name]
        own = self.checkpoint.dtype(name)
        return torch.promote_types(own, self.base.tensor_dtype(name)) if self._mixes(name) else own

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor of the dense model, tied duplicates left out; beside a base as the base has them."""
        if self.base:
            inside = {n: s for n, s in self.fit.shapes.items() if n.startswith(self.family.prefix)}
            return {n: s for n, s in self.base.shapes.items() if not n.startswith(self.family.prefix)} | inside
        return dict(self.fit.shapes)

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
        return kinds_of(self.shapes, self.family.prefix, self.depth)

    @cached_property
    def mixture(self) -> Mixture | None:
        """Its experts, where it has some that are known."""
        return mixture_of(self.family, self.config, {n: s.numel() for n, s in self.shapes.items()})

    def outside_tensor(self, name: str) -> torch.Tensor:
        """A tensor of the embeddings, the final norm or the head, in its own dtype."""
        if self.base is None:
            return self.checkpoint.tensor(name)
        # A tied head is the embedding.
        tensor = self.checkpoint.tensor(name if name in self.fit.shapes else tied(self.skeleton)[name])
        if not self._mixes(name):
            return tensor
        rows = torch.tensor(self.rows)
        found = self.base.outside_tensor(name).to(self.tensor_dtype(name), copy=True)
        found[rows >= 0] = tensor[rows[rows >= 0]].to(found.dtype)
        return found

    def _mixes(self, name: str) -> bool:
        """Whether a tensor takes rows of the base where this model has none."""
        return self.rows is not None and has_rows(name.removesuffix(".weight")) and len(self.shapes[name]) > 1

    def layer_tensor(self, layer: int, suffix: str) -> torch.Tensor:
        """One tensor of one source layer, in its own dtype."""
        return self.checkpoint.tensor(f"{self.family.prefix}{layer}.{suffix}")

    def layer_dtype(self, layer: int, suffix: str) -> torch.dtype:
        """Of that tensor."""
        return self.checkpoint.dtype(f"{self.family.prefix}{layer}.{suffix}")

    @cached_property
    def bytes(self) -> int:
        """Of the dense model's tensors in its files, tied ones once."""
        return sum(map(self.checkpoint.nbytes, self.fit.shapes))

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

    @property
    def original(self) -> "Parent":
        """The source with all its tokens."""
        return self.whole or self
