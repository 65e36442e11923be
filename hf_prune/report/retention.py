"""How much of every parent's abilities a stitched model keeps, beside everything it is compared with.

One sweep over the report split: corpora and tasks, for all parents, the result and its baselines alike. A run with one
parent has its figures from there, too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.data.task_scores import ACCURACIES, TaskScores
from hf_prune.data.tasks import Task
from hf_prune.evaluation.evaluator import Evaluator, TokenScores
from hf_prune.evaluation.objectives import Measures
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.report.schema.scores import Kept, Retention, RetentionRow
from hf_prune.report.schema.section import Interval
from hf_prune.report.statistics import Z95
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session


@dataclass(frozen=True, eq=False)
class Standings:
    """Parents, the result and what it is compared with, on the report split.

    rows: (name, label, model), the parents first, then ours. measures, tokens: of each. corpora: names, in the order of
    the measures' texts. evaluator: over the report windows, compared with the best parent.
    """

    rows: tuple[tuple[str, str, Blueprint], ...]
    measures: tuple[Measures, ...]
    tokens: tuple[TokenScores, ...]
    corpora: tuple[str, ...]
    evaluator: Evaluator

    @property
    def tasks(self) -> tuple[Task, ...]:
        """With the items in the order they were asked."""
        return tuple(self.evaluator.exam.tasks) if self.evaluator.exam else ()

    def answers(self, blueprint: Blueprint) -> dict[str, TaskScores]:
        """By task, of one of the models; nothing where it breaks or was not asked."""
        return {t.task: t for t in self.measures[self._number(blueprint)].tasks}

    def text(self, blueprint: Blueprint) -> TokenScores:
        """Of one of the models."""
        return self.tokens[self._number(blueprint)]

    def _number(self, blueprint: Blueprint) -> int:
        return next(n for n, row in enumerate(self.rows) if row[2] == blueprint)


def standings(
    session: Session, winner: Winner, progress: Callable[[int, int], None] = lambda done, total: None
) -> Standings:
    """Everything in two sweeps that tell their progress: what is asked tasks, and what is not, which are the baselines
    of a run with one parent."""
    windows, rows = session.evidence.windows["report"], _rows(session, winner)
    names, parents = sorted(set(windows.corpora)), len(session.inputs.parents)
    tasks = session.evidence.reported
    evaluator = Evaluator(
        session.bank,
        windows.tokens,
        with_updates=False,
        corpora=[names.index(c) for c in windows.corpora],
        exam=(lambda dense: Exam(dense, tasks, session.inputs.tokenizer, session.recipe.seed)) if tasks else None,
    )
    if session.dense:
        evaluator.teach([session.dense] * len(windows.tokens))
    text = Fidelity(len(windows.tokens))
    whole = replace(text, items=session.recipe.tasks.items if tasks else 0)
    asked = rows if parents > 1 else rows[: len(rows) - len(winner.baselines)]
    parts = [(asked, whole), (rows[len(asked) :], text)]
    found = []
    for number, (some, evidence) in enumerate(part for part in parts if part[0]):
        blueprints = [blueprint for _, _, blueprint in some]
        shift = partial(_shifted, progress, number, 2 if len(asked) < len(rows) else 1)
        found += evaluator.examine(blueprints, evidence, shift)
    measures, tokens = zip(*found, strict=True)
    return Standings(tuple(rows), measures, tokens, tuple(names), evaluator)


def _shifted(progress: Callable[[int, int], None], number: int, of: int, done: int, total: int) -> None:
    progress(number * total + done, of * total)


def retention(session: Session, winner: Winner, known: Standings) -> Retention | None:
    """The section of the report; None for a run of one parent, or without tasks.

    `difference` is the mean accuracy of a row minus that of the winner; doubts are `TaskScores.doubts`.
    """
    if len(session.inputs.parents) == 1 or not known.tasks:
        return None
    dense = known.measures[: len(session.inputs.parents)]
    ours = known.measures[len(dense) + (winner.blueprint != winner.cut)]
    best = {how: max(range(len(dense)), key=lambda k, how=how: _mean(dense[k], how)) for how in ACCURACIES}
    rows = []
    for (name, what, blueprint), m in zip(known.rows, known.measures, strict=True):
        by_accuracy = [(suffix, _kept(m, ours, dense, best[how], how)) for how, suffix in ACCURACIES.items()]
        behind, behind_ci = difference(m, ours, "doubts")
        row = RetentionRow(
            name=name,
            label=what,
            digest=blueprint.digest,
            log_perplexity=m.text,
            corpora=dict(zip(known.corpora, m.texts, strict=False)),
            **{f"{field}{suffix}": value for suffix, kept in by_accuracy for field, value in asdict(kept).items()},
            doubt=m.doubt,
            difference_doubt=behind,
            difference_ci_doubt=behind_ci,
        )
        rows.append(row)
    return Retention(
        **{f"reference{suffix}": known.rows[best[how]][1] for how, suffix in ACCURACIES.items()},
        corpora=known.corpora,
        tasks=tuple(t.name for t in known.tasks),
        items=session.recipe.tasks.items,
        rows=tuple(rows),
    )


def _rows(session: Session, winner: Winner) -> list[tuple[str, str, Blueprint]]:
    """(name, label, model) of every row: the parents first, then ours, then what it is compared with."""
    parents = [("parent", name, session.inputs.identity(k)) for k, name in enumerate(session.inputs.names)]
    ours = [("hf_prune", "hf_prune", winner.cut)]
    ours += [("repaired", "hf_prune, repaired", winner.blueprint)] if winner.blueprint != winner.cut else []
    return [*parents, *ours, *((r.name, r.label, r.blueprint) for r in winner.baselines)]


def difference(theirs: Measures, ours: Measures, how: str) -> tuple[float, Interval]:
    """Mean over the tasks of what items score, theirs minus ours, and its 95 % interval on the same items.

    Args:
        theirs: has the tasks of `ours`, in the same order and with the same items.
        ours: what it is compared with.
        how: `correct`, `correct_norm` or `doubts`.
    """
    pairs = zip(theirs.tasks, ours.tasks, strict=True)
    gaps = [getattr(t, how).astype(float) - getattr(o, how) for t, o in pairs]
    middle = sum(g.mean() for g in gaps) / len(gaps)
    # The tasks' items are independent: the variance of their mean is the sum of theirs.
    half = Z95 * sum(g.var() / len(g) for g in gaps) ** 0.5 / len(gaps)
    return float(middle), (float(middle - half), float(middle + half))


def _mean(measures: Measures, how: str) -> float:
    return sum(_accuracies(measures, how).values()) / len(measures.tasks)


def _accuracies(measures: Measures, how: str) -> dict[str, float]:
    return {t.task: float(getattr(t, how).mean()) for t in measures.tasks}


def _kept(mine: Measures, ours: Measures, parents: Sequence[Measures], best: int, how: str) -> Kept:
    """Accuracy and retention, task by task and on average, and the distance to ours."""
    accuracy, reference = _accuracies(mine, how), _accuracies(parents[best], how)
    top = {t: max(_accuracies(p, how)[t] for p in parents) for t in accuracy}
    ahead, ci = difference(mine, ours, how)
    return Kept(
        accuracy=accuracy,
        mean_accuracy=_mean(mine, how),
        retention={t: _share(a, reference[t]) for t, a in accuracy.items()},
        mean_retention=_share(sum(accuracy.values()), sum(reference.values())),
        best_retention={t: _share(a, top[t]) for t, a in accuracy.items()},
        difference=ahead,
        difference_ci=ci,
    )


def _share(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.nan
