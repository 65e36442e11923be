"""The picture of a front: quality against size."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from hf_prune.report.figures.canvas import BLUE, PALE, VERMILION, canvas, finish, plain, save
from hf_prune.report.figures.search import OBJECTIVES, value_axis


class FrontPoint(NamedTuple):
    """A model in the plane of size and quality: share of parameters removed (0 to 1), and value of the objective."""

    removed: float
    value: float
    layers: int | None = None
    knee: bool = False


def pareto(
    front: Sequence[FrontPoint],
    others: Sequence[FrontPoint],
    hypervolume: Sequence[Sequence[float]] | None,
    path: str | Path,
    *,
    objective: str,
) -> Path:
    """Quality against size: the non-dominated models, the knee, the dominated ones, and the hypervolume history.

    Args:
        front: models that no other beats on both.
        others: dominated candidates.
        hypervolume: (trials, hypervolume) pairs, or None.
        path: PNG to write.
        objective: name of the value.

    Raises:
        ValueError: the front is empty.
    """
    if not front:
        raise ValueError("The Pareto figure needs at least one model on the front.")
    figure = canvas(4.2)
    grid = figure.add_gridspec(1, 2 if hypervolume else 1, width_ratios=[2.2, 1] if hypervolume else [1])
    axes = figure.add_subplot(grid[0])
    line, rest = _pairs(sorted(front, key=lambda p: p.removed)), _pairs(others)
    value_axis(axes, [v for _, v in line + rest])
    if rest:
        axes.scatter(*zip(*rest, strict=True), s=12, color=PALE, lw=0, label=f"dominated ({len(rest)})", zorder=1)
    label = f"front ({len(line)})"
    axes.plot(*zip(*line, strict=True), color=BLUE, marker="o", ms=5, lw=1.5, drawstyle="steps-post", label=label)
    for point in (p for p in front if p.knee):
        x, y = _pairs([point])[0]
        left = "" if point.layers is None else f", {point.layers} layers"
        knee = f"knee: {x:.0f} % removed{left}"
        axes.plot(x, y, marker="D", ms=10, mfc="none", mec=VERMILION, mew=2, ls="none", label=knee, zorder=4)
    finish(axes, "Quality against size", "parameters removed (%)", OBJECTIVES.get(objective, plain(objective)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", framealpha=0.85, edgecolor="none")
    if hypervolume:
        side = figure.add_subplot(grid[1])
        side.plot(*zip(*hypervolume, strict=True), color=BLUE, lw=1.5, drawstyle="steps-post")
        finish(side, "Progress of the front", "trials", "hypervolume (larger is better)")
        side.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return save(figure, path)


def _pairs(points: Iterable[FrontPoint]) -> list[tuple[float, float]]:
    """Percent removed, and value, of those that do not break."""
    pairs = [(100 * p.removed, p.value) for p in points]
    return [p for p in pairs if math.isfinite(p[1])]
