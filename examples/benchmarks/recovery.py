"""What a cut costs and what comes back: repair in its three reaches, training after it, and training without its parts.

Every row is the share of the gap in log-perplexity (dense to cut) that is closed on the report split, for each corpus
and as their mean; 100 % is the dense model. The cut is found by the search with the row's seed (or named by --drop).
Fits and trainings read the search side of the text, choices the selection split. `spent` is wall time here.

    python examples/benchmarks/recovery.py --keep-layers 12 --seeds 0 1 2 --heal 1M --short 250k
    python examples/benchmarks/recovery.py --keep-layers 8 --seeds 0 1 2 --heal 1M --short 250k
    python examples/benchmarks/recovery.py --drop 12-15
    python examples/benchmarks/recovery.py --drop 3,6,7,11 --grow 24 48 96 192 384
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hf_prune.assembly.assemble import assemble, quiet
from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.data.bundled import demo_folder
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.pipeline import run
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import heal
from hf_prune.recovery.repair import REACHES, repair
from hf_prune.session.restore import course
from hf_prune.session.session import Session, open_session


@dataclass(eq=False)
class Subject:
    """One cut under measurement: mean negative log-likelihood per corpus of the report split."""

    session: Session
    cut: Blueprint
    evaluator: Evaluator
    names: tuple[str, ...]
    rows: dict[str, np.ndarray]
    dense: np.ndarray = field(init=False)
    bare: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Measure the two ends of the gap."""
        self.dense, self.bare = self.of(self.session.inputs.identity(0)), self.of(self.cut)

    def of(self, blueprint: Blueprint) -> np.ndarray:
        """Of a blueprint, [corpora]."""
        fidelity = Fidelity(len(self.evaluator.reference.tokens))
        return self._mean(self.evaluator.token_scores([blueprint], fidelity)[0][1])

    def live(self, model: torch.nn.Module) -> np.ndarray:
        """Of a live model, [corpora]."""
        return self._mean(self.evaluator.live_scores(model)[1])

    def closed(self, now: np.ndarray) -> np.ndarray:
        """Share of the gap that is closed, [corpora]."""
        return (self.bare - now) / (self.bare - self.dense)

    def _mean(self, nll: torch.Tensor) -> np.ndarray:
        per_window = nll.double().mean(1).numpy()
        return np.array([per_window[self.rows[n]].mean() for n in self.names])


def main() -> None:
    """Measure and print a markdown table."""
    a = arguments()
    found: dict[str, list[tuple[np.ndarray, float]]] = {}
    for seed in a.seeds:
        subject = subject_of(a, seed)
        say(subject, seed)
        for label, closed, seconds in rows(a, subject):
            found.setdefault(label, []).append((closed, seconds))
            print(f"  {label}: {closed.mean():.1%} in {seconds:.0f} s", flush=True)
    names = " | ".join(subject.names)
    print(f"\n| | {names} | mean | least of the seeds | spent |")
    print(f"|---|{'---:|' * (len(subject.names) + 3)}")
    for label, values in found.items():
        closed = np.array([c for c, _ in values])
        cells = " | ".join(f"{x:.1%}" for x in closed.mean(0))
        least, spent = closed.mean(1).min(), statistics.median(s for _, s in values)
        print(f"| {label} | {cells} | **{closed.mean():.1%}** | {least:.1%} | {spent:.1f} s |")


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--keep-layers", type=int, default=12)
    p.add_argument("--drop", help="a cut by hand instead of the search")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--windows", type=int, default=192, help="that a repair is fitted on")
    p.add_argument("--grow", type=int, nargs="+", help="fit `all` on so many windows, in turn")
    p.add_argument("--heal", default="0", help="tokens to train on behind the repair")
    p.add_argument("--short", default="0", help="tokens to compare training with and without its parts")
    p.add_argument("--methods", nargs="+", default=["lora"], choices=["lora", "dora", "full"])
    return p.parse_args()


