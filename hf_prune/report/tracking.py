"""What a run tells, also told to a tracker of experiments: the search, and what gives back.

Trackers are optional packages, imported only where one is asked for. None is handed a path or a token.
"""

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from hf_prune.events import Advanced, Event, Healed, Repaired, Scored, Started, Tuned
from hf_prune.recipe import Recipe
from hf_prune.report.redaction import public_recipe

PROJECT = "hf-prune"
LOG = logging.getLogger(__name__)
Figures = Mapping[str, float]


class Tracker(Protocol):
    """Where figures go."""

    def log(self, figures: Figures, step: int) -> None:
        """Take figures; `step` counts evaluations of the search, or steps of what is trained."""

    def close(self) -> None:
        """Nothing follows."""


class _TensorBoard:
    """Files below `TENSORBOARD_LOGGING_DIR`, else below runs/."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(os.environ.get("TENSORBOARD_LOGGING_DIR", "runs")) / name))
        self.writer.add_text("recipe", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(self, figures: Figures, step: int) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Trackio:
    """Its local board, or the Space that `TRACKIO_SPACE_ID` names."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        import trackio

        self.module = trackio
        project, space = os.environ.get("TRACKIO_PROJECT", PROJECT), os.environ.get("TRACKIO_SPACE_ID")
        trackio.init(project=project, name=name, config=dict(settings), space_id=space, embed=False)

    def log(self, figures: Figures, step: int) -> None:
        self.module.log(dict(figures))

    def close(self) -> None:
        self.module.finish()


class _Wandb:
    """The project that `WANDB_PROJECT` names."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(project=project, name=name, config=dict(settings))

    def log(self, figures: Figures, step: int) -> None:
        self.run.log(dict(figures))

    def close(self) -> None:
        self.run.finish()


TRACKERS: Mapping[str, Callable[[str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}
"""By the value of `--track`, which is also the name of the package."""


def tracked(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, whose figures a tracker is told, where the recipe of the run names one.

    A run does not end because its tracker does: that is said once, and nothing more is logged.

    Args:
        events: of a run.
    """
    tracker, name = None, "none"
    with contextlib.closing(events):
        try:
            for event in events:
                try:
                    if isinstance(event, Started) and (name := event.recipe.track) != "none":
                        tracker = _opened(event.recipe)
                    if tracker and (found := figures(event)):
                        # Trackers talk on stdout, which belongs to whoever runs this.
                        with contextlib.redirect_stdout(sys.stderr):
                            tracker.log(*found)
                # Any error of theirs: no network, no login, no disk.
                except Exception as e:
                    LOG.warning("%s takes no more figures (%s); the run goes on.", name, " ".join(str(e).split()))
                    tracker = None
                yield event
        finally:
            if tracker:
                with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                    tracker.close()


def _opened(recipe: Recipe) -> Tracker:
    settings = public_recipe(recipe.changed(), [recipe.base] if Path(recipe.base).exists() else [])
    with contextlib.redirect_stdout(sys.stderr):
        return TRACKERS[recipe.track](Path(recipe.output).resolve().name, settings)


def figures(event: Event) -> tuple[dict[str, float], int] | None:
    """What of an event is a figure, by its name on a board, and the step it belongs to; None where nothing is."""
    match event:
        case Scored():
            found, step = {"search/best": event.best, "search/evaluations": event.done}, event.done
        case Advanced(value=value) if value is not None:
            found, step = {f"{event.stage}/loss": value, f"{event.stage}/step": event.done}, event.done
        case Tuned() | Repaired() | Healed():
            name = {Tuned: "tune", Repaired: "repair", Healed: "heal"}[type(event)]
            found, step = {f"{name}/before": event.before, f"{name}/after": event.after}, 0
        case _:
            return None
    found = {name: float(value) for name, value in found.items() if math.isfinite(value)}
    return (found, step) if found else None
