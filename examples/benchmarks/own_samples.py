"""Does text that a base says itself serve it better than text that people wrote?

For every text, and no other: a cut is chosen (the best of ShortGPT's and of all blocks of its size, by KL), its layers
are refitted, and it is trained with the dense model as teacher, on the same number of windows. All of it is then
measured on the report split of --data and on --tasks, of which nothing is ever fitted. The texts: the corpora named by
--corpora, one at a time, all of --data ("people's"), the base's own samples, and both.

    python examples/benchmarks/own_samples.py --model MODEL --data FOLDER --tasks arc_easy.report.jsonl ...
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_prune.assembly.assemble import assemble
from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.data.own_samples import SELF
from hf_prune.data.task_scores import score
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.events import exhaust
from hf_prune.models.noise import quiet
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import heal
from hf_prune.recovery.repair import repair
from hf_prune.report.statistics import interval, perplexity, wilson
from hf_prune.session.own_samples import say_own
from hf_prune.session.restore import course
from hf_prune.session.session import Session, open_session


@dataclass(frozen=True, eq=False)
class Judge:
    """The report split of people's text and the tasks, for every model alike."""

    session: Session
    evaluator: Evaluator

    def row(self, model: Any, *, asked: bool = True) -> list[str]:
        """Perplexity by corpus and KL, then acc_norm by task, each with its 95 % interval."""
        windows, evidence = self.session.evidence.windows["report"], self.session.evidence
        kl, nll = (x.double().mean(1).numpy() for x in self.evaluator.live_scores(model))
        mine = {c: nll[np.array([one == c for one in windows.corpora])] for c in sorted(set(windows.corpora))}
        cells = [between(f"{p.perplexity:.2f}", p.ci, 2) for p in map(perplexity, mine.values())]
        mean, ends = interval(kl)
        cells.append(between(f"{mean:.3f}", ends, 3))
        if not asked:
            return [*cells, *[""] * len(evidence.reported)]
        for task in evidence.reported:
            right = score(model, evidence.tokenizer, task).correct_norm
            cells.append(between(f"{right.mean():.1%}", [100 * e for e in wilson(int(right.sum()), len(right))], 0))
        return cells


def main() -> None:
    """Measure and print a markdown table."""
    a = arguments()
    home = Path(tempfile.mkdtemp())
    texts = {name: (folder_of(home, Path(a.data), name),) for name in a.corpora}
    texts |= {"people's": (a.data,), "own samples": (SELF,), "both": (SELF, a.data)}
    texts = {name: data for name, data in texts.items() if name in (a.only or texts)}
    judge = judge_of(a)
    windows = judge.session.evidence.windows["report"]
    names = [*sorted(set(windows.corpora)), "KL", *(t.name for t in judge.session.evidence.reported)]
    print(
        f"| text | stage | {' | '.join(names)} | layers gone | s |\n|---|---|{'---:|' * len(names)}---|---:|",
        flush=True,
    )
    say("", "dense", judge.row(judge.session.bank.model), "", 0.0)
    for label, data in texts.items():
        session = open_session(recipe_of(a, data, str(home / "run")))
        for stage, model, cut, seconds in stages(a, session):
            say(
                label,
                stage,
                judge.row(model, asked=stage != "cut"),
                ",".join(map(str, session.inputs.removed(cut))),
                seconds,
            )
        del session
    shutil.rmtree(home)


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data", required=True, help="folder of NAME.{search,selection,report}.jsonl")
    p.add_argument("--tasks", nargs="+", default=[], help="files of tasks of the report")
    p.add_argument("--corpora", nargs="*", default=["wiki"], help="that are texts of their own, too")
    p.add_argument("--only", nargs="+", help="of the texts: a corpus, people's, own samples, both")
    p.add_argument("--drop-layers", type=int, default=6)
    p.add_argument("--windows", type=int, default=48, help="that are fitted on")
    p.add_argument("--tokens", default="16k", help="that are trained on")
    p.add_argument("--report", type=int, default=36, help="windows of the report")
    p.add_argument("--items", type=int, default=80, help="of every task")
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def recipe_of(a: argparse.Namespace, data: Sequence[str], output: str) -> Recipe:
    """The same for every text."""
    return Recipe.of(
        base=a.model, data=tuple(data), drop_layers=a.drop_layers, output=output, seed=a.seed, heal=a.tokens,
        repair=True, repair_sequences=a.windows, sequences=8, selection_sequences=8, report_sequences=a.report,
        tasks=tuple(a.tasks), task_items=a.items, heal_checks=2,
    )  # fmt: skip


