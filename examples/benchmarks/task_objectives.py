"""Which value on few items tells which stitched model will answer other items rightly?

Random models out of the bundled base and its specialists, a quarter of the layers gone, each measured on the search
items and on the report items of all six tasks. The table has the rank correlation (Spearman) of every value on the
former with accuracy (acc) and length-normalised accuracy (acc_norm) on the latter. Models whose text is hopeless are
left out, since anything tells those.

    OMP_NUM_THREADS=1 python examples/benchmarks/task_objectives.py
"""

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from stitch_memory import drawn, scorer_of

from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_sources import load_tasks
from hf_prune.data.tasks import Task
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.objectives import OBJECTIVES, Measures
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.metrics.rank_correlation import spearman
from hf_prune.recipe import Recipe
from hf_prune.session.session import Session, open_session

VALUES = ("text", "tasks", "tasks_norm", "doubt", "abilities")


def main() -> None:
    """Measure all models and print a markdown table."""
    a = arguments()
    with tempfile.TemporaryDirectory() as home:
        session = opened(Path(home))
        models = drawn(scorer_of(session), a.models, np.random.default_rng(a.seed))
        measured = measures(session, models, a.batch)
    apart = [(split(m, "search"), split(m, "report")) for m in measured]
    known = [pair for pair in apart if pair[0].text < a.hopeless]
    spread = {name: np.std([OBJECTIVES[name].value(s) for s, _ in known]) for name in VALUES}
    print(f"{len(known)} of {len(apart)} models, log-perplexity below {a.hopeless}\n")
    print("| on the search items | with acc on the report items | with acc_norm | spread among the models |")
    print("|---|---:|---:|---:|")
    for name in VALUES:
        cells = (f"{correlation(name, known, how):.2f}" for how in ("accuracy", "accuracy_norm"))
        print(f"| {name} | {' | '.join(cells)} | {spread[name]:.3f} |")


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", type=int, default=32)
    p.add_argument("--batch", type=int, default=8, help="models that go through the layers together")
    p.add_argument("--hopeless", type=float, default=4.5, help="log-perplexity from which a model is left out")
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def opened(home: Path) -> Session:
    """Base and three variants."""
    demo = demo_folder()
    special = demo / "specialists"
    return open_session(
        Recipe.of(
            base=str(demo / "storymath-16l"),
            variants=tuple(str(special / name) for name in ("plays", "code", "qa")),
            data=(str(demo / "text"), str(special / "text")),
            method="stitch",
            drop_layers=4,
            output=str(home / "out"),
        )
    )


def measures(session: Session, blueprints: list[Blueprint], batch: int) -> list[Measures]:
    """On the search windows, and on search and report items of every task."""
    demo = demo_folder()
    tasks = [
        replace(task, name=f"{task.name}.{side}")
        for side in ("search", "report")
        for folder in (demo, demo / "specialists")
        for task in asked(folder / "tasks", side)
    ]
    windows = session.evidence.windows["search"]
    evaluator = Evaluator(
        session.bank,
        windows.tokens,
        with_updates=False,
        corpora=[session.evidence.corpora.index(c) for c in windows.corpora],
        exam=lambda dense: Exam(dense, tasks, session.inputs.tokenizer),
    )
    evidence = Fidelity(len(windows.tokens), items=evaluator.exam.items)
    found: list[Measures] = []
    for first in range(0, len(blueprints), batch):
        begin = time.perf_counter()
        found += evaluator.evaluate(blueprints[first : first + batch], evidence)
        print(f"{len(found)} of {len(blueprints)} models, {time.perf_counter() - begin:.0f} s", flush=True)
    return found


def asked(folder: Path, side: str) -> tuple[Task, ...]:
    """Tasks of one side of the split."""
    files = [str(path) for path in sorted(folder.glob(f"*.{side}.jsonl"))]
    return load_tasks(files, side) if files else ()


def split(m: Measures, side: str) -> Measures:
    """The same with the tasks of one side."""
    return replace(m, tasks=tuple(t for t in m.tasks if t.task.endswith(side)))


def correlation(name: str, known: list[tuple[Measures, Measures]], how: str) -> float:
    """Spearman's, positive where a lower value means more right answers."""
    searched = [-OBJECTIVES[name].value(s) for s, _ in known]
    right = [math.fsum(getattr(t, how) for t in r.tasks) for _, r in known]
    return spearman(searched, right)


if __name__ == "__main__":
    main()
