"""Folders that others have made are read as plain files: a link in one could lead to anything on this machine."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from hf_prune.errors import UnsafeSource

PIECE = 2**22


def check_files(folder: Path) -> None:
    """Refuse a folder that holds anything but files and folders; one of the Hub's cache may link to its contents there.

    Raises:
        UnsafeSource: it does; the message names the first.
    """
    for path in _walk(folder):
        check_file(path, folder)


def check_file(path: Path, folder: Path) -> None:
    """The same for one file of the folder; nothing where there is none."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode) and not _in_cache(path, folder):
        raise UnsafeSource(
            f"{path.relative_to(folder)} in {folder} is a link, which could lead to anything on this machine; put the "
            "file itself there, if you trust it."
        )
    if not stat.S_ISLNK(mode) and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UnsafeSource(f"{path.relative_to(folder)} in {folder} is neither a file nor a folder; remove it.")


def copy_files(folder: Path, target: Path) -> None:
    """Copy a folder's files into another, which is there; raises as `check_files`, before and while it copies."""
    check_files(folder)
    for path in _walk(folder):
        place = target / path.relative_to(folder)
        if path.is_dir() and not path.is_symlink():
            place.mkdir(exist_ok=True)
        else:
            copy_file(path, place, folder)


def copy_file(path: Path, place: Path, folder: Path) -> None:
    """Copy one file of a folder, without following a link that appeared after a check."""
    plain = path.resolve() if _in_cache(path, folder) else path
    try:
        source = os.open(plain, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        check_file(path, folder)
        raise
    with open(source, "rb") as here, place.open("wb") as there:
        shutil.copyfileobj(here, there, PIECE)


def _walk(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        yield from (Path(here, name) for name in sorted([*folders, *files]))


def _raise(error: OSError) -> None:
    raise error


def _in_cache(path: Path, folder: Path) -> bool:
    """Whether a link of a snapshot leads to a file among the contents that the Hub's cache keeps beside snapshots."""
    blobs = folder.absolute().parent.parent / "blobs"
    if not path.is_symlink() or folder.absolute().parent.name != "snapshots" or blobs.is_symlink():
        return False
    found = path.resolve()
    return found.parent == blobs.resolve() and found.is_file()
