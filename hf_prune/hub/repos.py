"""A model on the Hub at one commit, with the methods of `folders.Folder`."""

import re
import shutil
from collections.abc import Callable, Mapping
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

from hf_prune.errors import BrokenCheckpoint, HfPruneError, NotEnoughDisk, SourceNotFound, SourceOffline
from hf_prune.hub.folders import Folder, TensorInfo, about, check_length, read_card, read_header
from hf_prune.hub.names import COMMIT, Name, shown
from hf_prune.hub.retries import Retry, chain, explain, odd_answer, passing, unreachable
from hf_prune.hub.verified import DIGEST, is_content, listed_digest, throw_away


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
        """A small file; raises BrokenCheckpoint for one that is too long to be read whole, or not what is listed."""
        check_length(name, self.files.get(name, 0), self.name.repo)
        return self._checked(lambda: {name: self._file(name)})[name].read_bytes()

    def _checked(self, get: Callable[[], dict[str, Path]]) -> dict[str, Path]:
        """Files by name, as they came and as the Hub lists them; what came otherwise is thrown away and asked for anew.

        Raises:
            BrokenCheckpoint: something comes otherwise again.
        """
        for again in (True, False):
            found = get()
            digests = {n: self.blobs.get(n) or listed_digest(path) for n, path in found.items()}
            odd = [n for n, digest in digests.items() if digest and not is_content(found[n], digest)]
            if not odd:
                return found
            for name in odd:
                throw_away(found[name])
            if not again or self.offline:
                break
        where = "what lay in the cache" if self.offline else "what came, and came again,"
        raise BrokenCheckpoint(
            f"{odd[0]} of {self.name} does not have the digest that the Hub lists for it: {where} was thrown away; "
            "try again later, or choose another source."
        )

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
            BrokenCheckpoint: one of them is not what the Hub lists.
        """
        self._check_disk(names)
        folder = Path()

        def get() -> dict[str, Path]:
            nonlocal folder
            folder = self._ask(self._snapshot, names)
            return {name: folder / name for name in names}

        self._checked(get)
        return folder

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
    try:
        return _listed(name, info, retry)
    except (AttributeError, TypeError, ValueError) as e:
        raise SourceOffline(odd_answer(name.repo, e)) from e


def _listed(name: Name, info: Any, retry: Retry) -> Repo:
    """A repo as the Hub lists it; raises AttributeError, TypeError or ValueError where that says too little."""
    if not COMMIT.fullmatch(info.sha) or info.siblings is None:
        raise ValueError("it lists no files" if info.siblings is None else f"{shown(info.sha)} is no commit")
    rows = [s for s in info.siblings if _is_inside(s.rfilename)]
    files = {s.rfilename: int(s.size or 0) for s in rows}
    digests = {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in rows}
    blobs = {n: d for n, d in digests.items() if d and DIGEST.fullmatch(d)}
    known = about(info.card_data.to_dict() if info.card_data else {}, info.pipeline_tag)
    return Repo(name, info.sha, files, known, blobs, bool(info.gated), bool(info.private), retry=retry)


def _is_inside(name: str) -> bool:
    """Whether a file that a stranger lists has a place in the folder of its repo."""
    return not {"", ".", ".."} & set(name.split("/")) and not re.search(r"[\\\0]|^[A-Za-z]:", name)


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
