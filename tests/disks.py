"""A small disk of one's own, to be filled: a tmpfs, which root alone may mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """Where it is mounted, and what may be changed about it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"only root mounts disks here: {done.stderr.strip()}")

    def remount(self, options: str) -> None:
        """`size=BYTES`, `ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def fill(self) -> Path:
        """Use up every byte; the file that does."""
        path = self.folder / "filler"
        with path.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        return path


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Disk]:
    """A disk of so many bytes, gone again behind the block."""
    mounted = Disk(folder, size)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
