"""How the time of a run is spent: the budgets decided before it, what is left of it, and where it ran out.

It is kept in the run's folder, so a resumed run has the same budgets, takes the rest of the time, and ends every search
where it was ended before.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_prune.atomic_files import write_text
from hf_prune.planning.budget import PATIENCE, Budget
from hf_prune.planning.forecast import Forecast
from hf_prune.recipe import Recipe
from hf_prune.session.clock import Clock

SPARE = 60.0
"""Seconds that a run may take beyond `PATIENCE` where no time is asked for: small runs are not told from overhead."""
DRIFT = 4.0
"""Most times that what is still to come is taken to be slower than forecast, because what is done was."""
EVERY = 5.0
"""Seconds between two notes of how much time is spent."""


@dataclass(eq=False)
class Timetable:
    """The time of one run.

    asked: the recipe as it was given. budget: what was decided. path: where this is kept. clock: of this attempt.
    spent: seconds of earlier attempts. ended: trials, or steps, after which a search or training was ended, by its
    name.
    """

    asked: Recipe
    budget: Budget
    path: Path
    clock: Clock
    spent: float = 0.0
    ended: dict[str, int] = field(default_factory=dict)
    _noted: float = 0.0

    @classmethod
    def open(cls, asked: Recipe, path: Path, clock: Clock, decide: Callable[[], Budget]) -> "Timetable":
        """Of an earlier attempt at the same recipe, or decided now."""
        if path.is_file():
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["asked"] == asked.digest:
                recipe = asked.replace(time=None, **raw["changes"])
                told = raw["changes"], tuple(raw["left_out"])
                budget = Budget(recipe, asked.machine.time or None, Forecast(raw["forecast"]), *told)
                return cls(asked, budget, path, clock, raw["spent"], raw["ended"])
        return cls(asked, decide(), path, clock)

    @property
    def now(self) -> float:
        """Seconds spent, those of earlier attempts included."""
        return self.spent + time.monotonic() - self.clock.started

    @property
    def end(self) -> float:
        """Seconds after which the run must be done, whatever was forecast."""
        if self.asked.machine.time == 0:
            return math.inf
        return self.budget.seconds or PATIENCE * self.budget.forecast.total + SPARE

    @property
    def rounded(self) -> dict[str, float]:
        """Seconds forecast by stage, as they are told."""
        return {name: round(s, 1) for name, s in self.budget.forecast.seconds.items()}

    def left(self, stage: str) -> float:
        """Seconds that a stage has left, if what follows takes as long as forecast; longer, if stages before did."""
        done = [name for name in self.clock.laps if name in self.budget.forecast.seconds]
        expected = sum(self.budget.forecast.seconds[name] for name in done)
        drift = sum(self.clock.laps[name] for name in done) / expected if expected else 1.0
        return self.end - self.now - min(max(drift, 1.0), DRIFT) * self.budget.forecast.after(stage)

    def limit(self, name: str, stage: str) -> "Limit":
        """Of one search in a stage."""
        return Limit(self, name, stage)

    def note(self) -> None:
        """Write down how much time is spent, now and then."""
        if time.monotonic() - self._noted > EVERY:
            self.save()

    def save(self) -> None:
        """Write everything down."""
        self._noted = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "asked": self.asked.digest,
            "changes": dict(self.budget.changes),
            "left_out": list(self.budget.left_out),
            "forecast": self.budget.forecast.seconds,
            "spent": self.now,
            "ended": self.ended,
        }
        write_text(self.path, json.dumps(found, indent=1))

    def summary(self) -> Mapping[str, Any]:
        """For the report."""
        return {
            "asked": self.budget.seconds,
            "forecast": self.rounded,
            "lowered": dict(self.budget.changes),
            "left_out": self.budget.left_out,
            "ended": dict(self.ended),
        }


@dataclass(frozen=True, eq=False)
class Limit:
    """What `search.drive` asks: whether a search must end."""

    table: Timetable
    name: str
    stage: str

    @property
    def trials(self) -> int | None:
        """Where an earlier attempt ended it."""
        return self.table.ended.get(self.name)

    def over(self) -> bool:
        """Whether its time is up."""
        self.table.note()
        return self.table.left(self.stage) <= 0

    def end(self, trials: int) -> None:
        """Remember where."""
        self.table.ended[self.name] = trials
        self.table.save()
