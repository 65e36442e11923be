"""How good is what a search finds? Every cut of the bundled 16-layer model is scored, then each search is let loose.

All ways to drop 4 (1,820) and 6 (8,008) of the layers are scored on the search split by shared enumeration, at each
amount of evidence that the staged search uses. The searchers of hf_prune.search then run on random starts, seed by seed,
through the real `drive`; only the values come from those tables. A run's cost is layer passes x tokens with prefixes
shared inside each batch, as `Evaluator.cost` counts them, as a share of what the enumeration costs at full evidence.
`evopress` and `random` are stopped at the end of the batch with which they reach what the staged search of the same
seed has spent. What was found is then measured on the report split, paired with the optimum window by window.

    python examples/benchmarks/search_quality.py --table search_quality.npz
    python examples/benchmarks/search_quality.py --drop 4 --trials-per-swap 6 8 --seeds 40 --table search_quality.npz
    python examples/benchmarks/search_quality.py --drop 4 --sequences 4 --length 64 --seeds 3

The table file is written after every few hundred cuts, so a run that was stopped goes on where it was.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hf_prune import pipeline, report
from hf_prune.blueprint import Fidelity, Genome, Trial
from hf_prune.calibration import Windows, demo_folder, windows
from hf_prune.evaluate import Evaluator
from hf_prune.job import Job, Scorer, open_job
from hf_prune.journal import Journal
from hf_prune.plan import TRIALS_PER_SWAP
from hf_prune.recipe import Recipe
from hf_prune.search import SEARCHERS, Schedule, drive, exhaustive

Cut = tuple[int, ...]
"""The layers dropped, in order."""
COLUMNS = ("kl", "perplexity")
EVIDENCE = {4: (16, 256, 20), 6: (8, 128, 10)}
"""Layers dropped -> windows and tokens per window of full evidence, and how many seeds."""
REPORT_LENGTH = 256
SAVE_EVERY = 512
"""Cuts scored between two writes of the table file."""
PUBLISHED_GENERATIONS = 1.5
"""EvoPress takes k (n - k) / 1.5 generations (arXiv 2410.14649, sec. 3)."""


def main() -> None:
    """Measure, print markdown tables, and write what was asked for."""
    a = arguments()
    settings = []
    print(f"    {command()}\n")
    for drop in a.drop:
        setting = measured(a, drop)
        settings.append(setting)
        print("\n".join(described(setting)), flush=True)
    if a.json:
        a.json.write_text(json.dumps({"command": command(), "settings": settings}, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--drop", type=int, nargs="+", choices=range(1, 9), default=[4, 6], help="layers to drop")
    p.add_argument("--sequences", type=int, help="windows of full evidence")
    p.add_argument("--length", type=int, help="tokens per window")
    p.add_argument("--seeds", type=int, help="seeds 0, 1, ... of every search that draws lots")
    p.add_argument("--trials-per-swap", type=float, nargs="+", default=[4, 6, TRIALS_PER_SWAP], help="caps to try")
    p.add_argument("--report-sequences", type=int, default=96, help=f"windows of {REPORT_LENGTH} tokens")
    p.add_argument("--table", type=Path, help="file that keeps the enumerated scores (.npz)")
    p.add_argument("--json", type=Path, help="file for everything measured")
    return p.parse_args()


def command() -> str:
    """How this was started, in public terms."""
    return shlex.join(["python", "examples/benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])


def opened(a: argparse.Namespace, drop: int) -> tuple[Job, int]:
    """The bundled model with the evidence of one setting, and how many seeds that setting gets."""
    sequences, length, seeds = EVIDENCE.get(drop, EVIDENCE[4])
    recipe = Recipe.of(
        base=str(demo_folder() / "storymath-16l"),
        data=(str(demo_folder() / "text"),),
        keep_layers=16 - drop,
        sequences=a.sequences or sequences,
        length=a.length or length,
        selection_sequences=1,
        report_sequences=1,
    )
    return open_job(recipe), a.seeds or seeds


# The table ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Table:
    """Values of every cut at every stage, float64 [cuts, columns] each, NaN where not yet scored; resumable."""

    path: Path | None
    job: Job
    drop: int
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path and self.path.exists():
            with np.load(self.path) as stored:
                self.rows = {name: stored[name] for name in stored.files}

    @cached_property
    def scorer(self) -> Scorer:
        """The real one, over plain deletions."""
        return self.job.deletions(self.drop)

    @cached_property
    def number(self) -> dict[Cut, int]:
        """Row of every cut, in the order of the enumeration."""
        return {cut(self.scorer, g): i for i, g in enumerate(self.scorer.space.enumerate())}

    def name(self, stage: Fidelity) -> str:
        """Everything the values depend on."""
        h = self.job.header()
        return "/".join([h["base"], h["evidence"][0], *h["numerics"].values(), f"drop {self.drop}", str(stage)])

    def at(self, stage: Fidelity) -> np.ndarray:
        """All values of one stage, scored now where they are missing."""
        rows = self.rows.setdefault(self.name(stage), np.full((len(self.number), len(COLUMNS)), np.nan))
        genomes = list(self.scorer.space.enumerate())
        for first in range(0, len(genomes), SAVE_EVERY):
            part = slice(first, min(first + SAVE_EVERY, len(genomes)))
            if np.isnan(rows[part]).any():
                rows[part] = scored(self.scorer, [Trial(g, stage) for g in genomes[part]])
                self.save()
                print(f"{self.name(stage)}: {part.stop} of {len(genomes)}", file=sys.stderr, flush=True)
        return rows

    def save(self) -> None:
        """Under a temporary name, then renamed."""
        if self.path:
            partial = self.path.with_name(self.path.name + ".partial")
            with open(partial, "wb") as file:
                np.savez(file, **self.rows)
            os.replace(partial, self.path)


def cut(scorer: Scorer, genome: Genome) -> Cut:
    """The layers a plain deletion drops."""
    kept = {s.anchor.layer for s in scorer.space.decode(genome)}
    return tuple(i for i in range(scorer.space.depth) if i not in kept)


def scored(scorer: Scorer, trials: Sequence[Trial]) -> np.ndarray:
    """COLUMNS of trials of one stage by the real evaluator; its cost must be what `edges` says."""
    before = scorer.job.evaluator.cost.layer_tokens
    found = np.array(scorer.evaluate(trials))[:, [scorer.job.columns.index(c) for c in COLUMNS]]
    spent = scorer.job.evaluator.cost.layer_tokens - before
    counted = edges([cut(scorer, t.genome) for t in trials], scorer.space.depth)
    if spent != counted * trials[0].fidelity.sequences * scorer.job.recipe.length:
        raise AssertionError(f"the evaluator spent {spent} layer-token products, edges() makes it {counted} passes")
    return found


def edges(cuts: Sequence[Cut], depth: int) -> int:
    """Layer passes of one sweep: distinct prefixes of kept layers that are not the dense model's own."""
    paths = {tuple(i for i in range(depth) if i not in c) for c in cuts}
    return len({p[:n] for p in paths for n in range(1, len(p) + 1) if p[n - 1] != n - 1})


