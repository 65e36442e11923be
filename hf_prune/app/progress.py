"""A run while it goes on: its events folded into what a page shows."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

from hf_prune.app.markup import bar, note, strip
from hf_prune.app.runs import State
from hf_prune.methods import METHODS
from hf_prune.methods.method import Facts
from hf_prune.recipe import Recipe
from hf_prune.report.fates import fates
from hf_prune.report.pace import Pace

WORDS = {
    "queued": "Waiting for its turn.",
    "stopped": "Stopped.",
    "failed": "This run failed.",
    "done": "Done: compare the result with the model it came from, or publish it.",
}
NOTES = {"failed": "bad", "stopped": "warn", "done": "good", "queued": "plain"}


@dataclass(frozen=True, slots=True)
class Point:
    """A scored candidate."""

    number: int
    value: float
    windows: int
    stage: str
    removed: float


@dataclass
class Progress:
    """Where a run is.

    `points` are the scored candidates: number, value of the objective, windows it was scored on, which stage asked for
    it, and the share of parameters removed (0 to 1). `at` is when the last event came, in seconds.
    """

    stage: str = ""
    detail: str = ""
    goal: str = ""
    depth: int = 0
    done: int = 0
    total: int = 0
    best: float = math.inf
    genome: tuple[int, ...] = ()
    message: str = ""
    count: int = 0
    points: list[Point] = field(default_factory=list)
    parameters: int = 0
    at: float = 0.0
    pace: Pace = field(init=False)
    _columns: tuple[str, ...] = ()
    _least: float = math.inf
    _windows: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace(lambda: self.at)

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> "Progress":
        """Fold the events of a run."""
        found = cls()
        for event in events:
            found.count += 1
            found.at = event.get("at", found.at)
            getattr(found, f"_{event['event'].lower()}", lambda _: None)(event)
        return found

    def _started(self, event: Mapping[str, Any]) -> None:
        self.goal, self.depth, self.parameters = event["target"], event["depth"], event["parameters"]
        self._columns = tuple(event["columns"])

    def _forecasted(self, event: Mapping[str, Any]) -> None:
        self.pace.forecast = event["seconds"]

    def _stage(self, event: Mapping[str, Any]) -> None:
        self.pace.turn(event["name"])
        self.stage, self.detail = event["name"], event["detail"]
        self.done = self.total = 0

    def _advanced(self, event: Mapping[str, Any]) -> None:
        self.done, self.total = event["done"], event["total"]
        self.pace.step(self.done, self.total, "", None)

    def _scored(self, event: Mapping[str, Any]) -> None:
        self._advanced(event)
        for outcome in event["outcomes"]:
            self._point(outcome["trial"], [float(v) for v in outcome["values"]])
        if self.stage == "search":
            self.best = float(event["best"])

    def _failed(self, event: Mapping[str, Any]) -> None:
        self.message = event["message"]

    _stopped = _failed

    def _point(self, trial: Mapping[str, Any], values: list[float]) -> None:
        windows = trial["fidelity"]["sequences"]
        left = values[self._columns.index("params")] if "params" in self._columns else math.nan
        removed = 1 - left / self.parameters if self.parameters else math.nan
        self.points.append(Point(len(self.points) + 1, values[0], windows, self.stage, removed))
        # Values on different amounts of text do not compare.
        better = windows > self._windows or windows == self._windows and values[0] < self._least
        if self.stage == "search" and better and math.isfinite(values[0]):
            self._windows, self._least, self.genome = windows, values[0], tuple(trial["genome"])


def html(progress: Progress, state: State | None, ahead: int, now: float | None = None) -> str:
    """The state of a run in words, with a bar while it is at work; `now` is the time in seconds, as events have it."""
    if state == "running":
        best = f"; best so far {progress.best:.4g}" if math.isfinite(progress.best) else ""
        goal = f"<p>{escape(progress.goal)}</p>" if progress.goal else ""
        where = f"{progress.stage}: {progress.detail}" if progress.detail else progress.stage or "starting"
        progress.at = max(progress.at, now or progress.at)
        left = f"; {progress.pace.remaining}" if progress.pace.remaining else ""
        steps = f" ({progress.done:,} of {progress.total:,})" if progress.total else ""
        return goal + bar(progress.done, progress.total, f"{where}{steps}{best}{left}")
    words = WORDS.get(state or "", "No run yet: choose a model and a method first.")
    if state == "queued" and ahead:
        words = f"Waiting: {ahead} {'run is' if ahead == 1 else 'runs are'} before yours."
    said = progress.message or words if state == "stopped" else f"{words} {progress.message}".strip()
    return note(said, NOTES.get(state or "", "plain"))


def layers(progress: Progress, recipe: Recipe) -> str:
    """The strip of the best candidate so far, where its genome tells the layers."""
    method = METHODS[recipe.method]
    if "layers" not in method.genes or not progress.genome or not progress.depth:
        return ""
    model = method.space(recipe, Facts(progress.depth, parents=1 + len(recipe.variants))).decode(progress.genome)
    specs = getattr(model, "layers", model)
    return strip(fates(specs, progress.depth), "Best candidate so far: layers of the original model.")
