"""What `compress` tells its caller, in order. The CLI bar, the Space and the journal eat the same stream."""

from dataclasses import dataclass
from typing import Any

from hf_prune.blueprint import Blueprint, Outcome


@dataclass(frozen=True, slots=True)
class Started:
    """The plan is fixed: what will be cut from what."""

    recipe: Any
    base: str
    depth: int
    target: str
    evaluations: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the pipeline begins: pull, calibrate, search, baselines, assemble, report, card, push."""

    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A batch of candidates is scored; `done` of at most `total` trials, `best` at the fullest evidence so far."""

    outcomes: tuple[Outcome, ...]
    done: int
    total: int
    best: float
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Assembled:
    """The weights are written and certified under a temporary name."""

    blueprint: Blueprint
    folder: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Reported:
    """The measurements are in."""

    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pushed:
    """The Hub has it. `changed` is False when it already had exactly this."""

    url: str
    commit: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything asked for is done; `folder` has its final name."""

    folder: str
    report: dict[str, Any]
    url: str | None = None


Event = Started | Stage | Scored | Assembled | Reported | Pushed | Finished
