"""Does the search find the best cut? Every way to drop k of 16 layers is scored once; then searchers look for the best.

The bundled model has few enough layers to enumerate: 1,820 ways to drop 4 of 16, 8,008 to drop 6. The table holds the
KL of each on the search windows, at every amount of evidence that the searches use. The searchers are those of the
package and are told values from the table; what a generation costs is counted as the sweep computes it (layer passes x
tokens, shared prefixes once, prefixes of the dense model free). EvoPress's schedule and random choice may spend what
staged evolution spent on average; all start from random genomes. The last columns compare perplexity on the report
split, which none of them saw, with the optimum of the search evidence: paired 95 % interval over windows.

    python examples/benchmarks/search_quality.py --drop 4 --windows 16 --length 256 --seeds 20
    python examples/benchmarks/search_quality.py --drop 6 --windows 8 --length 128 --seeds 10

`--table FILE.npz` keeps the enumeration for another run.
"""

import argparse
import itertools
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from hf_prune.assembly.assemble import Parent, assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, Outcome, Source, Trial
from hf_prune.data.bundled import demo_folder
from hf_prune.data.windows import windows
from hf_prune.evaluation.dense import block_distance, block_influence
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.speed import computes_bfloat16
from hf_prune.methods import METHODS
from hf_prune.pipeline import SCREENING_TOKENS
from hf_prune.plan import TRIALS_PER_SWAP
from hf_prune.report.statistics import interval, perplexity
from hf_prune.search import SEARCHERS, Schedule, Scores

Cut = tuple[int, ...]
LABELS = {
    "staged": "staged evolution",
    "evopress": "EvoPress's schedule",
    "random": "random choice",
    "greedy": "SLEB (greedy)",
    "shortgpt": "ShortGPT",
    "window": "best window",
}


@dataclass(eq=False)
class Table:
    """KL of every cut at every amount of evidence; a cut that is not there yet is evaluated."""

    evaluator: Evaluator
    drop: int
    known: dict[int, dict[Cut, float]] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Layers of the dense model."""
        return self.evaluator.bank.parents[0].depth

    def blueprint(self, cut: Cut) -> Blueprint:
        """The model without these layers."""
        space = METHODS["collapse"](self.depth, len(cut), ("keep",))
        return Blueprint((self.evaluator.bank.parents[0].source,), space.decode(space.from_removed(cut)))

    def fill(self, cuts: Sequence[Cut], sequences: int) -> None:
        """Evaluate what is missing."""
        column = self.known.setdefault(sequences, {})
        missing = [c for c in cuts if c not in column]
        if missing:
            measures = self.evaluator.evaluate(list(map(self.blueprint, missing)), Fidelity(sequences))
            column |= {c: m.kl for c, m in zip(missing, measures, strict=True)}

    def ranked(self, sequences: int) -> list[Cut]:
        """Every cut of the wanted size, best first."""
        column = self.known[sequences]
        return sorted((c for c in column if len(c) == self.drop), key=column.__getitem__)


def main() -> None:
    """Enumerate, search, compare, print a markdown table."""
    a = arguments()
    evaluator, report = subjects(a)
    table = Table(evaluator, a.drop)
    stages = screening(a.windows, a.length)
    cuts = list(itertools.combinations(range(table.depth), a.drop))
    enumerate_all(table, cuts, stages, a.table)
    everything = passes(table.depth, cuts) * a.windows
    cap = a.evaluations or 16 + TRIALS_PER_SWAP * a.drop * (table.depth - a.drop)
    print(
        f"{len(cuts):,} ways to drop {a.drop} of {table.depth} layers; fitness KL on {a.windows} x {a.length} tokens "
        f"of the search split, screened on {stages[0]} windows; staged evolution asks at most {cap} times; "
        f"{a.seeds} seeds; {evaluator.bank.model.dtype}, {torch.get_num_threads()} threads\n"
    )
    rows = list(compete(table, stages, cap, a.seeds, everything))
    best = table.ranked(a.windows)
    show(rows, best, report_scores(report, table, [r.found for r in rows] + [[best[0]]]))


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--drop", type=int, default=4)
    p.add_argument("--windows", type=int, default=16)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--report-windows", type=int, default=48)
    p.add_argument("--evaluations", type=int, help="cap of staged evolution; default as in hf-prune compress")
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--table", type=Path, help="where the enumeration is kept")
    return p.parse_args()


def subjects(a: argparse.Namespace) -> tuple[Evaluator, Evaluator]:
    """Evaluators of the bundled model on the search and on the report split."""
    folder = demo_folder() / "storymath-16l"
    parent = Parent.open(Source(folder.name, "bundled"), folder)
    dtype = torch.bfloat16 if computes_bfloat16() else torch.float32
    bank = LayerBank(assemble(Blueprint.identity(parent.source, parent.depth), [parent], dtype=dtype), [parent])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = [str(demo_folder() / "text")]
    search = windows(text, tokenizer, "search", a.windows, a.length).tokens
    report = windows(text, tokenizer, "report", a.report_windows, a.length).tokens
    return Evaluator(bank, search, with_updates=False), Evaluator(bank, report, with_updates=False)


def screening(full: int, length: int) -> tuple[int, int]:
    """Windows of the first stage and of full evidence, as the pipeline chooses them."""
    quarter = full // 4
    return (quarter if quarter * length >= SCREENING_TOKENS else full // 2), full


def enumerate_all(table: Table, cuts: Sequence[Cut], stages: Sequence[int], path: Path | None) -> None:
    """Fill the table, from the file where there is one."""
    stored = dict(np.load(path)) if path and path.exists() else {}
    for sequences in stages:
        key = f"{table.evaluator.bank.model.dtype}-{table.evaluator.reference.tokens.shape[1]}-{sequences}"
        if (values := stored.get(key)) is not None and len(values) == len(cuts):
            table.known[sequences] = dict(zip(cuts, map(float, values), strict=True))
        table.fill(cuts, sequences)
        stored[key] = np.array([table.known[sequences][c] for c in cuts])
        if path:
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **stored)
            os.replace(partial, path)


def passes(depth: int, cuts: Sequence[Cut]) -> int:
    """Layer passes of one sweep: distinct prefixes of the kept layers that are not the dense model's own."""
    prefixes = set()
    for cut in cuts:
        kept = [layer for layer in range(depth) if layer not in cut]
        prefixes |= {tuple(kept[: n + 1]) for n in range(len(kept)) if kept[n] != n}
    return len(prefixes)