def subject_of(a: argparse.Namespace, seed: int) -> Subject:
    """The cut of this seed, and its dense parent on the report split."""
    demo = demo_folder()
    size = {"drop": a.drop} if a.drop else {"keep_layers": a.keep_layers}
    fields = {"base": str(demo / "storymath-16l"), "data": (str(demo / "text"),), "seed": seed, **size}
    with tempfile.TemporaryDirectory() as home:
        few = {"report_sequences": 3, "task_items": 1, "output": f"{home}/cut"}
        found = run(Recipe.of(**fields, **few))
        cut = Blueprint.from_json((found.folder / "blueprint.json").read_text())
    session = open_session(Recipe.of(**fields))
    windows = session.evidence.windows["report"]
    names = tuple(sorted(set(windows.corpora)))
    kept = {n: np.array([c == n for c in windows.corpora]) for n in names}
    return Subject(session, cut, Evaluator(session.bank, windows.tokens), names, kept)


def say(subject: Subject, seed: int) -> None:
    """What was cut, and what that costs."""
    kept = [sorted({p.layer for p in s.parts}) for s in subject.cut.layers]
    gone = sorted(set(range(subject.session.inputs.depth)) - {layer for spec in kept for layer in spec})
    ends = [np.exp(x.mean()) for x in (subject.dense, subject.bare)]
    dtype, threads = str(subject.session.dtype).removeprefix("torch."), torch.get_num_threads()
    print(
        f"seed {seed}: without layers {gone}; perplexity {ends[0]:.2f} -> {ends[1]:.2f} "
        f"(geometric mean of the corpora); {dtype}, {threads} threads",
        flush=True,
    )


def rows(a: argparse.Namespace, subject: Subject) -> Iterator[tuple[str, np.ndarray, float]]:
    """Label, share closed per corpus and seconds of everything asked for."""
    for windows in a.grow or ():
        _, closed, seconds = repaired(subject, "all", windows)
        yield f"repair `all`, {windows} windows", closed, seconds
    if a.grow:
        return
    for reach in REACHES:
        blueprint, closed, seconds = repaired(subject, reach, a.windows)
        yield f"repair `{reach}`", closed, seconds
    for tokens in dict.fromkeys((a.short, a.heal)):
        for method in a.methods if tokens != "0" else ():
            fields = {"heal": tokens, "heal_method": method}
            yield (f"repair `all`, then {method}, {tokens} tokens", *healed(subject, blueprint, **fields))
    if a.short != "0":
        fields = {"heal": a.short, "heal_method": a.methods[0]}
        yield (f"{a.methods[0]}, {a.short} tokens, no repair", *healed(subject, subject.cut, **fields))
        alone = {**fields, "heal_kl": 0.0, "heal_ce": 1.0}
        yield (f"repair, {a.methods[0]}, {a.short} tokens, no distillation", *healed(subject, blueprint, **alone))


def repaired(subject: Subject, reach: str, windows: int) -> tuple[Blueprint, np.ndarray, float]:
    """Repair with a run's own settings but this reach and amount of text."""
    evidence = subject.session.evidence
    fit, held = evidence.training(windows).tokens, evidence.windows["selection"].tokens
    started = time.monotonic()
    blueprint = repair(subject.session.bank, subject.cut, fit, held, reach=reach).blueprint
    return blueprint, subject.closed(subject.of(blueprint)), time.monotonic() - started


def healed(subject: Subject, blueprint: Blueprint, **changes: object) -> tuple[np.ndarray, float]:
    """Train what the blueprint stands for."""
    session, base = subject.session, subject.session.inputs.base
    recipe = Recipe.of(**{**session.recipe.model_dump(), **changes})
    dtype = torch.float32 if recipe.heal.method == "full" else session.dtype
    patches, teacher = session.bank.named(blueprint), session.bank.model
    student = assemble(blueprint, [base], patches, dtype=dtype, device=session.device)
    train = session.evidence.training(-(-recipe.heal.tokens // recipe.data.length)).tokens
    held = session.evidence.windows["selection"].tokens
    home = Path(tempfile.mkdtemp())
    started = time.monotonic()
    with quiet():
        done = heal(student, teacher, base.family, train, held, course(recipe), home)
    shutil.rmtree(home)
    return subject.closed(subject.live(done.model)), time.monotonic() - started


if __name__ == "__main__":
    main()
