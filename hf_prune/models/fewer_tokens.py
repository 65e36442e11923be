"""A source that has lost tokens: a plain checkpoint with the rows of the others, and a tokenizer that knows these."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_prune.errors import InvalidBlueprint, UnsupportedArchitecture
from hf_prune.hub import contents
from hf_prune.hub.adapters import has_rows
from hf_prune.models.checkpoint import write_shards
from hf_prune.models.configs import read_config, skeleton
from hf_prune.models.conversions import as_files
from hf_prune.models.parent import Parent
from hf_prune.models.plain_checkpoint import copy_beside
from hf_prune.models.prepared import made_once
from hf_prune.models.vocabulary.settings import FILES, named_by, renumbered
from hf_prune.models.vocabulary.trimming import Vocabulary

KEPT_FILE = "vocabulary.json"
"""Beside a blueprint: the ids that its digest of the vocabulary stands for."""


def digest_of(kept: Sequence[int]) -> str:
    """64 bits of SHA-256 over the kept ids."""
    return hashlib.sha256(json.dumps(list(kept)).encode()).hexdigest()[:16]


def rows_of(parent: Parent) -> int:
    """Of its embedding."""
    return parent.skeleton.get_input_embeddings().weight.shape[0]


def row_parameters(parent: Parent) -> int:
    """What goes with one token: a row of the embedding and, untied, one of the head."""
    rows = rows_of(parent)
    return sum(s.numel() // rows for n, s in parent.shapes.items() if _by_token(n, s, rows))


def vocabulary_of(parent: Parent) -> Vocabulary:
    """The tokens of a source.

    Raises:
        UnsupportedArchitecture: its tokenizer is none of the tokenizers library, or of a kind that cannot lose tokens.
    """
    backend = getattr(parent.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedArchitecture(
            f"The tokenizer of {parent.source.repo} is not one of the tokenizers library, so it cannot lose tokens; "
            "leave out --vocabulary."
        )
    found = Vocabulary(backend, named_by(lambda name: (parent.checkpoint.folder / name).read_bytes()))
    if max(found.tokens) >= rows_of(parent):
        raise UnsupportedArchitecture(
            f"The tokenizer of {parent.source.repo} has more tokens than the model has rows; leave out --vocabulary."
        )
    return found


def without_tokens(parent: Parent, vocabulary: Vocabulary, kept: Sequence[int]) -> Parent:
    """The same source with these tokens alone, numbered in their order; it lies in the user's cache.

    Args:
        parent: a source with all its tokens.
        vocabulary: of it.
        kept: ids, sorted, closed under what `vocabulary` says.

    Raises:
        UnsupportedArchitecture: settings name a token that the tokenizer does not know.
        NotEnoughDisk: the cache has no room.
    """
    digest = digest_of(kept)
    write = functools.partial(_write, parent, vocabulary, kept)
    folder = made_once(parent.checkpoint.folder, [str(parent.source), digest], write)
    code = parent.trust_remote_code or parent.trust_tokenizer_code
    opened = Parent.open(replace(parent.source, vocabulary=digest), folder, trust_remote_code=code)
    how = (*parent.how, f"vocabulary cut to {len(kept):,} of {len(vocabulary.ids):,} tokens")
    return replace(opened, how=how, kept=tuple(kept), whole=parent)


def save_kept(parent: Parent, folder: Path) -> None:
    """Say beside a blueprint which tokens its base has kept; nothing where it has all."""
    if parent.kept is not None:
        text = json.dumps({"digest": parent.source.vocabulary, "kept": list(parent.kept)})
        (folder / KEPT_FILE).write_text(text + "\n", encoding="utf-8")


def load_kept(folder: Path, digest: str) -> tuple[int, ...]:
    """The ids that a digest in the blueprint of this folder stands for.

    Raises:
        InvalidBlueprint: they are not there, or others.
    """
    try:
        kept = json.loads((folder / KEPT_FILE).read_bytes())["kept"]
        found = kept if all(type(i) is int and i >= 0 for i in kept) and digest_of(kept) == digest else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        found = None
    if found is None or sorted({*found}) != found:
        raise InvalidBlueprint(
            f"The blueprint was made with a vocabulary of its own, and the ids of its digest {digest} are not in "
            f"{KEPT_FILE} beside it; keep both files together."
        )
    return tuple(found)


def _write(parent: Parent, vocabulary: Vocabulary, kept: Sequence[int], out: Path) -> None:
    source, rows = parent.checkpoint.folder, rows_of(parent)
    code = parent.trust_remote_code or parent.trust_tokenizer_code
    new = {old: number for number, old in enumerate(kept)}
    copy_beside(source, out, code)
    legacy = (*contents.VOCABULARIES, "merges.txt", "added_tokens.json")
    for name in contents.matching([p.name for p in out.iterdir()], legacy):
        (out / name).unlink()
    for name in FILES:
        if (source / name).is_file():
            raw = renumbered(json.loads((source / name).read_bytes()), new, rows)
            (out / name).write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    vocabulary.cut(kept).save(str(out / "tokenizer.json"))
    index = torch.tensor(kept)

    def read(name: str) -> torch.Tensor:
        tensor = parent.checkpoint.tensor(name)
        return tensor[index] if _by_token(name, tensor.shape, rows) else tensor

    tensors = ((name, _Slice(parent, name, index, rows, read)) for name in parent.fit.shapes)
    model = skeleton(read_config(out, parent.trust_remote_code), parent.trust_remote_code)
    write_shards(as_files(tensors, model), out)


class _Slice:
    """A tensor of the result under the face of a stored one."""

    def __init__(self, parent: Parent, name: str, index: torch.Tensor, rows: int, read: Any) -> None:
        shape = parent.fit.shapes[name]
        self.shape = torch.Size((len(index), *shape[1:])) if _by_token(name, shape, rows) else shape
        self.dtype = parent.checkpoint.dtype(name)
        self.nbytes = self.shape.numel() * self.dtype.itemsize
        self._read = functools.partial(read, name)

    def __call__(self) -> torch.Tensor:
        return self._read().to(self.dtype)


def _by_token(name: str, shape: Sequence[int], rows: int) -> bool:
    """Whether a tensor has a row per token: embedding, head, and the bias of a head."""
    return len(shape) > 0 and shape[0] == rows and has_rows(name.rpartition(".")[0])
