"""What every method makes of one real model, at several sizes, beside what it is compared with: one table.

    python examples/benchmarks/real.py --model MODEL --data FOLDER --tasks FILE ... --output FOLDER \
        [--drop 3 6 9] [--methods collapse width ...] [--seeds 0 1 2] [--heal 2M] [--bare] [FLAGS OF compress]

Every cell is on the report split, which no search and no choice has seen. A run is a `compress` of its own, kept in
OUTPUT: an interrupted table goes on where it was, and another one can be made of the same runs. SIZE is the parameters
of so many layers, whatever they are taken from. Seeds whose search ends with the same model share a row. Speed is
measured in the runs, in alternating rounds. Tasks are asked of the bare removals of layers all at once, at the end.
"""

import argparse
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402

from hf_prune.blueprint import Blueprint, Fidelity  # noqa: E402
from hf_prune.data.task_scores import TaskScores  # noqa: E402
from hf_prune.evaluation.evaluator import Evaluator, TokenScores  # noqa: E402
from hf_prune.evaluation.packed_tasks import Exam  # noqa: E402
from hf_prune.events import Event, Finished, Forecasted, Stage  # noqa: E402
from hf_prune.methods import METHODS  # noqa: E402
from hf_prune.pipeline import compress  # noqa: E402
from hf_prune.recipe import Recipe  # noqa: E402
from hf_prune.report.schema.report import Report  # noqa: E402
from hf_prune.report.statistics import interval, perplexity, wilson  # noqa: E402
from hf_prune.session.session import Session, open_session  # noqa: E402

STAGES = {"cut": "", "repaired": " + repair", "healed": " + heal"}
NOTHING = "–"


@dataclass(slots=True)
class Row:
    """A model of the table: its cells by column, and the seeds that end with it.

    key: what tells it from others of its size. removed: layers that are gone, if that is all that was done to it.
    """

    size: int
    key: tuple[str, object]
    name: str
    cells: dict[str, str]
    removed: tuple[int, ...] | None = None
    seeds: list[int] = field(default_factory=list)


def main() -> None:
    """Run what is missing, and print the table."""
    a, flags = arguments()
    session = open_session(
        Recipe.of(base=a.model, output=str(Path(a.output, "judge")), drop_layers=a.drop[0], **shared(a))
    )
    rows: list[Row] = []
    layer = session.inputs.base.layer_parameters / session.inputs.base.parameters
    for size in a.drop:
        for method in a.methods:
            for seed in a.seeds:
                for row in rows_of(method, size, seed, made(a, flags, method, size, seed, layer)):
                    same = next((r for r in rows if (r.size, r.key) == (row.size, row.key)), None)
                    rows += [] if same else [row]
                    (same or row).seeds.append(seed)
    dense = judged(session, rows)
    columns = list(dict.fromkeys(name for row in [dense, *rows] for name in row.cells))
    print(f"\n| layers' worth gone | model | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}")
    for row in [dense, *rows]:
        # What needs no search has the same cut whatever the seed.
        seeds = (
            f" (seeds {', '.join(map(str, row.seeds))})" if len(a.seeds) > 1 and len(row.seeds) < len(a.seeds) else ""
        )
        cells = (row.cells.get(column, NOTHING) for column in columns)
        print(f"| {row.size or ''} | {row.name}{seeds} | {' | '.join(cells)} |")


def arguments() -> tuple[argparse.Namespace, dict[str, Any]]:
    """Command line, and what is handed to every run."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True, help="folder of NAME.{search,selection,heal,report}.jsonl")
    p.add_argument("--tasks", nargs="+", default=[], help="files of tasks of the report")
    p.add_argument("--items", type=int, default=500, help="of every task")
    p.add_argument("--windows", type=int, default=96, help="of the report")
    p.add_argument("--output", required=True)
    p.add_argument("--drop", type=int, nargs="+", default=[3, 6, 9])
    methods = ["collapse", "collapse/evopress", "width", "width+depth"]
    p.add_argument("--methods", nargs="+", default=methods, help="METHOD or METHOD/SEARCHER")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--heal", default="2M")
    p.add_argument("--bare", action="store_true", help="the cut that is best without repair")
    a, rest = p.parse_known_args()
    flags = dict(zip((r.removeprefix("--").replace("-", "_") for r in rest[::2]), rest[1::2], strict=True))
    if "baselines" in flags:
        flags["baselines"] = tuple(flags["baselines"].split(","))
    return a, flags


def shared(a: argparse.Namespace) -> dict[str, object]:
    """Fields of every run."""
    asked = {"data": (a.data,), "tasks": tuple(a.tasks), "task_items": a.items}
    return {**asked, "report_sequences": a.windows}


def made(a: argparse.Namespace, flags: Mapping[str, Any], method: str, size: int, seed: int, layer: float) -> Report:
    """The report of one run, now or earlier; a layer is so large a share of the model."""
    output = Path(a.output, f"{method.replace('/', '-')}-{size}-{seed}")
    method, _, searcher = method.partition("/")
    kind = METHODS[method]
    asked = {**shared(a), "repair": not (kind.refits or a.bare), "heal": a.heal, "seed": seed, "output": str(output)}
    asked |= {"drop_layers": size} if "layers" in kind.genes else {"ratio": size * layer}
    asked |= {"search": searcher} if searcher else {}
    recipe = Recipe.of(base=a.model, method=method, **(asked | flags))
    for event in compress(recipe):
        told(output.name, event)
        if isinstance(event, Finished):
            return Report.load(output / "report.json")
    raise AssertionError("compress ended without Finished")


def told(name: str, event: Event) -> None:
    """Progress of a run."""
    if isinstance(event, Forecasted):
        print(f"{name}: about {sum(event.seconds.values()) / 60:.0f} minutes", flush=True)
    elif isinstance(event, Stage):
        print(f"{name}: {event.name} {event.detail}", flush=True)


def rows_of(method: str, size: int, seed: int, report: Report) -> Iterator[Row]:
    """What a run is compared with, then its own stages."""
    layers = tuple(f.source for f in report.layers if f.fate == "removed")
    bare = all(f.fate in ("kept", "removed") for f in report.layers)
    for b in report.baselines:
        if b.name != "hf_prune":
            cells = {"perplexity": between(b.perplexity, b.ci), "KL": f"{b.kl:.3f}"}
            yield Row(size, (b.name, b.removed or b.blueprint), f"{method}: {b.label}", cells, b.removed)
    if report.found_by:
        print(f"{method}, {size}, seed {seed}: the result is the cut of {report.found_by}")
    for stage in report.stages.names[1:]:
        text = {corpus: by.of(stage) for corpus, by in report.stages.text.items()}
        cells = {"perplexity": between(text["all"].perplexity, text["all"].ci), "KL": f"{text['all'].kl:.3f}"}
        cells |= {c: f"{row.perplexity:.1f}" for c, row in text.items() if c != "all"}
        tasks = {name: by.of(stage).pruned for name, by in report.stages.tasks.items()}
        cells |= {name: percents(t.accuracy_norm, t.ci_norm) for name, t in tasks.items()}
        answered = [(by.of(stage), by.of(stage).chance) for by in report.stages.tasks.values()]
        cells |= kept(
            sum(task.pruned.accuracy_norm - chance for task, chance in answered),
            sum(task.dense.accuracy_norm - chance for task, chance in answered),
        ) | {"gap closed": f"{text['all'].closed:.0%}" if stage != "cut" else NOTHING}
        if stage == report.stages.names[-1]:
            cells |= speed(report)
        what = report.digest if stage != "cut" or not bare else layers
        key = (stage, what if stage != "healed" else seed)
        yield Row(size, key, f"**{method}{STAGES[stage]}**", cells, layers if stage == "cut" and bare else None)


def kept(above: float, dense: float) -> dict[str, str]:
    """Share of the summed accuracies above chance that is left of the dense model's."""
    return {"above chance kept": f"{above / dense:.0%}"} if dense > 0 else {}


