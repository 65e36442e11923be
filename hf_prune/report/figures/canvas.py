"""What all pictures share: PNG, 1800 pixels wide, drawn on matplotlib's Agg canvas without pyplot or global state.

A picture appears under its name only when it is complete. Colours: Okabe and Ito, "Color Universal Design" (2008).
"""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hf_prune.atomic_files import written

INK, GREY, PALE = "#222222", "#767676", "#C8C8C8"
BLUE, SKY, ORANGE, GREEN, VERMILION, YELLOW = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#F0E442"
PURPLE = "#CC79A7"
WIDTH, DPI = 9.0, 200


def canvas(height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure of `height` inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    if layout:
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG, whole or not at all."""
    path = Path(path)
    with written(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
    return path


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels, a quiet frame."""
    axes.set_title(title, loc="left", weight="bold", size=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ECECEC", lw=0.8)
    axes.set_axisbelow(True)


def plain_ticks(axis: Any) -> None:
    """Write 5, 20, 1000 on a logarithmic axis instead of powers of ten."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def digits(value: float) -> str:
    """Three significant digits, without an exponent up to a million."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"


def height(value: float) -> float:
    """Where a number of the report is drawn: one that is not known as high as an infinite one."""
    return math.inf if math.isnan(value) else value


def plain(text: Any) -> str:
    """Text from outside, without a dollar sign that matplotlib would read as mathematics."""
    return str(text).replace("$", r"\$")