# The searches -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Lookup:
    """Stands for the evaluator of one run: values from the table, cost as the sweep would have had it.

    Cuts of another size than the table's, which greedy passes through, are scored by the real evaluator.
    """

    table: Table
    full: Fidelity
    column: int
    layer_tokens: int = 0
    head_tokens: int = 0
    trials: int = 0
    met: dict[Cut, int] = field(default_factory=dict)

    def key(self, trial: Trial) -> tuple[str, Fidelity]:
        """For the journal."""
        return str(cut(self.table.scorer, trial.genome)), trial.fidelity

    def evaluate(self, trials: Sequence[Trial]) -> list[tuple[float, ...]]:
        """One batch: `drive` asks for trials of one stage at a time."""
        stage, scorer = trials[0].fidelity, self.table.scorer
        cuts = [cut(scorer, t.genome) for t in trials]
        length = scorer.job.recipe.length
        self.trials += len(cuts)
        self.layer_tokens += edges(cuts, scorer.space.depth) * stage.sequences * length
        self.head_tokens += len(cuts) * stage.sequences * length
        if stage == self.full:
            self.met |= {c: self.layer_tokens for c in cuts if len(c) == self.table.drop and c not in self.met}
        if any(len(c) != self.table.drop for c in cuts):
            return [(row[self.column],) for row in scored(scorer, trials)]
        rows = self.table.at(stage)
        return [(rows[self.table.number[c], self.column],) for c in cuts]

    def leader(self) -> Cut:
        """The best met at full evidence so far."""
        rows = self.table.at(self.full)
        return min(self.met, key=lambda c: rows[self.table.number[c], self.column])


