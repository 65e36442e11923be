"""Sources that are no plain checkpoint, made one by the library that knows them: PEFT merges, transformers dequantises.

A plain LoRA is merged tensor by tensor as its base is read, and needs nothing of this. What is made here holds the
whole model in memory once, in the dtype it is stored in, and lies in the user's cache under a digest of what it was
made from and by; the pinned source stays what it is.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_prune.blueprint import Source
from hf_prune.hub import adapters, contents
from hf_prune.hub.folders import Folder
from hf_prune.hub.names import Name
from hf_prune.hub.quantisation import Quantised, allowed, check_numbers, check_quantised
from hf_prune.models.adapter import Adapter
from hf_prune.models.configs import read_config, skeleton
from hf_prune.models.dequantisation import dequantise
from hf_prune.models.loading import tied
from hf_prune.models.peft_merge import merge_with_peft

CACHE = "~/.cache/hf_prune/prepared"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plain checkpoint, perhaps with a plain LoRA to merge as it is read; `how` says what was done for it."""

    folder: Path
    adapter: Path | None
    how: tuple[str, ...] = ()


def prepared(
    source: Source,
    folder: Path,
    adapter: Path | None,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> Prepared:
    """A source as a plain checkpoint: itself where it is one, else made or found in the cache.

    Args:
        source: its pin, part of the digest.
        folder: of the base; a file for GGUF.
        adapter: folder of its adapter.
        allow_pickle: read adapters that are pickles.
        trust_remote_code: run code beside the weights.
        dequantize: turn a quantised base into a plain one.

    Raises:
        SourceError, UnsupportedArchitecture: it is quantised, and nobody asked or nobody can undo that.
        IncompatibleSources: PEFT does not merge this adapter into this base.
        NotEnoughDisk: the plain checkpoint does not fit into the cache.
    """
    how: list[str] = []
    found = _quantised(source.repo, folder, dequantize)
    # Code is run where transformers has no class of its own, and nowhere else.
    trust_remote_code = trust_remote_code and contents.needs_code(_config(folder) or {})
    if found:
        make = functools.partial(dequantise, folder, found, trust_remote_code)
        how.append(f"dequantised from {found} by transformers {transformers.__version__}")
        folder = _cached([str(source), _content(folder), found.method, *_versions()], make)
    if adapter and not _is_read(folder, adapter, allow_pickle, trust_remote_code):
        import peft

        names = source.repo, (source.adapter or adapter.name).partition("@")[0]
        make = functools.partial(merge_with_peft, names, folder, adapter, allow_pickle, trust_remote_code)
        kind = Adapter(adapter).config["peft_type"]
        how.append(f"{kind} adapter merged by PEFT {peft.__version__}")
        key = [str(source), _content(folder), _content(adapter), peft.__version__, *_versions()]
        folder, adapter = _cached(key, make), None
    return Prepared(folder, adapter, tuple(how))


def _config(folder: Path) -> dict[str, Any] | None:
    """config.json of a base; None where there is none to be read, for which the reader of configs has the sentence."""
    try:
        raw = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) else None


def _quantised(what: str, folder: Path, dequantize: bool) -> Quantised | None:
    """How a base is quantised, None for a plain one; raises where nobody may or can undo it."""
    if folder.is_file():
        return allowed(what, Quantised("gguf"), {}, dequantize)
    raw = _config(folder)
    if raw is None:
        return None
    here = Folder.open(Name(what, folder=folder), folder)
    found = check_quantised(what, raw, here.files, here.card, dequantize)
    for name in contents.matching(here.files, ("model*.safetensors",)) if found is None else ():
        check_numbers(what, here.header(name), here.card)
    return found


def _is_read(folder: Path, adapter: Path, allow_pickle: bool, trust_remote_code: bool) -> bool:
    """Whether an adapter is merged tensor by tensor; raises where it belongs to another base, or may not be read."""
    opened = Adapter(adapter)
    adapters.check_weights(adapter.name, {p.name for p in adapter.iterdir()}, allow_pickle)
    model = skeleton(read_config(folder, trust_remote_code), trust_remote_code)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    pairs = tied(model)
    return opened.is_read(shapes, {n for n, _ in model.named_modules()}, {*pairs, *pairs.values()})


def _versions() -> list[str]:
    return [transformers.__version__, torch.__version__.partition("+")[0]]


def _content(path: Path) -> str:
    """Digest of the weights and configs in a folder, or of a file; large files are sampled as pins are."""
    found = Folder.open(Name(path.name, folder=path), path)
    names = contents.matching(found.files, (*contents.WEIGHTS, "*.gguf", "*.json", *contents.SPEECH))
    return found.revision(tuple(names))


def made_once(folder: Path, key: list[str], make: Callable[[Path], None]) -> Path:
    """What `make` writes into an empty folder; in the cache by this key, the content of `folder` and versions."""
    return _cached([*key, _content(folder), *_versions()], make)


def _cached(key: list[str], make: Callable[[Path], None]) -> Path:
    """The folder of this digest, made whole or not at all."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    cache = Path(CACHE).expanduser()
    if not (cache / digest).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f"{digest}.", ignore_cleanup_errors=True) as work:
            partial = Path(work, "model")
            partial.mkdir()
            make(partial)
            # Another process may have been faster.
            with contextlib.suppress(OSError):
                os.rename(partial, cache / digest)
    return cache / digest
