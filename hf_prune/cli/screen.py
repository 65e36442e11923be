"""What a run looks like in a terminal: events on a progress bar, plan and report as tables."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hf_prune.errors import scrub
from hf_prune.events import (
    Advanced,
    Event,
    Exported,
    Forecasted,
    Healed,
    Pushed,
    Repaired,
    Scored,
    Stage,
    Started,
    Tuned,
)
from hf_prune.models.variants import comparison_table
from hf_prune.report import tables
from hf_prune.report.pace import Pace, stages_told
from hf_prune.report.schema.report import Report
from hf_prune.report.text import DETAILS, plan_rows
from hf_prune.report.verdicts import percent

if TYPE_CHECKING:
    from hf_prune.models.scout import Scouted
    from hf_prune.models.variants import Verdict
    from hf_prune.planning import Plan


class Screen:
    """Shows a stream of events on `console`; a context manager that owns the progress bar.

    Without a terminal there is no bar, only one line per stage.
    """

    def __init__(self, console: Console):
        self.console = console
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figure]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal,
        )
        self.task: Any = None
        self.pace = Pace()

    def __enter__(self) -> "Screen":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, event: Event) -> None:
        """Draw one event."""
        self.pace.hear(event)
        match event:
            case Forecasted():
                self._say(f"takes {stages_told(event.seconds)} on this machine")
                if event.left_out:
                    self._say(f"left out, to take no longer: {'; '.join(event.left_out)}")
            case Stage():
                self._end_bar()
                self._say(str(event))
            case Scored():
                self._advance("search", event.done, event.total, "best", event.best)
            case Advanced():
                self._advance(event.stage, event.done, event.total, "loss", event.value)
            case Started() | Tuned() | Repaired() | Healed() | Exported() | Pushed():
                self._say(str(event))

    def _advance(self, name: str, done: int, total: int, what: str, value: float | None) -> None:
        if self.task is None:
            self.task = self.progress.add_task(name, total=total, figure="", left="")
        self.progress.update(self.task, left=self.pace.remaining)
        shown = {} if value is None or not math.isfinite(value) else {"figure": f"{what} {value:.4g}"}
        self.progress.update(self.task, completed=done, total=total, **shown)

    def _end_bar(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def _say(self, text: str) -> None:
        self.console.print(scrub(text), soft_wrap=True, highlight=False, markup=False)


def verdict_table(found: "Sequence[Verdict]") -> Table:
    """How variants differ from their base, and what that means."""
    header, rows = comparison_table(found)
    drawn = Table(*header, title="Do the variants fit?", title_justify="left")
    for row in rows:
        drawn.add_row(*map(escape, row), style="bold red" if row[4] == "fatal" else None)
    return drawn


def scout_table(base: str, found: "Sequence[Scouted]") -> Table:
    """Relatives of a base; the fit ones first."""
    header = ("repo", "made by", "fits", "licence", "downloads", "weights differ by", "")
    drawn = Table(*header, title=f"Relatives of {base}", title_justify="left")
    for c in sorted(found, key=lambda c: not c.fits):
        d = c.difference
        change = f"{percent(d.mean)} ({percent(d.least)} to {percent(d.most)})" if d else ""
        cells = (c.repo, c.relation, "yes" if c.fits else "no", c.license or "not said", f"{c.downloads:,}", change)
        drawn.add_row(*map(escape, cells), escape(c.note), style=None if c.fits else "dim")
    return drawn


def plan_table(plan: "Plan", verbose: bool = False) -> Table:
    """What a run would do, one row per figure; with `verbose` those as well that few know."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in plan_rows(plan).items():
        if verbose or name not in DETAILS:
            table.add_row(escape(name), escape(text))
    return table


def report_table(report: Report) -> Table:
    """The card's table: dense beside pruned, one row per measurement that the report holds."""
    table = Table(*tables.header(report))
    for row in tables.table(report):
        table.add_row(*row)
    return table
