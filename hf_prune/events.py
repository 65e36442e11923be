"""What `compress` tells its caller, in order. The CLI bar, the Space and the journal eat the same stream."""

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage begins: pull, calibrate, library, latency, baselines, search, select, tune, repair, assemble, heal,
    report or push."""

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
class Advanced:
    """A long stage moved on: `done` of `total` steps; `value` is the loss of the last one, where steps have one."""

    stage: str
    done: int
    total: int
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """The weights of the mixes were learned: the objective on the selection split before and after; `kept` if lower."""

    before: float
    after: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Repaired:
    """The weights that stay were refitted: mean KL on the selection windows before and after; `kept` if it helped."""

    before: float
    after: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Healed:
    """Training ended: the loss on the selection windows before, and of the best state; `kept` if that is better."""

    before: float
    after: float
    tokens: int
    kept: bool


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


Event = Started | Stage | Scored | Advanced | Tuned | Repaired | Assembled | Healed | Reported | Pushed | Finished
