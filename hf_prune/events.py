"""What a run tells its caller, in order, and long work as a stream of that.

The progress bar, the app and the journal read the same stream; whoever iterates may stop it. `print(event)` is a line.
"""

import math
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from hf_prune.blueprint import Blueprint, Outcome


@dataclass(frozen=True, slots=True)
class Started:
    """The plan is fixed: what will be cut from what; `columns` names the values of every outcome,
    `parameters` counts those of the dense model."""

    recipe: Any
    base: str
    depth: int
    target: str
    evaluations: int
    columns: tuple[str, ...] = ()
    parameters: int = 0

    def __str__(self) -> str:
        trials = f", at most {self.evaluations:,} evaluations" if self.evaluations else ""
        return f"{self.base}: {self.target}{trials}"


@dataclass(frozen=True, slots=True)
class Forecasted:
    """How long the run will take: seconds by stage, in their order; what is left out for want of time, in words, and
    the seconds after which it ends whatever was forecast (infinite where nothing is bounded)."""

    seconds: dict[str, float]
    left_out: tuple[str, ...] = ()
    limit: float = math.inf

    def __str__(self) -> str:
        less = f"; left out, to take no longer: {'; '.join(self.left_out)}" if self.left_out else ""
        return f"takes about {math.ceil(sum(self.seconds.values()) / 60)} min on this machine{less}"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage begins: pull, sample, calibrate, library, latency, baselines, search, select, tune, repair, assemble,
    heal, report, export or push."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


@dataclass(frozen=True, slots=True)
class Scored:
    """A batch of candidates is scored; `done` of at most `total` trials, `best` at the fullest evidence so far."""

    outcomes: tuple[Outcome, ...]
    done: int
    total: int
    best: float
    cached: int = 0

    def __str__(self) -> str:
        return f"search: {self.done:,} of at most {self.total:,} scored, best {self.best:.4g}"


@dataclass(frozen=True, slots=True)
class Advanced:
    """A long stage moved on: `done` of `total` steps; `value` is the loss of the last one, where steps have one."""

    stage: str
    done: int
    total: int
    value: float | None = None

    def __str__(self) -> str:
        loss = "" if self.value is None else f", loss {self.value:.4g}"
        return f"{self.stage}: {self.done:,} of {self.total:,}{loss}"


@dataclass(frozen=True, slots=True)
class Tuned:
    """The weights of the mixes were learned: the objective on the selection split before and after; `kept` if lower."""

    before: float
    after: float
    kept: bool

    def __str__(self) -> str:
        return f"tuned: objective on the selection split {_change(self)}"


@dataclass(frozen=True, slots=True)
class Repaired:
    """The weights that stay were refitted: mean KL on the selection windows before and after; `kept` if it helped."""

    before: float
    after: float
    kept: bool

    def __str__(self) -> str:
        return f"repaired: KL on the selection split {_change(self)}"


@dataclass(frozen=True, slots=True)
class Healed:
    """Training ended: the loss on the selection windows before, and of the best state; `kept` if that is better."""

    before: float
    after: float
    tokens: int
    kept: bool

    def __str__(self) -> str:
        return f"healed on {self.tokens:,} tokens: loss on the selection split {_change(self)}"


@dataclass(frozen=True, slots=True)
class Assembled:
    """The weights are written and certified under a temporary name."""

    blueprint: Blueprint
    folder: str
    parameters: int

    def __str__(self) -> str:
        return f"assembled: {len(self.blueprint.layers)} layers, {self.parameters:,} parameters, certified"


@dataclass(frozen=True, slots=True)
class Reported:
    """The measurements are in."""

    report: dict[str, Any]

    def __str__(self) -> str:
        return "measured"


@dataclass(frozen=True, slots=True)
class Exported:
    """The result is written for other programs, too; `certified` where one of them has read it as it is meant."""

    path: str
    certified: bool
    said: str

    def __str__(self) -> str:
        return f"exported: {self.path}. {self.said}"


@dataclass(frozen=True, slots=True)
class Pushed:
    """The Hub has it. `changed` is False when it already had exactly this."""

    url: str
    commit: str
    changed: bool

    def __str__(self) -> str:
        return f"{'pushed' if self.changed else 'unchanged'}: {self.url} ({self.commit})"


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything asked for is done; `folder` has its final name."""

    folder: str
    report: dict[str, Any]
    url: str | None = None

    def __str__(self) -> str:
        return f"finished: {self.folder}"


def _change(event: Tuned | Repaired | Healed) -> str:
    kept = "" if event.kept else "; no better, so the weights stay as they were"
    return f"{event.before:.5g} -> {event.after:.5g}{kept}"


Event = (
    Started
    | Forecasted
    | Stage
    | Scored
    | Advanced
    | Tuned
    | Repaired
    | Assembled
    | Healed
    | Reported
    | Exported
    | Pushed
    | Finished
)

T = TypeVar("T")
Tell = Callable[[Event], None]


class Stopped(BaseException):
    """Nobody listens any more. No Exception, so that no library takes it for a failure of its own."""


def exhaust(work: Generator[Any, None, T]) -> T:
    """What a stream of events returns, for whom it alone matters."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def stream_work(work: Callable[[Tell], T]) -> Generator[Event, None, T]:
    """Run `work(tell)` in a thread of its own and yield what it tells, as it tells it.

    Closing the generator, or an interrupt while it waits, makes the next `tell` raise `Stopped` inside the work, and
    waits for that. What the work raises is raised here.

    Returns:
        What `work` returns.
    """
    told: queue.Queue[Event | None] = queue.Queue()
    stop = threading.Event()
    end: dict[str, Any] = {}

    def tell(event: Event) -> None:
        if stop.is_set():
            raise Stopped
        told.put(event)

    def run() -> None:
        try:
            end["value"] = work(tell)
        except BaseException as e:
            end["error"] = e
        finally:
            told.put(None)

    thread = threading.Thread(target=run, name="hf_prune work", daemon=True)
    thread.start()
    try:
        while (event := told.get()) is not None:
            yield event
    finally:
        stop.set()
        thread.join()
    if "error" in end:
        raise end["error"]
    return end["value"]
