"""Read a base: `peek` at its config and tensor shapes, or `pull` a pinned snapshot of what is needed."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hf_prune.blueprint import Source
from hf_prune.errors import SourceError, scrub
from hf_prune.hub import adapters, contents, gguf, quantisation
from hf_prune.hub.folders import Folder, TensorInfo
from hf_prune.hub.kinds import check_causal
from hf_prune.hub.names import Name, parse
from hf_prune.hub.quantisation import Quantised
from hf_prune.hub.repos import Repo, remember, resolve
from hf_prune.hub.retries import Retry

HEADERS_AT_ONCE = 8


@dataclass(frozen=True)
class Pulled:
    """A pinned source on this disk; `folder` is a file for GGUF, `adapter` the folder of its adapter, `card` what the
    source states about itself."""

    source: Source
    folder: Path
    card: Mapping[str, Any]
    adapter: Path | None = None


def _nothing(name: str, first: int = 0, last: int = 0) -> bytes:
    raise FileNotFoundError(name)


@dataclass(frozen=True)
class Peek:
    """What is known of a source without its weights.

    `tensors` is empty for pickles; `files` are sizes in bytes; `card` has license, language, pipeline_tag and tags as
    far as the source states them. `adapter` are the tensors of its adapter. `read` fetches a small file, `span` bytes
    of a large one; `read_adapter` and `span_adapter` do so in the adapter's repo. Config and tensors are those of the
    model that is pruned: dequantised, the adapter's vocabulary in place; `notes` say in words what is done for that.
    `prepared`: a plain checkpoint is made in the cache first. `weights` are the files that transformers reads, of all
    that there are.
    """

    source: Source
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, int]
    card: Mapping[str, Any]
    gated: bool = False
    private: bool = False
    adapter: Mapping[str, TensorInfo] = field(default_factory=dict)
    read: Callable[[str], bytes] = _nothing
    span: Callable[[str, int, int], bytes] = _nothing
    read_adapter: Callable[[str], bytes] = _nothing
    span_adapter: Callable[[str, int, int], bytes] = _nothing
    notes: tuple[str, ...] = ()
    prepared: bool = False
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Checked:
    """A base that passed every check that needs no weights; `settings` are those of its adapter, `tensors` those of a
    GGUF file, whose one header says everything."""

    base: Folder | Repo
    weights: tuple[str, ...]
    config: Mapping[str, Any]
    code: bool
    quantised: Quantised | None
    adapter: Folder | Repo | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, TensorInfo] | None = None

    @property
    def source(self) -> Source:
        adapter = None
        if self.adapter is not None:
            weights = next(n for n in (adapters.WEIGHTS, adapters.PICKLE) if n in self.adapter.files)
            adapter = f"{self.adapter.name.repo}@{self.adapter.revision((weights,))}"
        return Source(self.base.name.repo, self.base.revision(self.weights), adapter)

    @property
    def needed(self) -> list[str]:
        """Files of the base worth downloading."""
        return contents.needed(self.base.files, self.weights, self.code)

    @property
    def path(self) -> Path:
        """Where a base of this disk lies: a folder, or a GGUF file."""
        folder = self.base.fetch(self.needed)
        return folder / self.weights[0] if self.weights[0].endswith(".gguf") else folder


def peek(
    base: str,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Peek:
    """Pin a base and read its config and safetensors headers (by byte range); no weights are downloaded.

    Args:
        base: folder, repo or repo@revision, then perhaps + an adapter named the same way.
        allow_pickle: accept weights that can run code when read.
        trust_remote_code: accept a model that ships its own code.
        dequantize: accept a quantised model, which transformers turns into a plain one.
        sleep: pause between tries, in seconds.

    Raises:
        SourceError: the base cannot be read; its subclasses say why.
        UnsupportedArchitecture: it is no causal language model, or quantised for good.
        IncompatibleSources: the adapter is none that PEFT merges.
    """
    found = _check(base, allow_pickle, trust_remote_code, dequantize, Retry(sleep))
    config, tensors, notes = _plain(found)
    base_, read, adapter = found.base, found.base.read, {}
    reads, plain = (_nothing, _nothing), found.quantised is None
    if found.adapter:
        adapter = found.adapter.header(adapters.WEIGHTS) if adapters.WEIGHTS in found.adapter.files else {}
        before = config
        config, tensors = adapters.applied(config, tensors, found.settings, adapter)
        merged = not adapters.reads_plainly(found.settings, adapter) or config != before
        notes, plain = notes + _merging(found, merged), plain and not merged
        reads = (found.adapter.read, found.adapter.span)
        if config != before and contents.matching(found.adapter.files, contents.VOCABULARIES):
            read = found.adapter.read
    return Peek(found.source, config, tensors, base_.files, base_.card, base_.gated, base_.private, adapter,
                read, base_.span, *reads, notes, not plain, found.weights)  # fmt: skip


def _headers(found: _Checked) -> dict[str, TensorInfo]:
    shards = [w for w in found.weights if w.endswith(".safetensors")]
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        return {name: info for header in pool.map(found.base.header, shards) for name, info in header.items()}


def _plain(found: _Checked) -> tuple[Mapping[str, Any], Mapping[str, TensorInfo], tuple[str, ...]]:
    """Config and tensors of the model once it is plain, and what is done for that."""
    dtype = quantisation.dtype_of(found.config)
    if found.tensors is not None:
        return found.config, found.tensors, (f"read from {found.weights[0]}; transformers makes {dtype} of it",)
    tensors = _headers(found)
    if found.quantised is None:
        quantisation.check_numbers(str(found.base.name), tensors, found.base.card)
        return found.config, tensors, ()
    note = f"quantised with {found.quantised}; transformers makes {dtype} of it"
    return found.config, quantisation.dequantised(tensors, found.quantised, dtype), (note,)


def _merging(found: _Checked, merged: bool) -> tuple[str, ...]:
    kind, named = found.settings["peft_type"], str(found.settings.get("base_model_name_or_path") or "")
    notes = (f"{kind} adapter, which PEFT merges with the whole base in memory",) if merged else ()
    ours, theirs = (n.rstrip("/").rpartition("/")[2].lower() for n in (found.base.name.repo, named))
    if theirs and ours != theirs:
        notes += (f"the adapter says that it was made for {adapters.public(named)}",)
    return notes


def pull(
    base: str,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    dequantize: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Pulled:
    """Pin a base and bring what is needed of it to this disk; a local folder stays where it is.

    Arguments are those of `peek`.

    Raises:
        NotEnoughDisk: the files do not fit; checked before the first weight is downloaded.
        SourceError: the base cannot be read; its subclasses say why.
        UnsupportedArchitecture: it is no causal language model, or quantised for good.
        IncompatibleSources: the adapter is none that PEFT merges.
    """
    found = _check(base, allow_pickle, trust_remote_code, dequantize, Retry(sleep))
    adapter = (
        found.adapter.fetch(contents.needed_of_adapter(found.adapter.files, allow_pickle)) if found.adapter else None
    )
    path = found.path
    for source in filter(None, (found.base, found.adapter)):
        remember(source.name, source)
    return Pulled(found.source, path, found.base.card, adapter)


def fetch_result(repo: str, *, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Bring a result that hf_prune published to this disk, with its blueprint, report, repairs and figures.

    Raises:
        NotEnoughDisk: the files do not fit.
        SourceError: there is no such folder or repo, or it cannot be read; its subclasses say why.
    """
    found = _check(repo, allow_pickle=False, trust_remote_code=False, dequantize=False, retry=Retry(sleep))
    return found.base.fetch(sorted({*found.needed, *contents.matching(found.base.files, contents.RESULT)}))


