"""Files and folders that appear whole or not at all: written under another name, then renamed.

What is unfinished lies beside its final place under names that begin with .hf-prune; of these, only what bears the mark
of the same final name is ever removed.
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from hf_prune.atomic_files.disks import disk_told, shown_path
from hf_prune.atomic_files.links import copy_files
from hf_prune.errors import InvalidRecipe

OURS = ".hf-prune-"
MARK = "unfinished"
"""File in a folder of ours that says which name it is meant for."""
REPLACED = "replaced"
"""What had that name before, until the new one is in place."""


def write_text(path: Path, text: str) -> None:
    """Write a text file; several processes may write the same one."""
    partial = path.with_name(f"{OURS}{secrets.token_hex(8)}.partial")
    with _renamed(partial, path):
        partial.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name when the block ends well; else nothing of it is left."""
    partial = path.with_name(f"{OURS}{_short(path)}.partial")
    with _renamed(partial, path):
        yield partial


@contextmanager
def _renamed(partial: Path, path: Path) -> Iterator[None]:
    try:
        yield
        os.replace(partial, path)
    except BaseException as e:
        if isinstance(e, OSError) and e.errno and e.filename is None:
            # A write does not say where.
            e.filename = str(path)
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Nobody else writes this file or folder meanwhile; what a killed process left of it is put away first.

    Raises:
        InvalidRecipe: another run is writing it.
    """
    target = _whole(target)
    lock = filelock.FileLock(target.with_name(f"{OURS}{_short(target)}.lock"), thread_local=False)
    made = [p for p in target.parents if not p.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InvalidRecipe(
            f"Another run is writing {shown_path(target)}; wait for it to end, stop it, or choose another --output."
        ) from None
    try:
        _put_away(target)
        yield
    finally:
        with suppress(OSError):
            # Removed while it is held: who opened it meanwhile finds that it is gone, and asks anew.
            os.unlink(lock.lock_file)
        lock.release()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which gets its name when the block ends well; else nothing of it is left.

    A folder that has the name already disappears only then.
    """
    folder = _whole(folder)
    place = folder.with_name(f"{OURS}{secrets.token_hex(8)}.partial")
    partial = place / folder.name
    partial.mkdir(parents=True)
    try:
        (place / MARK).write_text(folder.name, encoding="utf-8")
        yield partial
        if os.path.lexists(folder):
            os.replace(folder, place / REPLACED)
        os.replace(partial, folder)
    except BaseException:
        _restore(place, folder)
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def copying(folder: Path, target: Path) -> Iterator[Path]:
    """A copy of a folder to work on, which gets its name when the block ends well; else nothing of it is left.

    Raises:
        InvalidRecipe: the target exists.
        UnsafeSource: the folder holds links.
    """
    if os.path.lexists(target):
        raise InvalidRecipe(f"{target} exists; choose another folder.")
    with staged(target) as partial:
        copy_files(folder, partial)
        yield partial


def copied(folder: Path, target: Path) -> Path:
    """Copy a folder, whole or not at all; raises as `copying` and `claimed`."""
    with claimed(target), copying(folder, target):
        return target


def _put_away(target: Path) -> None:
    """Remove what a killed process left of a folder, and in it; what it had replaced gets its name back."""
    for folder in (target, *target.glob("*/")):
        for file in () if folder.is_symlink() else folder.glob(f"{OURS}*.partial"):
            if not file.is_symlink() and file.is_file():
                file.unlink()
    for place in target.parent.glob(f"{OURS}*.partial"):
        mark = place / MARK
        if place.is_symlink() or not mark.is_file() or mark.read_text(encoding="utf-8") != target.name:
            continue
        _restore(place, target)
        shutil.rmtree(place, ignore_errors=True)


def _restore(place: Path, folder: Path) -> None:
    if os.path.lexists(place / REPLACED) and not os.path.lexists(folder):
        os.replace(place / REPLACED, folder)


def _whole(path: Path) -> Path:
    """A path from the root on; the last part may be a link and stays one."""
    return Path(os.path.realpath(path.parent), path.name) if path.name else Path(os.path.realpath(path))


def _short(path: Path) -> str:
    """As a part of a name that is long enough for no disk to refuse it."""
    return hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]


def check_place(output: Path, what: str = "--output") -> None:
    """Whether a folder may be written under this name, before anything that takes long.

    Args:
        output: folder that is to be made, or replaced.
        what: how it was named.

    Raises:
        CannotWrite: its name is too long, a file or a dangling link stands in its way, or its disk takes no files.
    """
    with disk_told(f"nothing was begun: choose another {what}"):
        if output.is_symlink() and not output.exists():
            raise FileNotFoundError(errno.ENOENT, "", f"{output} (a link to {os.readlink(output)})")
        if output.exists() and not output.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(output))
        made = [p for p in (output.parent, *output.parent.parents) if not p.exists()]
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            # As long as the longest name that is used beside it.
            trial = output.with_name(f"{output.name}.{os.getpid()}.run")
            trial.mkdir()
            trial.rmdir()
        finally:
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
