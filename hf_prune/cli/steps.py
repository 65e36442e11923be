"""What a run chose where nobody said, and which commands come after it."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_prune.assembly.formats import FORMATS
from hf_prune.events import Event, Stage, Started
from hf_prune.limits import DEFAULT_RATIO
from hf_prune.recipe import DEFAULT_DATA, Recipe

if TYPE_CHECKING:
    from hf_prune.report.schema.report import Report

COLUMN = 48
"""Characters of a command before what it is for."""


def chosen(recipe: Recipe) -> str | None:
    """What a run decides by itself, in the flags that decide otherwise; None where a size is named."""
    if recipe.size.given or recipe.every_size:
        return None
    found = [f"a share of {DEFAULT_RATIO:g} of the parameters goes (--ratio)", f"by {recipe.method} (--method)"]
    if not recipe.data.text:
        found.append(f"judged on {', '.join(DEFAULT_DATA)} (--data)")
    if recipe.machine.time is None:
        found.append("in about ten minutes (--time)")
    if not recipe.repair.enabled and not recipe.heal.tokens:
        found.append("and nothing is given back (--repair, --heal 1M)")
    return f"no size is named, so {', '.join(found)}"


def announced(events: Iterable[Event], recipe: Recipe) -> Iterator[Event]:
    """A run's events; what it chose by itself is told as a stage, once it is known that it begins."""
    said = chosen(recipe)
    for event in events:
        yield event
        if said and isinstance(event, Started):
            yield Stage("chosen", said)


def next_commands(folder: Path, report: "Report", parent: str | None, url: str | None) -> list[str]:
    """Command lines that make sense for a finished folder, each with what it is for.

    Args:
        folder: of the result.
        report: of it.
        parent: the dense model as it was named, where that is known.
        url: where it is published already.
    """
    local = bool(report.sources) and report.sources[0].is_local
    beside = ("--base", parent or "PARENT") if local else ()
    rows = [(("chat", folder, *beside), "talk to it beside its dense parent")]
    if report.healing is None:
        rows.append((("heal", folder, "--heal", "1M", *beside), "train it, with the dense model as teacher"))
    if report.front:
        rows.append((("assemble", folder / "front.json", "--pick", "0.25"), "another size of the front"))
    if name := next((n for n, row in FORMATS.items() if row.suits(folder)), None):
        rows.append((("export", folder, "--format", name), FORMATS[name].about))
    if not url:
        rows.append((("push", folder, f"YOUR-NAME/{folder.resolve().name}"), "publish it, private unless --public"))
    return [_line(words, why) for words, why in rows]


def _line(words: Sequence[object], why: str) -> str:
    return f"{shlex.join(['hf-prune', *map(str, words)]):{COLUMN}}  # {why}"
