"""Command lines as README and the pages show them."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SKILL.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`(hf-prune [^`\n]+)`")


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block of a page, in order."""
    for found in FENCE.finditer(path.read_text(encoding="utf-8")):
        yield found[1], found[2]


def lines(text: str) -> Iterator[list[str]]:
    """The words of every hf-prune command in a shell block, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["hf-prune"]:
            yield list(itertools.takewhile(lambda word: word != "|", words[1:]))


def commands(path: Path) -> Iterator[list[str]]:
    """Those of a page's shell blocks, and those between backticks that have arguments."""
    for language, text in blocks(path):
        if language == "bash":
            yield from lines(text)
    for found in INLINE.finditer(FENCE.sub("", path.read_text(encoding="utf-8"))):
        yield from lines(found[1])
