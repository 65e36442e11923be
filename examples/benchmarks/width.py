"""What is a search over widths worth? The bundled model at half of its blocks' parameters, beside ways without one.

Every seed searches with the same trials; baselines do not depend on the seed. Perplexity on the report split, which no
search and no choice has seen. With `--heal` the searches' results (each with its seed) and the baselines (with
`--baseline-seeds`) are trained alike, on as many tokens, and measured again. `--aware` is an ablation: finalists
trained before the choice or not, then as many tokens of training, or as many FLOPs. What is finished stays in
`--keep`.

    python examples/benchmarks/width.py --seeds 0 1 2 --heal 1M --keep rows
    python examples/benchmarks/width.py --seeds 0 1 2 --heal 250k --aware 10k --keep rows
    python examples/benchmarks/width.py --speed --keep rows
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hf_prune.assembly.assemble import quiet
from hf_prune.blueprint import Blueprint, Fidelity, Outcome, Trial
from hf_prune.data.bundled import demo_folder
from hf_prune.evaluation import speed
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.events import exhaust
from hf_prune.limits import FINAL_STAGES
from hf_prune.methods import METHODS
from hf_prune.pipeline import Result, run
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import Course, heal
from hf_prune.recovery.short_training import Lesson, TrainingAware
from hf_prune.report.statistics import perplexity
from hf_prune.session.journal import Journal
from hf_prune.session.restore import course, make_libraries
from hf_prune.session.selection import best_unseen
from hf_prune.session.session import Session, open_session

ROUNDS = 15
"""Interleaved rounds behind every time."""


def main() -> None:
    """Search with every seed and print a markdown table."""
    a = arguments()
    with contextlib.ExitStack() as stack:
        home = Path(a.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        home.mkdir(parents=True, exist_ok=True)
        bench = Bench(a, home)
        if a.speed:
            speeds(bench)
        elif a.aware:
            ablation(bench)
        else:
            against_baselines(bench)


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ratio", type=float, default=0.4615, help="of all parameters; default: half of the blocks'")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--baseline-seeds", type=int, nargs="+", default=[0], help="of the baselines' training")
    p.add_argument("--evaluations", type=int)
    p.add_argument("--heal", type=tokens, default=0, help="tokens to train everything on")
    p.add_argument("--aware", type=tokens, default=0, help="tokens of the first round of training-aware selection")
    p.add_argument("--speed", action="store_true", help="time the first seed's result instead")
    p.add_argument("--keep", help="folder for what is finished, from which the next call goes on")
    return p.parse_args()


def tokens(text: str) -> int:
    """10k as a number."""
    return Recipe.of(base="x", heal=text).heal.tokens


@dataclass(eq=False)
class Bench:
    """Everything is found and measured once, and kept in `home` under the digest of what it depends on."""

    a: argparse.Namespace
    home: Path

    def recipe(self, seed: int, aware: int = 0) -> Recipe:
        """One run, without training its result."""
        demo = demo_folder()
        asked = Recipe.of(
            base=str(demo / "storymath-16l"),
            data=(str(demo / "text"),),
            method="width",
            ratio=self.a.ratio,
            seed=seed,
            evaluations=self.a.evaluations,
            search_heal=aware,
            task_items=1,
        )
        return asked.model_copy(update={"output": str(self.home / asked.digest)})

    def run(self, seed: int) -> Result:
        """A search."""
        return run(self.recipe(seed))

    def winner(self, seed: int) -> Blueprint:
        """What a search finds."""
        return Blueprint.from_json((self.run(seed).folder / "blueprint.json").read_text(encoding="utf-8"))

    def aware(self, seed: int) -> tuple[Blueprint, dict[str, Any]]:
        """What training-aware selection takes of the finalists of the same search, and what the report says of it."""
        untrained = opened(self.recipe(seed))
        selection = untrained.evidence.selection
        with Journal.open(self.run(seed).folder / "journal.jsonl", untrained.header()) as journal:
            # Genomes below 0 are cuts that the result was compared with.
            rows = [row for row in journal.rows() if row.fidelity == selection and row.genome[0] >= 0]
        finalists = [Outcome(Trial(row.genome, row.fidelity), row.values) for row in rows]
        session = opened(self.recipe(seed, self.a.aware))
        with Journal.open(session.workdir.journal, session.header()) as journal:
            choice = exhaust(best_unseen(session, journal, finalists))
            return choice.cut, choice.summary

    def baselines(self) -> dict[str, Blueprint]:
        """Ways without a search, by their labels."""
        rows, names = self.run(self.a.seeds[0]).report["baselines"], METHODS["width"].baselines
        return {r["label"]: Blueprint.from_json(r["blueprint"]) for r in rows if r["name"] in names}

    @cached_property
    def session(self) -> Session:
        """On which everything is measured."""
        return opened(self.recipe(self.a.seeds[0]))

    @cached_property
    def evaluator(self) -> Evaluator:
        """Over the report split."""
        return Evaluator(self.session.bank, self.session.evidence.windows["report"].tokens)

    def dense(self) -> float:
        """Perplexity of the dense model."""
        return self._perplexity(self.session.bank.model)

    def perplexity(self, blueprint: Blueprint, seed: int = 0, tokens: int = 0) -> float:
        """Of a cut, trained on so many tokens with that seed."""
        path = self.home / f"{blueprint.digest}-{seed}-{tokens}.json"
        if not path.is_file():
            student, checkpoints = self.session.assembled(blueprint), path.with_suffix(".training")
            if tokens:
                long = replace(course(self.session.recipe), seed=seed, tokens=tokens)
                student = self.trained(student, long, checkpoints)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(self._perplexity(student)), encoding="utf-8")
            partial.replace(path)
            shutil.rmtree(checkpoints, ignore_errors=True)
        return json.loads(path.read_text(encoding="utf-8"))

    def trained(self, student: torch.nn.Module, course: Course, checkpoints: Path) -> torch.nn.Module:
        """Taught by the dense model, as `hf-prune compress --heal` does it."""
        session, evidence = self.session, self.session.evidence
        train = evidence.training(-(-course.tokens // session.recipe.data.length)).tokens
        held, family = evidence.windows["selection"].tokens, session.inputs.base.family
        with quiet(), warnings.catch_warnings():
            # Of peft, about transformers' names for what it uses.
            warnings.simplefilter("ignore", FutureWarning)
            return heal(student, session.bank.model, family, train, held, course, checkpoints).model

    def _perplexity(self, model: torch.nn.Module) -> float:
        nll = self.evaluator.live_scores(model)[1].double().mean(1)
        return perplexity(np.asarray(nll)).perplexity


def opened(recipe: Recipe) -> Session:
    """A run that has its level libraries."""
    session = open_session(recipe)
    exhaust(make_libraries(session))
    return session


def against_baselines(bench: Bench) -> None:
    """The search beside the baselines, before and after training."""
    a = bench.a
    columns = tuple(dict.fromkeys((0, a.heal)))
    found: dict[str, dict[int, list[float]]] = {}
    for seed, label, blueprint in models(bench):
        row = [bench.perplexity(blueprint, seed if t else 0, t) for t in columns]
        found.setdefault(label, {})[seed] = row
        say(f"{label}, seed {seed}", row)
    print(f"\n{a.ratio:.1%} of all parameters gone; dense {bench.dense():.2f}\n")
    heads = [[f"after {t:,} tokens" if t else "untrained", "worst seed"] for t in columns]
    table(["", "seeds", *sum(heads, [])], found)


def models(bench: Bench) -> Iterator[tuple[int, str, Blueprint]]:
    """Seed after seed, what its search finds, and the baselines that are to be trained with it."""
    for seed in sorted({*bench.a.seeds, *bench.a.baseline_seeds}):
        if seed in bench.a.seeds:
            yield seed, "search over widths", bench.winner(seed)
        if seed in bench.a.baseline_seeds:
            yield from ((seed, label, baseline) for label, baseline in bench.baselines().items())


def ablation(bench: Bench) -> None:
    """Training-aware selection, or its FLOPs spent on training."""
    a = bench.a
    found: dict[str, dict[int, list[float]]] = {}
    for seed in a.seeds:
        (aware, selection), plain = bench.aware(seed), bench.winner(seed)
        each, spent = healing_flops(bench, plain, seed), selection_flops(bench, aware, seed)
        more = a.heal + round(spent / each)
        print(
            f"seed {seed}: choice {'changed' if selection['changed'] else 'unchanged'}, "
            f"rank correlation {selection['spearman']:.2f}; {spent / 1e12:.2f} TFLOPs, "
            f"worth {more - a.heal:,} tokens of training",
            flush=True,
        )
        ways = {
            "finalists trained, then as many tokens": (aware, a.heal),
            "no such selection, as many tokens": (plain, a.heal),
            "no such selection, as many FLOPs": (plain, more),
        }
        for label, (blueprint, budget) in ways.items():
            row = [bench.perplexity(blueprint), bench.perplexity(blueprint, seed, budget)]
            found.setdefault(label, {})[seed] = row
            say(f"{label}, seed {seed}", row)
    trained = f"after {a.heal:,} tokens or as many FLOPs"
    table(["", "seeds", "untrained", "worst seed", trained, "worst seed"], found)


def selection_flops(bench: Bench, blueprint: Blueprint, seed: int) -> float:
    """Matrix FLOPs of training-aware selection: those of one finalist, all of which are of one size."""
    session, first = bench.session, bench.a.aware
    evaluator, r = session.evaluator, session.recipe
    rows = slice(r.data.sequences, r.data.sequences + r.data.selection_sequences)
    text = session.evidence.training(-(-first * 2 ** (FINAL_STAGES - 1) // r.data.length)).tokens
    with tempfile.TemporaryDirectory() as home:
        with FlopCounterMode(display=False) as once:
            aware = TrainingAware(evaluator, Lesson.of(evaluator.dense, text), Path(home), seed)
        with FlopCounterMode(display=False) as training:
            aware.scores(blueprint, first, rows)
        with FlopCounterMode(display=False) as measuring:
            aware.scores(blueprint, first, rows)
    trained, measured = training.get_total_flops(), measuring.get_total_flops()
    rounds = [2**FINAL_STAGES >> i for i in range(FINAL_STAGES)]
    # Each round doubles the tokens that a finalist has seen.
    steps = rounds[0] + sum(n * 2 ** (i - 1) for i, n in enumerate(rounds) if i)
    return once.get_total_flops() + steps * (trained - measured) + sum(rounds) * measured


def healing_flops(bench: Bench, blueprint: Blueprint, seed: int) -> float:
    """Matrix FLOPs of training per token, teacher included: what a second step adds to one."""
    totals, usual = [], course(bench.session.recipe)
    size = usual.batch * bench.session.recipe.data.length
    for steps in (1, 2):
        short = replace(usual, tokens=steps * size, checks=1, seed=seed)
        student = bench.session.assembled(blueprint)
        with tempfile.TemporaryDirectory() as home, FlopCounterMode(display=False) as counted:
            bench.trained(student, short, Path(home))
        totals.append(counted.get_total_flops())
    return (totals[1] - totals[0]) / size


def speeds(bench: Bench) -> None:
    """What a candidate costs in the sweep, and how fast the result runs, beside the dense model."""
    blueprint, session = bench.winner(bench.a.seeds[0]), bench.session
    both = {"dense": session.inputs.identity(0), "cut": blueprint}
    windows = session.evidence.windows["search"]
    sweep = Evaluator(session.bank, windows.tokens, reuse_reference=False)
    flops = {name: sweep_flops(sweep, model) for name, model in both.items()}
    seconds = sweep_seconds(sweep, both)
    share = sweep.parameters(blueprint) / session.inputs.base.parameters
    print(
        f"a candidate of the sweep: {share:.3f} of the dense model's parameters, "
        f"{ratio(flops):.3f} of its FLOPs, "
        f"{ratio(seconds):.3f} of its {seconds['dense']:.2f} s of processor time"
    )
    found = speed.compare(session.bank.model, session.assembled(blueprint), np.random.default_rng(0))
    print(f"{found['device']}, {found['dtype']}, {found['threads']} threads, batch 1, {found['repeats']} quiet rounds")
    for what in speed.PHASES:
        if what not in found:
            print(f"{what}: the machine was busy in {found['disturbed']} rounds")
            continue
        rates = [found[name][f"{what}_tokens_per_s"] for name in ("dense", "pruned")]
        low, high = found[what]["ci"]
        print(
            f"{what}, {found[f'{what}_tokens']} tokens: {rates[0]:.0f} -> {rates[1]:.0f} tokens/s, "
            f"{found[what]['value']:.2f} x ({low:.2f} to {high:.2f})"
        )


def sweep_flops(sweep: Evaluator, blueprint: Blueprint) -> float:
    """Matrix FLOPs of one candidate; of attention the half below the diagonal, which is what is computed."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    causal = {attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v) // 2}
    with FlopCounterMode(display=False, custom_mapping=causal) as counted:
        sweep.evaluate([blueprint], Fidelity(len(sweep.own.tokens)))
    return counted.get_total_flops()


def sweep_seconds(sweep: Evaluator, models: dict[str, Blueprint]) -> dict[str, float]:
    """Of the processor, each by itself and layers made already; medians of interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS + 1):
        for name, model in models.items():
            begin = time.process_time()
            sweep.evaluate([model], Fidelity(len(sweep.own.tokens)))
            seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def ratio(figures: dict[str, float]) -> float:
    """Cut against dense."""
    return figures["cut"] / figures["dense"]


def say(label: str, row: list[float]) -> None:
    """One row as soon as it is there."""
    print(f"  {label}: {', '.join(f'{v:.2f}' for v in row)}", flush=True)


def table(header: list[str], found: dict[str, dict[int, list[float]]]) -> None:
    """Mean and worst seed of every column, in markdown."""
    print(f"| {' | '.join(header)} |\n|---|{'---:|' * (len(header) - 1)}")
    for label, rows in found.items():
        columns = zip(*rows.values(), strict=True)
        cells = [f"{f(column):.2f}" for column in columns for f in (statistics.mean, max)]
        print(f"| {label} | {', '.join(map(str, rows))} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
