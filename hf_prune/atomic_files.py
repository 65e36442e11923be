"""Files and folders that appear whole or not at all: written under another name, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_prune.errors import InvalidRecipe


def write_text(path: Path, text: str) -> None:
    """Write a text file; several processes may write the same one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name when the block ends well."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)


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
