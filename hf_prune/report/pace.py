"""How far a run is, from its events: stage, share, best so far, and the time it still takes."""

import math
import time
from collections.abc import Callable, Mapping

from hf_prune.events import Advanced, Event, Forecasted, Scored, Stage
from hf_prune.report.schema.report import Report
from hf_prune.report.verdicts import duration

TRUSTED = 0.1
"""Share of a stage from which on its own speed says more than the forecast."""
DRIFT = (0.5, 4.0)
"""Between which multiples of the forecast the stages to come are expected, by those that are done."""


class Pace:
    """Folds events as they come; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.begun = self.since = clock()
        self.stage, self.done, self.total, self.figure = "", 0, 0, ""
        self.forecast: Mapping[str, float] = {}
        self.took: dict[str, float] = {}

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case Forecasted():
                self.forecast = event.seconds
            case Stage():
                self.turn(event.name)
            case Scored():
                self.step(event.done, event.total, "best", event.best)
            case Advanced():
                self.step(event.done, event.total, "loss", event.value)

    def turn(self, stage: str) -> None:
        """A stage begins."""
        now = self.clock()
        self.took[self.stage] = self.took.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now
        self.done, self.total, self.figure = 0, 0, ""

    def step(self, done: int, total: int, what: str, value: float | None) -> None:
        """It is so far; `what` says what its value is."""
        self.done, self.total = done, total
        if value is not None and math.isfinite(value):
            self.figure = f"{what} {value:.4g}"

    @property
    def left(self) -> float | None:
        """Seconds until the run is done, about; None where nothing was forecast."""
        if self.stage not in self.forecast:
            return None
        spent = self.took.get(self.stage, 0.0) + self.clock() - self.since
        share = self.done / self.total if self.total else 0.0
        within = spent * (1 - share) / share if share > TRUSTED else self.forecast[self.stage] - spent
        names = list(self.forecast)
        later = sum(self.forecast[name] for name in names[names.index(self.stage) + 1 :])
        return max(within, 0.0) + self._drift() * later

    def _drift(self) -> float:
        """How much slower this machine is than forecast."""
        known = [name for name in self.took if name in self.forecast and name != self.stage]
        expected = sum(self.forecast[name] for name in known)
        seen = sum(self.took[name] for name in known) / expected if expected else 1.0
        return min(max(seen, DRIFT[0]), DRIFT[1])

    @property
    def remaining(self) -> str:
        """The same in words: "about 8 min left"; empty where nothing is known."""
        left = self.left
        return "" if left is None else f"about {roughly(left)} left"

    def line(self) -> str:
        """Where the run is, in one line."""
        steps = f"{self.done:,} of {self.total:,} ({self.done / self.total:.0%})" if self.total else ""
        told = ", ".join(text for text in (steps, self.figure, self.remaining) if text)
        said = f"[{duration(self.clock() - self.begun)}] {self.stage or 'starting'}"
        return f"{said}: {told}" if told else said


def roughly(seconds: float) -> str:
    """As exact as an estimate can know: 20 s, 8 min, 1 h 40 min."""
    if seconds < 55:
        return f"{max(10 * round(seconds / 10), 10)} s"
    minutes = round(seconds / 60) if seconds < 1200 else 5 * round(seconds / 300)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{round(hours / 24)} days"
    return f"{hours} h {minutes} min" if hours and minutes else f"{hours} h" if hours else f"{minutes} min"


def stages_told(seconds: Mapping[str, float]) -> str:
    """A forecast in words: "about 9 min (search 4 min, report 2 min)", the longest stages first."""
    order = sorted(seconds, key=seconds.__getitem__, reverse=True)
    parts = ", ".join(f"{name} {roughly(seconds[name])}" for name in order if seconds[name] >= 5)
    return f"about {roughly(sum(seconds.values()))}" + (f" ({parts})" if parts else "")


def time_verdict(report: Report) -> list[str]:
    """What was left out for want of time; nothing where nothing was."""
    time = report.time
    if not time or not time.left_out and not time.ended:
        return []
    whose = f"the {duration(time.asked)} asked for" if time.asked else "the time that a run takes by default"
    parts = [*time.left_out, *(f"{name} ended after {n:,}" for name, n in time.ended.items())]
    return [f"To fit into {whose}, this run made do with less: {'; '.join(parts)}."]
