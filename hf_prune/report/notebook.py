"""What a notebook shows: how far a run is, and a report with its figures."""

import base64
import sys
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm.auto import tqdm

from hf_prune.errors import scrub
from hf_prune.events import Advanced, Event, Finished, Forecasted, Scored, Stage
from hf_prune.planning.page import sizes_html, table_html
from hf_prune.report import figures, tables
from hf_prune.report.schema.report import Report
from hf_prune.report.text import report_lines

SHOWN = ("layers", "widths", "parents", "comparison", "front")
"""Figures of a finished folder that tell most."""


def in_notebook() -> bool:
    """Whether somebody looks at this process through a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class Bars:
    """A bar for every stage, fed with events; a context manager that closes the last one.

    Args:
        bar: makes a bar, as `tqdm` does.
    """

    def __init__(self, bar: Any = tqdm) -> None:
        self.make, self.bar = bar, None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, event: Event) -> None:
        """Draw one event."""
        match event:
            case Stage() | Forecasted() | Finished():
                self._begin(str(event))
            case Scored():
                self._advance(event.done, event.total, f"best {event.best:.4g}")
            case Advanced():
                self._advance(event.done, event.total, "" if event.value is None else f"loss {event.value:.4g}")

    def _begin(self, text: str) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = self.make(desc=scrub(text), total=None, bar_format="{desc}")

    def _advance(self, done: int, total: int, figure: str) -> None:
        self.bar.bar_format, self.bar.total, self.bar.n = None, total, done
        self.bar.set_postfix_str(figure, refresh=False)
        self.bar.refresh()


def result_html(folder: Path, raw: dict[str, Any]) -> str:
    """A finished folder: what its report says, and its figures."""
    shown = [folder / "figures" / f"{name}.png" for name in SHOWN]
    pictures = "".join(_picture(path.read_bytes(), path.stem) for path in shown if path.is_file())
    return f"<p><code>{escape(scrub(str(folder)))}</code></p>{_numbers(Report.from_dict(raw, 'The run'))}{pictures}"


def report_html(report: Report) -> str:
    """A report: what became of every layer, the table and the sentences of the card."""
    if not report.layers:
        return _numbers(report)
    with TemporaryDirectory() as place:
        drawn = figures.layer_strip(report, Path(place) / "layers.png").read_bytes()
    return _numbers(report) + _picture(drawn, "layers")


def _numbers(report: Report) -> str:
    size = sizes_html(report.size.dense.parameters, report.size.pruned.parameters)
    said = "".join(f"<p>{escape(scrub(line))}</p>" for line in report_lines(report))
    return size + table_html(tables.table(report), tables.header(report)) + said


def _picture(png: bytes, name: str) -> str:
    return f"<img alt='{name}' style='max-width:100%' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