def judge_of(a: argparse.Namespace) -> Judge:
    """The dense model beside the report split."""
    session = open_session(recipe_of(a, (a.data,), "judge"))
    return Judge(session, Evaluator(session.bank, session.evidence.windows["report"].tokens))


def folder_of(home: Path, data: Path, name: str) -> str:
    """One corpus of a folder, as a folder."""
    folder = home / name
    folder.mkdir()
    for file in data.glob(f"{name}.*.jsonl"):
        (folder / file.name).symlink_to(file.resolve())
    return str(folder)


def stages(a: argparse.Namespace, session: Session) -> Iterator[tuple[str, Any, Blueprint, float]]:
    """Name, model, cut and seconds of everything that is made with this text."""
    started = time.monotonic()
    exhaust(say_own(session))
    if session.evidence.own:
        print(f"<!-- own samples at hand after {time.monotonic() - started:.0f} s -->", flush=True)
    started = time.monotonic()
    cut = best_cut(session, a.drop_layers)
    yield "cut", session.assembled(cut), cut, time.monotonic() - started
    evidence, started = session.evidence, time.monotonic()
    held = evidence.windows["selection"].tokens
    fitted = repair(session.bank, cut, evidence.training(a.windows).tokens, held).blueprint
    yield "+ repair", session.assembled(fitted), cut, time.monotonic() - started
    started = time.monotonic()
    yield "+ healing", trained(session, fitted, held), cut, time.monotonic() - started


def best_cut(session: Session, count: int) -> Blueprint:
    """Of ShortGPT's layers and all contiguous blocks, the one of least KL on the search windows."""
    depth, influence = session.inputs.depth, session.scores().influence
    gone = {tuple(sorted(sorted(range(depth), key=lambda layer: influence[layer])[:count]))}
    gone |= {tuple(range(first, first + count)) for first in range(depth - count + 1)}
    scorer = session.deletions(count)
    cuts = [scorer.blueprint(scorer.space.from_removed(g)) for g in sorted(gone)]
    measured = session.evaluator.evaluate(cuts, Fidelity(session.recipe.data.sequences))
    return min(zip(cuts, measured, strict=True), key=lambda pair: pair[1].kl)[0]


def trained(session: Session, blueprint: Blueprint, held: torch.Tensor) -> Any:
    """With the dense model as teacher."""
    base, recipe = session.inputs.base, session.recipe
    patches = session.bank.named(blueprint)
    student = assemble(blueprint, [base], patches, dtype=session.dtype, device=session.device)
    train = session.evidence.training(-(-recipe.heal.tokens // recipe.data.length)).tokens
    home = Path(tempfile.mkdtemp())
    with quiet():
        done = heal(student, session.bank.model, base.family, train, held, course(recipe), home)
    shutil.rmtree(home)
    return done.model


def between(value: str, ends: Sequence[float], digits: int) -> str:
    """A figure and its interval."""
    return f"{value} ({ends[0]:.{digits}f}-{ends[1]:.{digits}f})"


def say(label: str, stage: str, cells: Sequence[str], gone: str, seconds: float) -> None:
    """A row of the table."""
    print(f"| {label} | {stage} | {' | '.join(cells)} | {gone} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
