"""What a search can minimise: pure functions of what the sweep measured, or of the blueprint alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hf_prune.data.task_scores import TaskScores

REVISION = 3
"""Raised when a value gets another meaning, so that journals of the old one are not gone on with."""
DOUBT_WEIGHT = 10.0
"""Of answers beside text in `abilities`: among models, log-perplexity spreads ten to fifteen times as far."""


@dataclass(frozen=True, slots=True)
class Measures:
    """What the sweep knows about one candidate on some evidence.

    kl: mean KL(dense || candidate) of next-token distributions, nats per token.
    nll: mean negative log-likelihood of the text, nats per token.
    update_cosine: mean over output layers and tokens of cos(residual update of the layers it stands for, its own).
    gelaco: mean of the three cosines of GeLaCo's first fitness; NaN unless asked for.
    parameters: of the candidate, removed halves not counted.
    finite: False when a hidden state overflowed or became NaN.
    texts: like nll, per corpus; empty where it was not measured.
    tasks: scores of every task that was asked.
    """

    kl: float
    nll: float
    update_cosine: float
    gelaco: float
    parameters: int
    finite: bool = True
    texts: tuple[float, ...] = ()
    tasks: tuple[TaskScores, ...] = ()

    @property
    def text(self) -> float:
        """Mean over the corpora of the negative log-likelihood, nats per token: mean log-perplexity."""
        return sum(self.texts) / len(self.texts) if self.texts else self.nll

    @property
    def error(self) -> float:
        """Mean over the tasks of the share of items answered wrongly."""
        return sum(1.0 - t.accuracy for t in self.tasks) / len(self.tasks) if self.tasks else math.nan

    @property
    def error_norm(self) -> float:
        """Like `error`, by log-likelihood per character of the option."""
        return sum(1.0 - t.accuracy_norm for t in self.tasks) / len(self.tasks) if self.tasks else math.nan

    @property
    def doubt(self) -> float:
        """Mean over the tasks of -log p(right answer) by log-likelihood per character, at the scale that suits a task
        best (`doubt.doubts`), nats per item."""
        return sum(t.doubt for t in self.tasks) / len(self.tasks) if self.tasks else math.nan


@dataclass(frozen=True, slots=True)
class Objective:
    """A value to minimise; `needs_forward` is False when the blueprint alone decides it, `of_trained` where it is not
    measured of trained candidates."""

    value: Callable[[Measures], float]
    needs_forward: bool = True
    needs_modules: bool = False
    of_trained: bool = True


OBJECTIVES: Mapping[str, Objective] = {
    "kl": Objective(lambda m: m.kl),
    "perplexity": Objective(lambda m: math.exp(min(m.nll, 700.0))),
    "similarity": Objective(lambda m: 1.0 - m.update_cosine, of_trained=False),
    "kl_similarity": Objective(lambda m: m.kl + 1.0 - m.update_cosine, of_trained=False),
    "gelaco_v1": Objective(lambda m: 1.0 - m.gelaco, needs_modules=True, of_trained=False),
    "text": Objective(lambda m: m.text),
    "tasks": Objective(lambda m: m.error),
    "tasks_norm": Objective(lambda m: m.error_norm),
    "doubt": Objective(lambda m: m.doubt),
    "abilities": Objective(lambda m: m.text + DOUBT_WEIGHT * m.doubt),
    "params": Objective(lambda m: float(m.parameters), needs_forward=False),
}


def of_task(column: str) -> Objective:
    """The column `task:NAME`: the share of its items answered wrongly."""
    name = column.removeprefix("task:")

    def wrong(measures: Measures) -> float:
        return next((1.0 - t.accuracy for t in measures.tasks if t.task == name), math.nan)

    return Objective(wrong)


def values(measures: Measures, names: tuple[str, ...]) -> tuple[float, ...]:
    """The named objectives in order; +inf for those that need a forward when the candidate broke."""
    chosen = [OBJECTIVES.get(n) or of_task(n) for n in names]
    raw = [o.value(measures) if measures.finite or not o.needs_forward else math.inf for o in chosen]
    return tuple(v if not math.isnan(v) else math.inf for v in raw)
