"""Files and folders that appear whole or not at all: written under another name, then renamed.

What disks and paths do wrong meanwhile becomes one sentence: what, where, what was kept, and how to go on.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_prune.errors import CannotWrite, HfPruneError, InvalidRecipe

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of this disk is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "this user may not do that there",
    errno.EPERM: "this user may not do that there",
    errno.ENAMETOOLONG: "the name is too long for this disk",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EISDIR: "a folder stands where a file should be",
    errno.EEXIST: "something else has that name already",
    errno.ENOTEMPTY: "something else has that name already",
    errno.ENOENT: "it is not there, or vanished meanwhile",
    errno.ELOOP: "links lead round in a circle",
    errno.EIO: "the disk failed",
    errno.EINVAL: "the name holds what no name may hold",
    errno.EMFILE: "too many files are open",
}
"""What is wrong, by its number."""
PLACES = 200
"""Characters of a path that are shown."""


def write_text(path: Path, text: str) -> None:
    """Write a text file; several processes may write the same one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with _renamed(partial, path):
        partial.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name when the block ends well; else nothing of it is left."""
    partial = path.with_name(path.name + ".partial")
    with _renamed(partial, path):
        yield partial


@contextmanager
def _renamed(partial: Path, path: Path) -> Iterator[None]:
    try:
        yield
        os.replace(partial, path)
    except BaseException as e:
        if isinstance(e, OSError) and e.filename is None:
            # A write does not say where.
            e.filename = str(path)
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which gets its name when the block ends well; else nothing of it is left.

    A folder that has the name already disappears only then.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def copying(folder: Path, target: Path) -> Iterator[Path]:
    """A copy of a folder to work on, which gets its name when the block ends well; else nothing of it is left.

    Raises:
        InvalidRecipe: the target exists.
    """
    if target.exists():
        raise InvalidRecipe(f"{target} exists; choose another folder.")
    with staged(target) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        yield partial


def copied(folder: Path, target: Path) -> Path:
    """Copy a folder, whole or not at all; raises as `copying`."""
    with copying(folder, target):
        return target


def _rename(partial: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_told(kept: str) -> Iterator[None]:
    """Turn what the disk says inside the block into one sentence.

    Args:
        kept: what is left and how to go on, the end of that sentence.

    Raises:
        CannotWrite: a file could not be written, read or renamed.
    """
    try:
        yield
    except HfPruneError:
        raise
    except Exception as e:
        found = what_failed(e)
        if found is None:
            raise
        raise CannotWrite(f"{found}; {kept}.") from e


def what_failed(error: BaseException) -> str | None:
    """What a disk or path did wrong, without a full stop; None where it was something else."""
    seen: BaseException | None = error
    while seen is not None:
        if (number := _number(seen)) is not None:
            path = getattr(seen, "filename2", None) or getattr(seen, "filename", None)
            reason = REASONS.get(number) or os.strerror(number).lower()
            return f"{shown_path(path)}: {reason}" if path else reason[0].upper() + reason[1:]
        seen = seen.__cause__
    return None


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        # Those of the network have others, or none.
        return error.errno if error.errno in REASONS and error.errno != errno.EINVAL else None
    said = str(error)
    if isinstance(error, ValueError) and "null byte" in said:
        return errno.EINVAL
    if match := re.search(r"\(os error (\d+)\)", said):
        return int(match[1])
    # Its writer says no more, whatever happened to the file.
    return errno.ENOSPC if "PytorchStreamWriter" in said or "enforce fail at inline_container" in said else None


def shown_path(path: object) -> str:
    """A path, or the beginning of a long one."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return text if len(text) <= PLACES else f"{text[:PLACES]}..."


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
            trial = output.with_name(f"{output.name}.{os.getpid()}.partial")
            trial.mkdir()
            trial.rmdir()
        finally:
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