def speed(report: Report) -> dict[str, str]:
    """Of the result, and what it took to make it."""
    gains = {"prefill": report.speed.prefill, "decode": report.speed.decode} if report.speed else {}
    cells = {k: f"× {g.value:.2f} ({g.ci[0]:.2f}–{g.ci[1]:.2f})" for k, g in gains.items() if g}
    return {**cells, "minutes": f"{(report.seconds['total'] - report.seconds.get('report', 0.0)) / 60:.1f}"}


def judged(session: Session, rows: Sequence[Row]) -> Row:
    """Asks everything that is a bare removal of layers by one sweep, and returns the dense model's row."""
    windows, tasks = session.evidence.windows["report"], session.evidence.reported
    exam = (lambda dense: Exam(dense, tasks, session.inputs.tokenizer, session.recipe.seed)) if tasks else None
    names = sorted(set(windows.corpora))
    numbers = [names.index(c) for c in windows.corpora]
    evaluator = Evaluator(session.bank, windows.tokens, with_updates=False, corpora=numbers, exam=exam)
    items = session.recipe.tasks.items if tasks else 0
    dense = Row(0, ("dense", None), "dense", {}, ())
    bare = [dense, *(row for row in rows if row.removed is not None)]
    whole = session.inputs.identity(0)
    cuts = [without(whole, row.removed) for row in bare]
    found = evaluator.examine(cuts, Fidelity(len(windows.tokens), items=items))
    for row, (measures, tokens) in zip(bare, found, strict=True):
        row.cells |= texts(tokens, windows.corpora)
        row.cells |= {t.task: percents(t.accuracy_norm, wilson(int(t.correct_norm.sum()), len(t.correct_norm)))
                      for t in measures.tasks}  # fmt: skip
        row.cells |= kept(over_chance(measures.tasks), over_chance(found[0][0].tasks))
    return dense


def without(whole: Blueprint, removed: Sequence[int]) -> Blueprint:
    """The dense model less some layers."""
    layers = tuple(spec for spec in whole.layers if spec.anchor.layer not in removed)
    return Blueprint(whole.sources, layers).canonical()


def texts(tokens: TokenScores, corpora: Sequence[str]) -> dict[str, str]:
    """Perplexity, KL, and perplexity by corpus."""
    kl, nll = (x.double().mean(1).numpy() for x in tokens)
    every = perplexity(nll)
    each = {c: perplexity(nll[np.array([one == c for one in corpora])]) for c in sorted(set(corpora))}
    cells = {"perplexity": between(every.perplexity, every.ci), "KL": f"{interval(kl)[0]:.3f}"}
    return cells | {c: f"{p.perplexity:.1f}" for c, p in each.items()}


def over_chance(tasks: Sequence[TaskScores]) -> float:
    """Summed accuracies above chance."""
    return sum(t.accuracy_norm - t.chance for t in tasks)


def between(value: float, ci: Sequence[float] | None) -> str:
    """A figure and its 95 % interval."""
    digits = 1 if value < 1000 else 0
    ends = f" ({ci[0]:.{digits}f}–{ci[1]:.{digits}f})" if ci and all(map(math.isfinite, ci)) else ""
    return f"{value:,.{digits}f}{ends}"


def percents(value: float, ci: Sequence[float] | None) -> str:
    """An accuracy and its 95 % interval."""
    return f"{value:.1%}" + (f" ({100 * ci[0]:.0f}–{100 * ci[1]:.0f})" if ci else "")


if __name__ == "__main__":
    main()
