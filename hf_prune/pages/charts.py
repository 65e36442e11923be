"""The pictures of a report, drawn while a search is under way."""

import math
import tempfile
import threading
from pathlib import Path

from hf_prune.pages.markup import picture
from hf_prune.pages.progress import Point, Progress
from hf_prune.recipe import Recipe
from hf_prune.search.pareto import non_dominated

MOST = 2000
"""Points drawn; beyond, every second, third, ... is left out."""
_one_at_a_time = threading.Lock()


def drawn(progress: Progress, recipe: Recipe) -> str:
    """The course of the search, or for a front the sizes and values found so far; empty before the first candidate."""
    searched = [p for p in progress.points if p.stage == "search"]
    points = searched or progress.points
    if not points:
        return ""
    with _one_at_a_time, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "search.png"
        if recipe.search == "nsga2" and searched:
            _front(searched, recipe, path)
            return picture(path.read_bytes(), "front.png", "Quality against size so far")
        _history(points, recipe, path)
        return picture(path.read_bytes(), "search.png", "Candidates so far" if searched else "Baselines so far")


def _history(points: list[Point], recipe: Recipe, path: Path) -> None:
    from hf_prune.figures import search_history

    step = 1 + len(points) // MOST
    first = points[0].number - 1
    rows = [(p.number - first, p.value, p.windows) for p in points[::step]]
    search_history(rows, path, objective=recipe.objective)


def _front(points: list[Point], recipe: Recipe, path: Path) -> None:
    from hf_prune.figures import pareto

    alive = [p for p in points if math.isfinite(p.value) and math.isfinite(p.removed)]
    best = set(non_dominated([(-p.removed, p.value) for p in alive]))
    rows = [{"removed_ratio": p.removed, recipe.objective: p.value} for p in alive]
    front = [row for i, row in enumerate(rows) if i in best]
    pareto(front, [row for i, row in enumerate(rows) if i not in best][-MOST:], None, path, objective=recipe.objective)
