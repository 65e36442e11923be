"""The pictures of a report, drawn while a search is under way, and a front whose points can be clicked."""

import math
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hf_prune.app.markup import picture
from hf_prune.app.progress import Point, Progress
from hf_prune.recipe import Recipe
from hf_prune.report.schema.model import Member
from hf_prune.search.pareto import non_dominated

MOST = 2000
"""Points drawn; beyond, every second, third, ... is left out."""
WIDE, HIGH, LEFT, BELOW, EDGE = 900, 380, 76, 52, 16
"""Units of the clickable front: its size, and the margins of its axes."""
CLICK = """
const pick = e => {
  const point = e.target.closest('[data-member]');
  if (point && (e.type === 'click' || e.key === 'Enter')) trigger('select', {index: +point.dataset.member, value: ''});
};
element.addEventListener('click', pick);
element.addEventListener('keydown', pick);
"""
"""What the page does with a click on a point."""
_one_at_a_time = threading.Lock()


def drawn(progress: Progress, recipe: Recipe) -> str:
    """The course of the search, or for a front the sizes and values found so far; empty before the first candidate."""
    searched = [p for p in progress.points if p.stage == "search"]
    points = searched or progress.points
    if not points:
        return ""
    with _one_at_a_time, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "search.png"
        if recipe.every_size and searched:
            _front(searched, recipe, path)
            return picture(path.read_bytes(), "front.png", "Quality against size so far")
        _history(points, recipe, path)
        return picture(path.read_bytes(), "search.png", "Candidates so far" if searched else "Baselines so far")


def _history(points: list[Point], recipe: Recipe, path: Path) -> None:
    from hf_prune.report.figures import search_history

    step = 1 + len(points) // MOST
    first = points[0].number - 1
    rows = [(p.number - first, p.value, p.windows) for p in points[::step]]
    search_history(rows, path, objective=recipe.search.objective)


def _front(points: list[Point], recipe: Recipe, path: Path) -> None:
    from hf_prune.report.figures import FrontPoint, pareto

    alive = [p for p in points if math.isfinite(p.value) and math.isfinite(p.removed)]
    best = set(non_dominated([(-p.removed, p.value) for p in alive]))
    places = [FrontPoint(p.removed, p.value) for p in alive]
    front = [place for i, place in enumerate(places) if i in best]
    others = [place for i, place in enumerate(places) if i not in best]
    pareto(front, others[-MOST:], None, path, objective=recipe.search.objective)


def front(members: Sequence[Member], objective: str) -> str:
    """Quality against size as SVG in the colours of the theme, every model a point to click; empty without a front.

    Args:
        members: of front.json.
        objective: name of the value.
    """
    from hf_prune.report.figures.search import OBJECTIVES

    if not members:
        return ""
    xs, ys = [100 * m.removed_ratio for m in members], [m.value(objective) for m in members]
    across = _Axis(min(xs), max(xs), LEFT, WIDE - EDGE)
    up = _Axis(math.log10(max(min(ys), 1e-9)), math.log10(max(*ys, 1e-9)), HIGH - BELOW, EDGE)
    dots = [
        _dot(i, member, across.at(x), up.at(math.log10(max(y, 1e-9))), y)
        for i, (member, x, y) in enumerate(zip(members, xs, ys, strict=True))
    ]
    ticks = [
        f"<text x='{across.at(x):.1f}' y='{HIGH - BELOW + 20}' text-anchor='middle'>{x}</text>"
        for x in range(0, 101, 10)
        if across.low <= x <= across.high
    ]
    for y in (m * 10.0**e for e in range(-9, 7) for m in (1, 2, 5)):
        if up.low <= math.log10(y) <= up.high:
            at = up.at(math.log10(y))
            ticks.append(f"<path d='M{LEFT} {at:.1f}H{WIDE - EDGE}'/>")
            ticks.append(f"<text x='{LEFT - 8}' y='{at + 4:.1f}' text-anchor='end'>{y:g}</text>")
    name, middle = escape(OBJECTIVES.get(objective, objective)), (HIGH - BELOW + EDGE) / 2
    axes = (
        f"<text x='{(LEFT + WIDE - EDGE) / 2}' y='{HIGH - 8}' text-anchor='middle'>parameters removed (%)</text>"
        f"<text transform='translate(16 {middle}) rotate(-90)' text-anchor='middle'>{name}</text>"
    )
    inside = "".join(ticks) + axes + "".join(dots)
    label = "Quality against size; choose a model"
    return f"<svg class='front' viewBox='0 0 {WIDE} {HIGH}' role='group' aria-label='{label}'>{inside}</svg>"


@dataclass(frozen=True, slots=True)
class _Axis:
    """From values to places; a little room on both sides."""

    least: float
    most: float
    first: float
    last: float

    @property
    def room(self) -> float:
        return 0.04 * (self.most - self.least) or 0.5

    @property
    def low(self) -> float:
        return self.least - self.room

    @property
    def high(self) -> float:
        return self.most + self.room

    def at(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def _dot(number: int, member: Member, x: float, y: float, value: float) -> str:
    knee = ", the knee" if member.knee else ""
    layers = "1 layer" if member.layers == 1 else f"{member.layers} layers"
    words = f"{layers}, {100 * member.removed_ratio:.1f} % removed, {value:.3g}{knee}"
    kind = " class='knee'" if knee else ""
    return (
        f"<circle{kind} data-member='{number}' cx='{x:.1f}' cy='{y:.1f}' r='8' tabindex='0' role='button' "
        f"aria-label='{words}'><title>{words}</title></circle>"
    )