def fetch_report(repo: str, *, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Bring report, card and figures of such a result to this disk, without any weights.

    Raises:
        SourceError: there is no such folder or repo, or it cannot be read; its subclasses say why.
    """
    source = resolve(parse(repo)[0], Retry(sleep))
    return source.fetch(contents.matching(source.files, contents.REPORT))


def _check(base: str, allow_pickle: bool, trust_remote_code: bool, dequantize: bool, retry: Retry) -> _Checked:
    try:
        return _read(*parse(base), allow_pickle, trust_remote_code, dequantize, retry)
    except OSError as e:
        raise SourceError(f"{scrub(base)} cannot be read ({e.strerror or e}); check the files and the disk.") from e


def _read(
    model: Name, extra: Name | None, allow_pickle: bool, trust_remote_code: bool, dequantize: bool, retry: Retry
) -> _Checked:
    source, what = resolve(model, retry), str(model)
    if (file := _only_gguf(what, source)) is not None:
        raw, tensors = gguf.read_gguf(partial(source.span, file), source.files[file], file, what)
        found = quantisation.check_gguf(what, raw, source.card, dequantize)
        return _Checked(source, (file,), raw, False, found, *_check_adapter(extra, allow_pickle, retry), tensors)
    raw = contents.config(what, source.files, source.read)
    check_causal(what, raw)
    found = quantisation.check_quantised(what, raw, source.files, source.card, dequantize)
    weights = contents.weights(what, source.files, source.read, allow_pickle, raw.get("transformers_weights"))
    contents.check_model(what, source.files, raw, trust_remote_code)
    code = contents.needs_code(raw) or trust_remote_code and contents.tokenizer_code(source.files, source.read)
    return _Checked(source, weights, raw, code, found, *_check_adapter(extra, allow_pickle, retry))


def _only_gguf(what: str, source: Folder | Repo) -> str | None:
    """The GGUF file of a source that holds no other weights."""
    if contents.matching(source.files, contents.WEIGHTS):
        return None
    return gguf.model_file(what, source.files)


def _check_adapter(
    name: Name | None, allow_pickle: bool, retry: Retry
) -> tuple[Folder | Repo | None, Mapping[str, Any]]:
    if name is None:
        return None, {}
    source = resolve(name, retry)
    return source, adapters.read_adapter(str(name), source.files, source.read, allow_pickle)
