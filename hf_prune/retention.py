"""How much of every parent's abilities a stitched model keeps, beside everything it is compared with.

One sweep over the report split: corpora and tasks, for all parents, the result and its baselines alike.
"""

from collections.abc import Sequence
from typing import Any

from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.evaluate import Evaluator
from hf_prune.exam import Exam
from hf_prune.found import Found
from hf_prune.job import Job
from hf_prune.objectives import Measures
from hf_prune.rivals import label


def retention(job: Job, found: Found) -> dict[str, Any] | None:
    """The section of the report; None for a run of one parent.

    Retention is accuracy over that of the best dense parent, which is the one with the best mean; `best` is that of the
    parent that is best at the task.
    """
    if len(job.parents) == 1:
        return None
    windows, recipe = job.evidence["report"], job.recipe
    names = sorted(set(windows.corpora))
    tasks = job.reported
    evaluator = Evaluator(
        job.bank,
        windows.tokens,
        with_updates=False,
        corpora=[names.index(c) for c in windows.corpora],
        exam=lambda dense: Exam(dense, tasks, job.tokenizer, recipe.seed),
    )
    parents = [("parent", label(job, k), job.identity(k)) for k in range(len(job.parents))]
    ours = [("hf_prune", "hf_prune", found.cut)]
    ours += [("repaired", "hf_prune, repaired", found.winner)] if found.winner != found.cut else []
    entries = [*parents, *ours, *((r.name, r.label, r.blueprint) for r in found.rivals)]
    evidence = Fidelity(len(windows.tokens), items=recipe.task_items)
    measures = evaluator.evaluate([b for _, _, b in entries], evidence)
    best = max(range(len(parents)), key=lambda k: _mean(measures[k]))
    rows = [_row(*entry, names, m, measures[: len(parents)], best)
            for entry, m in zip(entries, measures, strict=True)]  # fmt: skip
    return {
        "reference": parents[best][1],
        "corpora": names,
        "tasks": [t.name for t in tasks],
        "items": recipe.task_items,
        "rows": rows,
    }


def _mean(measures: Measures) -> float:
    return sum(t.accuracy for t in measures.tasks) / len(measures.tasks)


def _row(
    name: str,
    what: str,
    blueprint: Blueprint,
    corpora: Sequence[str],
    mine: Measures,
    parents: Sequence[Measures],
    best: int,
) -> dict[str, Any]:
    accuracy = {t.task: t.accuracy for t in mine.tasks}
    reference = {t.task: t.accuracy for t in parents[best].tasks}
    top = {t: max(next(x.accuracy for x in p.tasks if x.task == t) for p in parents) for t in accuracy}
    return {
        "name": name,
        "label": what,
        "digest": blueprint.digest,
        "log_perplexity": mine.text,
        "corpora": dict(zip(corpora, mine.texts, strict=False)),
        "accuracy": accuracy,
        "mean_accuracy": _mean(mine),
        "retention": {t: _share(a, reference[t]) for t, a in accuracy.items()},
        "mean_retention": _share(sum(accuracy.values()), sum(reference.values())),
        "best_retention": {t: _share(a, top[t]) for t, a in accuracy.items()},
    }


def _share(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs else None
