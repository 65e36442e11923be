"""The files of a folder that goes to the Hub, and whether the Hub has them already."""

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from hf_prune.errors import PublishError

LEFT_OUT = {".git", ".cache", "__pycache__", ".DS_Store"}
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
CHUNK = 2**20


def listing(folder: Path) -> dict[str, Path]:
    """Path in the repo -> file, sorted.

    Raises:
        PublishError: no folder, nothing in it, or something in it leads out of it or is no plain file.
    """
    if not folder.is_dir():
        raise PublishError(f"There is no folder {folder} to publish; run the compression first.")
    root, found = folder.resolve(), {}
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in [*folders, *sorted(set(files) - LEFT_OUT)]:
            path = Path(here, name)
            _refuse_odd(path, root, name in folders)
            if name not in folders:
                found[path.relative_to(folder).as_posix()] = path
    if not found:
        raise PublishError(f"The folder {folder} is empty, so there is nothing to publish.")
    return dict(sorted(found.items()))


def _refuse_odd(path: Path, root: Path, is_folder: bool) -> None:
    if path.is_symlink() and (is_folder or not path.resolve().is_relative_to(root)):
        raise PublishError(f"{path} is a link that leads out of the folder; replace it by a copy and push again.")
    if not is_folder and not path.is_file():
        raise PublishError(f"{path} is not a plain file; remove it and push again.")


def changed(local: Mapping[str, Path], remote: Mapping[str, RepoFile]) -> list[str]:
    """Files the Hub lacks or has otherwise; contents are hashed only where the sizes agree."""
    return [name for name, path in local.items() if name not in remote or not _equal(path, remote[name])]


def stale(local: Mapping[str, Path], remote: Iterable[str]) -> list[str]:
    """Weight files of an earlier push that transformers could load in place of ours."""

    def weighs(name: str) -> bool:
        return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in WEIGHTS)

    return sorted(n for n in remote if n not in local and weighs(n)) if any(map(weighs, local)) else []


def _equal(path: Path, there: RepoFile) -> bool:
    size = path.stat().st_size
    if size != (there.lfs.size if there.lfs else there.size):
        return False
    digest = hashlib.sha256() if there.lfs else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest() == (there.lfs.sha256 if there.lfs else there.blob_id)
