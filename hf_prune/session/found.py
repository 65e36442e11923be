"""What a search brings home."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_prune.blueprint import Blueprint, Outcome

LABELS = {
    "random": "random (median of 5)",
    "last": "last layers",
    "shortgpt": "ShortGPT (block influence)",
    "window": "best window (Gromov et al.)",
    "greedy": "SLEB (greedy)",
}


@dataclass(frozen=True, slots=True)
class Rival:
    """A baseline's cut of the same size and its values on the search windows, in the job's columns."""

    name: str
    blueprint: Blueprint
    removed: tuple[int, ...]
    values: tuple[float, ...]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What the search brought home: the cut, and the winner it became by repair (the same without one)."""

    cut: Blueprint
    winner: Blueprint
    finalists: tuple[Outcome, ...] = ()
    rivals: tuple[Rival, ...] = ()
    front: list[dict[str, Any]] | None = None
    layer_tokens: int = 0
    repair: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None
    selection: Mapping[str, Any] | None = None
