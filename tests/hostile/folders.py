"""A real result, copies of it that a stranger has altered, and a watch on what is opened."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_prune.pipeline import run
from tests.runs import base, recipe, text

COMMIT = "a" * 40
SECRET = "the secret of this machine, which no card may quote"
_watched: list[list[str]] = []


def result(home: Path) -> Path:
    """A small finished folder, made from `home`/base and `home`/text.txt."""
    made = recipe(home, base=str(base(home / "base")), data=(str(text(home / "text.txt")),), output=str(home / "made"),
                  drop=("1", "3"), baselines=())  # fmt: skip
    return run(made).folder


def altered(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy whose report says other things of its recipe."""
    theirs = Path(shutil.copytree(folder, target))
    change(theirs / "report.json", lambda raw: raw["recipe"].update(fields))
    return theirs


def resourced(folder: Path, target: Path, repo: str, revision: str = COMMIT, adapter: str | None = None) -> Path:
    """A copy whose blueprint names another source."""
    theirs = Path(shutil.copytree(folder, target))
    source = {"repo": repo, "revision": revision, "adapter": adapter}
    change(theirs / "blueprint.json", lambda raw: raw.update(sources=[source]))
    return theirs


def change(path: Path, how: Any) -> None:
    """Alter a JSON file."""
    raw = json.loads(path.read_text())
    how(raw)
    path.write_text(json.dumps(raw))


def secrets(home: Path) -> Path:
    """Text in every form that data and tasks are read in, under names that datasets and repos could have, too."""
    folder = home / "secret"
    for place in (folder, home / "ns" / "secret"):
        place.mkdir(parents=True)
        lines = "\n".join(json.dumps({"text": f"{SECRET} {i}"}) for i in range(60))
        for name in ("train.jsonl", *(f"x.{split}.jsonl" for split in ("search", "selection", "report"))):
            (place / name).write_text(lines)
        (place / "text.txt").write_text("\n\n".join(f"{SECRET} {i}" for i in range(60)))
        item = {"context": SECRET, "choices": ["a", "b"], "answer": 0}
        (place / "items.jsonl").write_text(json.dumps(item))
        (place / "task.yaml").write_text(f"task: x\ndescription: {SECRET}\n")
    return folder


@contextmanager
def opened() -> Iterator[list[str]]:
    """Absolute paths of the files and folders that Python code opens or lists meanwhile."""
    seen: list[str] = []
    _watched.append(seen)
    try:
        yield seen
    finally:
        _watched.remove(seen)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | os.PathLike):
        path = os.path.realpath(arguments[0])
        for seen in _watched:
            seen.append(path)


sys.addaudithook(_watch)