@dataclass(frozen=True)
class Run:
    """What one search found and spent; `optimum_after` is its cost when it first scored the optimum in full."""

    seed: int
    found: Cut
    kl: float
    rank: int
    trials: int
    layer_tokens: int
    head_tokens: int
    optimum_after: int | None


def ran(table: Table, search: str, schedule: Schedule, seed: int, budget: float = math.inf) -> Run:
    """One search to its end, or to the batch with which it reaches a budget of layer-token products."""
    lookup = Lookup(table, schedule.full, COLUMNS.index("perplexity" if search == "greedy" else "kl"))
    searching = SEARCHERS[search](table.scorer.space, schedule, np.random.default_rng(seed))
    found = chased(lookup, drive(searching, lookup.evaluate, Journal.memory(), lookup.key, pipeline.BATCH), budget)
    kl = table.at(schedule.full)[:, 0]
    mine = kl[table.number[found]]
    optimum = next(c for c, i in table.number.items() if i == int(kl.argmin()))
    rank, spent = int((kl < mine).sum()) + 1, (lookup.trials, lookup.layer_tokens, lookup.head_tokens)
    return Run(seed, found, float(mine), rank, *spent, lookup.met.get(optimum))


def chased(lookup: Lookup, events: Iterator[Any], budget: float) -> Cut:
    """The first finalist; of a search that was stopped, the best it had met."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return cut(lookup.table.scorer, end.value[0].trial.genome)
        if lookup.layer_tokens >= budget:
            return lookup.leader()


def races(table: Table, schedule: Schedule, per_swap: Sequence[float], seeds: int) -> dict[str, list[Run]]:
    """Every row of the table: name -> runs."""
    swaps = table.drop * (16 - table.drop)
    runs = {}
    for share in per_swap:
        cap = round(schedule.population + share * swaps)
        name = f"staged, {cap} trials" + (" (default)" if share == TRIALS_PER_SWAP else "")
        capped = replace(schedule, evaluations=cap)
        staged = runs[name] = [ran(table, "staged", capped, seed) for seed in range(seeds)]
        free = replace(schedule, evaluations=1 << 30)
        for rival in ("evopress", "random"):
            runs[f"{rival}, cost of staged {cap}"] = [ran(table, rival, free, r.seed, r.layer_tokens) for r in staged]
    published = replace(schedule, evaluations=schedule.population + published_trials(schedule, swaps))
    runs["evopress, its own number of generations"] = [ran(table, "evopress", published, seed) for seed in range(seeds)]
    names = {"greedy": "SLEB (greedy)", "shortgpt": "ShortGPT", "window": "window", "last": "last layers"}
    once = replace(schedule, evaluations=1 << 30)
    return runs | {label: [ran(table, search, once, 0)] for search, label in names.items()}


def published_trials(schedule: Schedule, swaps: int) -> int:
    """Trials of EvoPress's k (n - k) / 1.5 generations, each quartered from stage to stage."""
    generation = sum(max(schedule.offspring // 4**number, 1) for number in range(len(schedule.stages)))
    return round(swaps / PUBLISHED_GENERATIONS) * generation


# The report split ---------------------------------------------------------------------------------------------------


def unseen(job: Job, table: Table, found: Sequence[Cut], count: int) -> dict[str, Any]:
    """Perplexity and KL of cuts on the report split; `found[0]` is what the others are paired with."""
    evidence: Windows = windows(job.recipe.data, job.tokenizer, "report", count, REPORT_LENGTH)
    evaluator = Evaluator(job.bank, evidence.tokens, with_updates=False)
    space = table.scorer.space
    blueprints = [table.scorer.blueprint(space.from_removed(c)) for c in ((), *found)]
    per_window = [
        (kl.double().mean(1).numpy(), nll.double().mean(1).numpy())
        for kl, nll in evaluator.token_scores(blueprints, Fidelity(count))
    ]
    rows = {c: report_row(*values, per_window[1][1]) for c, values in zip(found, per_window[1:], strict=True)}
    return {"evidence": evidence.digest, "dense": report.perplexity(per_window[0][1]), "cuts": rows}


def report_row(kl: np.ndarray, nll: np.ndarray, best: np.ndarray) -> dict[str, Any]:
    """Per-window KL and NLL -> figures with 95 % intervals; the ratio of perplexities is paired by window."""
    ratio, ends = report.interval(nll - best)
    mean, kl_ends = report.interval(kl)
    ratios = {"ratio": math.exp(ratio), "ratio_ci": [math.exp(e) for e in ends]}
    return {**report.perplexity(nll), **ratios, "kl": mean, "kl_ci": kl_ends}


# All of it ----------------------------------------------------------------------------------------------------------


def measured(a: argparse.Namespace, drop: int) -> dict[str, Any]:
    """One setting from enumeration to report split, ready for JSON."""
    began = time.monotonic()
    job, seeds = opened(a, drop)
    table = Table(a.table, job, drop)
    # The stages a run of this recipe would have, and the scores the one-shot searches read.
    schedule = pipeline._schedule(job, 1)
    values = [table.at(stage)[:, 0] for stage in schedule.stages]
    best = sorted(table.number, key=lambda c: values[-1][table.number[c]])
    everything = replace(schedule, evaluations=1 << 30)
    lookup = Lookup(table, schedule.full, 0)
    search = exhaustive(table.scorer.space, everything, np.random.default_rng(0))
    chased(lookup, drive(search, lookup.evaluate, Journal.memory(), lookup.key, pipeline.BATCH), math.inf)
    runs = races(table, schedule, a.trials_per_swap, seeds)
    found = list(dict.fromkeys([best[0], *sorted({r.found for row in runs.values() for r in row})]))
    split = unseen(job, table, found, a.report_sequences)
    return {
        "drop": drop,
        "environment": {**job.header(), "threads": torch.get_num_threads(), "python": sys.version.split()[0]},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "length": job.recipe.length,
        "stages": [s.sequences for s in schedule.stages],
        "seeds": seeds,
        "cuts": len(best),
        "enumeration": {"layer_tokens": lookup.layer_tokens, "head_tokens": lookup.head_tokens},
        "screening_correlation": report.spearman(*values) if len(values) == 2 else None,
        "best": [{"cut": c, "kl": float(values[-1][table.number[c]])} for c in best[:5]],
        "runs": {name: [asdict(r) for r in row] for name, row in runs.items()},
        "report": {**split, "sequences": a.report_sequences, "length": REPORT_LENGTH}
        | {"cuts": [{"cut": c, "rank": best.index(c) + 1, **row} for c, row in split["cuts"].items()]},
        "seconds": round(time.monotonic() - began, 1),
    }


# Markdown -----------------------------------------------------------------------------------------------------------


def described(s: dict[str, Any]) -> Iterator[str]:
    """The setting as markdown."""
    stages, env = " -> ".join(map(str, s["stages"])), s["environment"]
    yield f"## Drop {s['drop']} of 16: {s['cuts']:,} cuts\n"
    yield (
        f"{env['base']}, fitness KL to the dense model on {stages} windows of {s['length']} tokens of the search split "
        f"(evidence {env['evidence'][0]}), seeds 0 to {s['seeds'] - 1}, {env['numerics']['dtype']}, "
        f"{env['threads']} threads, python {env['python']}, "
        + ", ".join(f"{n} {v}" for n, v in s["versions"].items())
        + f", {s['seconds']:.0f} s\n"
    )
    yield f"Enumeration at full evidence: {s['enumeration']['layer_tokens'] / 1e6:,.1f} M layer-token products."
    if s["screening_correlation"] is not None:
        yield f"Rank correlation of the first stage with full evidence: {s['screening_correlation']:.4f}."
    yield "Best cuts: " + "; ".join(f"{spelled(b['cut'])} {b['kl']:.4f}" for b in s["best"]) + ".\n"
    yield from searches_table(s)
    yield from cuts_table(s)


def spelled(layers: Sequence[int]) -> str:
    """{3, 6}."""
    return "{" + ", ".join(map(str, layers)) + "}"


def searches_table(s: dict[str, Any]) -> Iterator[str]:
    """One row per search."""
    whole = s["enumeration"]
    by_cut = {tuple(r["cut"]): r for r in s["report"]["cuts"]}
    yield (
        "| search | optimum found | rank: median (worst) | trials | cost / enumeration: mean (most) | head passes / "
        "enumeration | cost when optimum scored: median | report perplexity: median (worst) |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, runs in s["runs"].items():
        ranks = [r["rank"] for r in runs]
        cost = [r["layer_tokens"] / whole["layer_tokens"] for r in runs]
        head = statistics.mean(r["head_tokens"] for r in runs) / whole["head_tokens"]
        after = [r["optimum_after"] / whole["layer_tokens"] for r in runs if r["optimum_after"]]
        ppl = [by_cut[tuple(r["found"])]["perplexity"] for r in runs]
        yield (
            f"| {name} | {ranks.count(1)}/{len(runs)} | {statistics.median(ranks):g} ({max(ranks)}) | "
            f"{statistics.mean(r['trials'] for r in runs):.0f} | {statistics.mean(cost):.3f} ({max(cost):.3f}) | "
            f"{head:.3f} | {f'{statistics.median(after):.3f}' if after else '-'} | "
            f"{statistics.median(ppl):.3f} ({max(ppl):.3f}) |"
        )


def cuts_table(s: dict[str, Any]) -> Iterator[str]:
    """One row per cut that a search other than random found, best first."""
    r = s["report"]
    yield (
        f"\nReport split, {r['sequences']} windows of {r['length']} tokens (evidence {r['evidence']}); dense perplexity "
        f"{r['dense']['perplexity']:.3f} [{spread(r['dense']['ci'])}]; 95 % intervals over windows.\n"
    )
    yield "| layers dropped | search rank | found by | perplexity | ratio to the optimum's, paired | KL |"
    yield "|---|---:|---|---:|---:|---:|"
    for row in sorted(r["cuts"], key=lambda row: row["rank"]):
        by = [
            f"{name} x {n}" if len(runs) > 1 else name
            for name, runs in s["runs"].items()
            if (n := sum(tuple(x["found"]) == tuple(row["cut"]) for x in runs)) and not name.startswith("random")
        ]
        if by or row["rank"] == 1:
            yield (
                f"| {spelled(row['cut'])} | {row['rank']} | {'; '.join(by) or '-'} | {row['perplexity']:.3f} "
                f"[{spread(row['ci'])}] | {row['ratio']:.4f} [{spread(row['ratio_ci'], 4)}] | "
                f"{row['kl']:.4f} [{spread(row['kl_ci'], 4)}] |"
            )
    yield ""


def spread(ends: Sequence[float], digits: int = 3) -> str:
    """A confidence interval."""
    return ", ".join(f"{e:.{digits}f}" for e in ends)


if __name__ == "__main__":
    main()
