"""A model on the Hub at one commit, with the methods of `folders.Folder`."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hf_prune.errors import HfPruneError, NotEnoughDisk, SourceNotFound
from hf_prune.hub.folders import Folder, TensorInfo, about, check_length, read_card, read_header
from hf_prune.hub.names import Name
from hf_prune.hub.retries import Retry, chain, explain, passing, unreachable


@dataclass(frozen=True)
class Repo:
    """A model on the Hub at one commit. `blobs` gives the cache's name for each content."""

    name: Name
    sha: str
    files: Mapping[str, int]
    card: Mapping[str, Any]
    blobs: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    offline: bool = False
    retry: Retry = Retry()

    def _ask(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.retry(function, *args, **kwargs)
        except HfPruneError:
            raise
        except OSError as e:
            if e.errno == 28:
                raise NotEnoughDisk(f"{self.name} fills the disk of {constants.HF_HUB_CACHE}; free some space.") from e
            raise explain(e, self.name.repo, self.name.revision) from e
        except Exception as e:
            raise explain(e, self.name.repo, self.name.revision) from e

    def _file(self, name: str) -> Path:
        offline = {"local_files_only": True} if self.offline else {}
        return Path(self._ask(hf_hub_download, self.name.repo, name, revision=self.sha, **offline))

    def read(self, name: str) -> bytes:
        """A small file; raises BrokenCheckpoint for one that is too long to be read whole."""
        check_length(name, self.files.get(name, 0), self.name.repo)
        return self._file(name).read_bytes()

    def header(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of one safetensors file, read by byte range."""
        return read_header(lambda first, last: self.span(name, first, last), self.files[name], name, self.name.repo)

    def span(self, name: str, first: int, last: int) -> bytes:
        """Bytes first .. last of a file, without the last; nothing else of it is downloaded."""
        if not self.offline:
            return self._ask(self._ranged, name, first, last)
        with self._file(name).open("rb") as file:
            file.seek(first)
            return file.read(last - first)

    def _ranged(self, name: str, first: int, last: int) -> bytes:
        headers = {**build_hf_headers(), "range": f"bytes={first}-{last - 1}"}
        url = hf_hub_url(self.name.repo, name, revision=self.sha)
        answer = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(answer)
        # A server that knows no ranges sends the whole file.
        return answer.content if answer.status_code == 206 else answer.content[first:last]

    def fetch(self, names: list[str]) -> Path:
        """Download these files; the folder they lie in.

        Raises:
            NotEnoughDisk: they do not fit.
        """
        self._check_disk(names)
        return self._ask(self._snapshot, names)

    def _snapshot(self, names: list[str]) -> Path:
        offline = {"local_files_only": True} if self.offline else {}
        folder = Path(snapshot_download(self.name.repo, revision=self.sha, allow_patterns=names, **offline))
        # Without a file list the client may hand out a half-filled folder.
        if missing := [n for n in names if not (folder / n).is_file()]:
            raise LocalEntryNotFoundError(f"{missing[0]} is missing")
        return folder

    def _check_disk(self, names: list[str]) -> None:
        cache = Path(constants.HF_HUB_CACHE)
        store = _store(self.name.repo)
        here = {n for n in names if (store / "snapshots" / self.sha / n).exists()}
        here |= {n for n in names if n in self.blobs and (store / "blobs" / self.blobs[n]).exists()}
        want = sum(self.files[n] for n in names if n not in here)
        free = shutil.disk_usage(next(p for p in (cache, *cache.absolute().parents) if p.exists())).free
        if want > free:
            raise NotEnoughDisk(
                f"{self.name} needs {_bytes(want)} more in {cache} and {_bytes(free)} are free; "
                "free some space, or point HF_HOME to a larger disk."
            )

    def revision(self, weights: tuple[str, ...]) -> str:
        """The commit."""
        return self.sha


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def resolve(name: Name, retry: Retry) -> Folder | Repo:
    """Pin a name: a folder as it is, a repo to the commit its revision means now (or meant, when offline).

    Raises:
        SourceNotFound, SourceForbidden, SourceOffline: as the Hub answers.
    """
    if name.folder is not None:
        return Folder.open(name, name.folder)
    try:
        info = retry(HfApi().model_info, name.repo, revision=name.revision, files_metadata=True)
    except Exception as e:
        if (unreachable(e) or (name.pinned and passing(e))) and (cached := _cached(name, retry)):
            return cached
        typed = not Path(name.repo).exists()
        raise _elsewhere(e, name, retry) or explain(e, name.repo, name.revision, typed=typed) from e
    files = {s.rfilename: s.size or 0 for s in info.siblings}
    blobs = {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in info.siblings}
    known = about(info.card_data.to_dict() if info.card_data else {}, info.pipeline_tag)
    return Repo(name, info.sha, files, known, blobs, bool(info.gated), bool(info.private), retry=retry)


def _elsewhere(error: Exception, name: Name, retry: Retry) -> SourceNotFound | None:
    """The error for a name that is taken by a dataset or a Space."""
    if not any(isinstance(e, RepositoryNotFoundError) and not isinstance(e, GatedRepoError) for e in chain(error)):
        return None
    for kind in ("dataset", "space"):
        try:
            retry(HfApi().repo_info, name.repo, repo_type=kind)
        except Exception:
            continue
        hint = "; texts are given with --data" if kind == "dataset" else ""
        return SourceNotFound(f"{name.repo} is a {kind} on the Hub, not a model; name a model{hint}.")
    return None


def _cached(name: Name, retry: Retry) -> Repo | None:
    try:
        pinned = HfApi().resolve_revision(name.repo, revision=name.revision, local_files_only=True)
        tree = get_cached_repo_tree(name.repo, revision=pinned.resolved)
    except (RevisionResolutionError, CachedRepoTreeNotFoundError):
        return None
    readme = _store(name.repo) / "snapshots" / pinned.resolved / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.exists() else ""
    files = {f.path: f.size for f in tree}
    return Repo(name, pinned.resolved, files, read_card(text), offline=True, retry=retry)


def _store(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"))


def remember(name: Name, source: Folder | Repo) -> None:
    """Note which commit a branch means, so that the same name works offline later."""
    if isinstance(source, Repo) and not source.offline and name.revision != source.sha:
        try:
            HfApi().resolve_revision(name.repo, revision=name.revision)
        except Exception:
            return