@dataclass(frozen=True)
class Row:
    """One searcher over all seeds: what it found, and the mean share of the enumeration's cost."""

    name: str
    found: list[Cut]
    share: float


def compete(table: Table, stages: Sequence[int], cap: int, seeds: int, everything: int) -> Iterator[Row]:
    """Staged evolution first; the others may spend what it spent on average."""
    budget = math.inf
    for name in LABELS:
        once = name in ("greedy", "shortgpt", "window")
        runs = [
            search(table, name, stages if name in ("staged", "evopress") else stages[-1:], seed, budget,
                   cap if name == "staged" else 1 << 20)
            for seed in range(1 if once else seeds)
        ]  # fmt: skip
        share = statistics.mean(cost for _, cost in runs) / everything
        yield Row(name, [found for found, _ in runs], share)
        if name == "staged":
            budget = share * everything


def search(table: Table, name: str, stages: Sequence[int], seed: int, budget: float, cap: int) -> tuple[Cut, float]:
    """The best cut that a searcher saw on full evidence, and what it spent in passes x windows."""
    space = METHODS["collapse"](table.depth, table.drop, ("keep",))
    reference = table.evaluator.reference
    scores = Scores(block_influence(reference), block_distance(reference))
    asking = SEARCHERS[name](
        space, Schedule(tuple(map(Fidelity, stages)), cap, scores=scores), np.random.default_rng(seed)
    )
    cost, best = 0.0, (math.inf, ())
    answer: tuple[Outcome, ...] | None = None
    while cost < budget or name in ("greedy", "shortgpt", "window"):
        try:
            trials = asking.send(answer)
        except StopIteration:
            break
        cost += sum(
            n * passes(table.depth, [cut_of(space, t) for t in trials if t.fidelity.sequences == n]) for n in stages
        )
        answer = tuple(told(table, space, trials))
        wanted = [(o.values[0], cut_of(space, o.trial)) for o in answer if o.trial.fidelity.sequences == stages[-1]]
        best = min([best, *((v, c) for v, c in wanted if len(c) == table.drop)])
    return best[1], cost


def told(table: Table, space: object, trials: Sequence[Trial]) -> Iterator[Outcome]:
    """What the table says to trials."""
    for trial in trials:
        cut, sequences = cut_of(space, trial), trial.fidelity.sequences
        table.fill([cut], sequences)
        yield Outcome(trial, (table.known[sequences][cut],))


def cut_of(space: object, trial: Trial) -> Cut:
    """The layers that a genome removes."""
    kept = {spec.anchor.layer for spec in space.decode(trial.genome)}
    return tuple(layer for layer in range(space.depth) if layer not in kept)


def report_scores(report: Evaluator, table: Table, found: Sequence[Sequence[Cut]]) -> Callable[[Cut], np.ndarray]:
    """NLL per report window of every cut that somebody found, and of the dense model (the empty cut)."""
    cuts = sorted({cut for group in found for cut in group} | {()})
    sequences = len(report.reference.tokens)
    scores = report.token_scores([table.blueprint(c) for c in cuts], Fidelity(sequences))
    nll = {c: n.double().mean(1).numpy() for c, (_, n) in zip(cuts, scores, strict=True)}
    return nll.__getitem__


def show(rows: Sequence[Row], best: Sequence[Cut], nll: Callable[[Cut], np.ndarray]) -> None:
    """Print the table; perplexities are of what a searcher found most often."""
    print(f"Optimum: {best[0]}; perplexity on the report split {ppl(nll(best[0]))}, dense {ppl(nll(()))}.\n")
    print("| | finds the optimum | rank: median, worst | cost of the enumeration | most often | perplexity | against the optimum |")  # fmt: skip # noqa: E501
    print("|---|---:|---:|---:|---|---:|---:|")
    for row in rows:
        ranks = [best.index(c) + 1 for c in row.found]
        usual = Counter(row.found).most_common(1)[0][0]
        low, high = interval(nll(usual) - nll(best[0]))[1]
        against = f"× {math.exp(low):.3f} to {math.exp(high):.3f}" if usual != best[0] else "the same"
        print(
            f"| {LABELS[row.name]} | {ranks.count(1)} of {len(ranks)} | {statistics.median(ranks):g}, {max(ranks)} | "
            f"{row.share:.3f} | {', '.join(map(str, usual))} | {ppl(nll(usual))} | {against} |"
        )


def ppl(nll: np.ndarray) -> str:
    """Perplexity of per-window NLLs."""
    return f"{perplexity(nll).perplexity:.2f}"


if __name__ == "__main__":
    main()
