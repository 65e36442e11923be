"""How much of every parent's abilities a stitched model keeps, beside everything it is compared with.

One sweep over the report split: corpora and tasks, for all parents, the result and its baselines alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.data.tasks import ACCURACIES, Z95, Task, TaskScores
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.objectives import Measures
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session


@dataclass(frozen=True, eq=False)
class Standings:
    """Parents, the result and what it is compared with, on the report split.

    rows: (name, label, model), the parents first, then ours. measures: of each. corpora: names, in the order of the
    measures' texts. tasks: with the items in the order they were asked.
    """

    rows: tuple[tuple[str, str, Blueprint], ...]
    measures: tuple[Measures, ...]
    corpora: tuple[str, ...]
    tasks: tuple[Task, ...]

    def answers(self, blueprint: Blueprint) -> dict[str, TaskScores]:
        """By task, of one of the models."""
        number = next(n for n, row in enumerate(self.rows) if row[2] == blueprint)
        return {t.task: t for t in self.measures[number].tasks}


def standings(
    session: Session, winner: Winner, progress: Callable[[int, int], None] = lambda done, total: None
) -> Standings | None:
    """Everything in one sweep, which tells its progress; None for a run of one parent."""
    if len(session.inputs.parents) == 1:
        return None
    windows, rows = session.evidence.windows["report"], _rows(session, winner)
    names = sorted(set(windows.corpora))
    evaluator = Evaluator(
        session.bank,
        windows.tokens,
        with_updates=False,
        corpora=[names.index(c) for c in windows.corpora],
        exam=lambda dense: Exam(dense, session.evidence.reported, session.inputs.tokenizer, session.recipe.seed),
    )
    evidence = Fidelity(len(windows.tokens), items=session.recipe.task_items)
    measures = evaluator.evaluate([blueprint for _, _, blueprint in rows], evidence, progress)
    return Standings(tuple(rows), measures, tuple(names), tuple(evaluator.exam.tasks))


def retention(session: Session, winner: Winner, known: Standings) -> dict[str, Any]:
    """The section of the report.

    Retention is accuracy over that of the best dense parent, which is the one with the best mean; `best` is that of the
    parent that is best at the task. Names that end in `_norm` say the same of length-normalised accuracy, which has a
    reference of its own. `difference` is the mean accuracy of a row minus that of the winner; `doubt` and what ends in
    `_doubt` are in nats per item (`TaskScores.doubts`), where less is better.
    """
    dense = known.measures[: len(session.inputs.parents)]
    ours = known.measures[len(dense) + (winner.blueprint != winner.cut)]
    best = {how: max(range(len(dense)), key=lambda k, how=how: _mean(dense[k], how)) for how in ACCURACIES}
    rows = []
    for (name, what, blueprint), m in zip(known.rows, known.measures, strict=True):
        row = {"name": name, "label": what, "digest": blueprint.digest, "log_perplexity": m.text}
        row["corpora"] = dict(zip(known.corpora, m.texts, strict=False))
        for how, suffix in ACCURACIES.items():
            row |= {f"{k}{suffix}": v for k, v in _kept(m, dense, best[how], how).items()}
            row[f"difference{suffix}"], row[f"difference_ci{suffix}"] = difference(m, ours, how)
        row["doubt"] = m.doubt
        row["difference_doubt"], row["difference_ci_doubt"] = difference(m, ours, "doubts")
        rows.append(row)
    return {
        **{f"reference{suffix}": known.rows[best[how]][1] for how, suffix in ACCURACIES.items()},
        "corpora": list(known.corpora),
        "tasks": [t.name for t in known.tasks],
        "items": session.recipe.task_items,
        "rows": rows,
    }


def _rows(session: Session, winner: Winner) -> list[tuple[str, str, Blueprint]]:
    """(name, label, model) of every row: the parents first, then ours, then what it is compared with."""
    parents = [("parent", name, session.inputs.identity(k)) for k, name in enumerate(session.inputs.names)]
    ours = [("hf_prune", "hf_prune", winner.cut)]
    ours += [("repaired", "hf_prune, repaired", winner.blueprint)] if winner.blueprint != winner.cut else []
    return [*parents, *ours, *((r.name, r.label, r.blueprint) for r in winner.baselines)]


def difference(theirs: Measures, ours: Measures, how: str) -> tuple[float, list[float]]:
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
    return float(middle), [float(middle - half), float(middle + half)]


def _mean(measures: Measures, how: str) -> float:
    return sum(_accuracies(measures, how).values()) / len(measures.tasks)


def _accuracies(measures: Measures, how: str) -> dict[str, float]:
    return {t.task: float(getattr(t, how).mean()) for t in measures.tasks}


def _kept(mine: Measures, parents: Sequence[Measures], best: int, how: str) -> dict[str, Any]:
    """Accuracy and retention, task by task and on average."""
    accuracy, reference = _accuracies(mine, how), _accuracies(parents[best], how)
    top = {t: max(_accuracies(p, how)[t] for p in parents) for t in accuracy}
    return {
        "accuracy": accuracy,
        "mean_accuracy": _mean(mine, how),
        "retention": {t: _share(a, reference[t]) for t, a in accuracy.items()},
        "mean_retention": _share(sum(accuracy.values()), sum(reference.values())),
        "best_retention": {t: _share(a, top[t]) for t, a in accuracy.items()},
    }


def _share(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs else None
