"""Read a base: `peek` at its config and tensor shapes, or `pull` a pinned snapshot of what is needed."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_prune.blueprint import Source
from hf_prune.errors import SourceError
from hf_prune.hub import contents
from hf_prune.hub.calls import Retry, scrub
from hf_prune.hub.folders import Folder, TensorInfo
from hf_prune.hub.names import Name, parse
from hf_prune.hub.repos import Repo, remember, resolve

HEADERS_AT_ONCE = 8


@dataclass(frozen=True)
class Pulled:
    """A pinned source on this disk; `adapter` is the folder of its LoRA, `card` what the source states about itself."""

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
    far as the source states them. `adapter` are the tensors of its LoRA. `read` fetches a small file, `span` bytes of a
    large one; `read_adapter` and `span_adapter` do so in the LoRA's repo. `weights` are the files that transformers
    reads, of all that there are.
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
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Checked:
    """A base that passed every check that needs no weights."""

    base: Folder | Repo
    weights: tuple[str, ...]
    config: Mapping[str, Any]
    code: bool
    adapter: Folder | Repo | None

    @property
    def source(self) -> Source:
        adapter = None
        if self.adapter is not None:
            adapter = f"{self.adapter.name.repo}@{self.adapter.revision((contents.ADAPTER,))}"
        return Source(self.base.name.repo, self.base.revision(self.weights), adapter)


def peek(
    base: str,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Peek:
    """Pin a base and read its config and safetensors headers (by byte range); no weights are downloaded.

    Args:
        base: folder, repo or repo@revision, then perhaps + an adapter named the same way.
        allow_pickle: accept weights that can run code when read.
        trust_remote_code: accept a model that ships its own code.
        sleep: pause between tries, in seconds.

    Raises:
        SourceError: the base cannot be read; its subclasses say why.
        IncompatibleSources: the adapter is no LoRA.
    """
    found = _check(base, allow_pickle, trust_remote_code, Retry(sleep))
    shards = [w for w in found.weights if w.endswith(".safetensors")]
    with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        tensors = {name: info for header in pool.map(found.base.header, shards) for name, info in header.items()}
    base_ = found.base
    adapter = found.adapter.header(contents.ADAPTER) if found.adapter else {}
    reads = (found.adapter.read, found.adapter.span) if found.adapter else ()
    return Peek(found.source, found.config, tensors, base_.files, base_.card, base_.gated, base_.private, adapter,
                base_.read, base_.span, *reads, weights=found.weights)  # fmt: skip


def pull(
    base: str,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Pulled:
    """Pin a base and bring what is needed of it to this disk; a local folder stays where it is.

    Arguments are those of `peek`.

    Raises:
        NotEnoughDisk: the files do not fit; checked before the first weight is downloaded.
        SourceError: the base cannot be read; its subclasses say why.
        IncompatibleSources: the adapter is no LoRA.
    """
    found = _check(base, allow_pickle, trust_remote_code, Retry(sleep))
    adapter = found.adapter.fetch(contents.needed_of_adapter(found.adapter.files)) if found.adapter else None
    folder = found.base.fetch(contents.needed(found.base.files, found.weights, found.code))
    for source in filter(None, (found.base, found.adapter)):
        remember(source.name, source)
    return Pulled(found.source, folder, found.base.card, adapter)


def fetch_result(repo: str, *, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Bring a result that hf_prune published to this disk, with its blueprint, report, repairs and figures.

    Raises:
        NotEnoughDisk: the files do not fit.
        SourceError: there is no such folder or repo, or it cannot be read; its subclasses say why.
    """
    found = _check(repo, allow_pickle=False, trust_remote_code=False, retry=Retry(sleep))
    return found.base.fetch(sorted({*contents.needed(found.base.files, found.weights, found.code),
                                    *contents.matching(found.base.files, contents.RESULT)}))  # fmt: skip


def fetch_report(repo: str, *, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Bring report, card and figures of such a result to this disk, without any weights.

    Raises:
        SourceError: there is no such folder or repo, or it cannot be read; its subclasses say why.
    """
    source = resolve(parse(repo)[0], Retry(sleep))
    return source.fetch(contents.matching(source.files, contents.REPORT))


def _check(base: str, allow_pickle: bool, trust_remote_code: bool, retry: Retry) -> _Checked:
    try:
        return _read(*parse(base), allow_pickle, trust_remote_code, retry)
    except OSError as e:
        raise SourceError(f"{scrub(base)} cannot be read ({e.strerror or e}); check the files and the disk.") from e


def _read(model: Name, extra: Name | None, allow_pickle: bool, trust_remote_code: bool, retry: Retry) -> _Checked:
    source, what = resolve(model, retry), str(model)
    raw = contents.config(what, source.files, source.read)
    weights = contents.weights(what, source.files, source.read, allow_pickle, raw.get("transformers_weights"))
    contents.check_model(what, source.files, raw, trust_remote_code)
    code = contents.needs_code(raw) or trust_remote_code and contents.tokenizer_code(source.files, source.read)
    return _Checked(source, weights, raw, code, _check_adapter(extra, retry))


def _check_adapter(name: Name | None, retry: Retry) -> Folder | Repo | None:
    if name is None:
        return None
    source = resolve(name, retry)
    contents.check_adapter(str(name), source.files, source.read)
    return source
