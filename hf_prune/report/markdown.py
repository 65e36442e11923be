"""Text from outside in Markdown, where it means only itself."""

import re
import textwrap
from typing import Any

from hf_prune.errors import scrub


def md(text: Any) -> str:
    """Text from outside as one line of markdown that means only itself, also inside a table or an HTML block.

    A token in it is taken out here, since nobody would know it again once it is escaped.
    """
    return re.sub(r"([\\`*_\[\]<>|&$~#!])", r"\\\1", one_line(scrub(str(text))))


def code(text: Any) -> str:
    """Text from outside as a code span; characters that could end the span or a table cell are replaced."""
    line = one_line(text)
    return f"`{line.replace('`', chr(39)).replace('|', '¦') or ' '}`"


def fence(text: Any, width: int = 0, language: str = "text") -> str:
    """Text from outside as a fenced block, its fence longer than any run of backticks in it; wrapped at `width`."""
    lines = re.sub(r"\r\n?|[\u2028\u2029\x0b\x0c\x85]", "\n", str(text)).split("\n")
    if width:
        lines = [w.rstrip() for line in lines for w in textwrap.wrap(line, width, drop_whitespace=False) or [""]]
    body = re.sub(r"[\x00-\x08\x0e-\x1f\x7f]", "�", "\n".join(lines))
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", body)), default=0))
    return f"{ticks}{language}\n{body.rstrip()}\n{ticks}"


def one_line(text: Any) -> str:
    """Text from outside without line breaks and control characters."""
    return re.sub(r"[\s\x00-\x1f\x7f\x85\u2028\u2029]+", " ", str(text)).strip()
