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
from hf_prune.evaluation.comparison import block_distance, block_influence
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.speed import computes_bfloat16
from hf_prune.methods.collapse import CollapseSpace
from hf_prune.plan import evaluations, facts_of
from hf_prune.recipe import Recipe
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
COLUMNS = (
    "finds the optimum",
    "rank: median, worst",
    "cost of the enumeration",
    "most often",
    "perplexity",
    "against the optimum",
)
Scoring = Callable[[Cut], np.ndarray]
"""NLL of a cut, per window of the report split."""


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
        space = CollapseSpace(self.depth, len(cut))
        return Blueprint(self.evaluator.bank.sources, space.decode(space.from_removed(cut)))

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
    stages = stages_of("staged", evaluator)
    cuts = list(itertools.combinations(range(table.depth), a.drop))
    enumerate_all(table, cuts, stages, a.table)
    asked = Recipe.of(base="storymath-16l", drop_layers=a.drop, evaluations=a.evaluations)
    cap = evaluations(asked, facts_of(asked, table.depth, a.drop))
    print(
        f"{len(cuts):,} ways to drop {a.drop} of {table.depth} layers; "
        f"fitness KL on {a.windows} x {a.length} tokens of the search split, "
        f"screened on {stages[0]} windows; staged evolution asks at most {cap} times; "
        f"{a.seeds} seeds; {evaluator.bank.model.dtype}, {torch.get_num_threads()} threads\n"
    )
    rows = list(compete(table, cap, a.seeds, passes(table.depth, cuts) * a.windows))
    best = table.ranked(a.windows)
    show(rows, best, report_scores(report, table, [r.found for r in rows] + [[best[0]]]))


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--drop", type=int, default=4)
    p.add_argument("--windows", type=int, default=16)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--report-windows", type=int, default=48)
    p.add_argument("--evaluations", type=int, help="of staged evolution; default as in hf-prune compress")
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--table", type=Path, help="where the enumeration is kept")
    return p.parse_args()


def subjects(a: argparse.Namespace) -> tuple[Evaluator, Evaluator]:
    """Evaluators of the bundled model on the search and on the report split."""
    folder = demo_folder() / "storymath-16l"
    parent = Parent.open(Source(folder.name, "bundled"), folder)
    dtype = torch.bfloat16 if computes_bfloat16() else torch.float32
    model = assemble(Blueprint.identity(parent.source, parent.depth), [parent], dtype=dtype)
    bank = LayerBank(model, [parent])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = [str(demo_folder() / "text")]
    search = windows(text, tokenizer, "search", a.windows, a.length).tokens
    report = windows(text, tokenizer, "report", a.report_windows, a.length).tokens
    return Evaluator(bank, search, with_updates=False), Evaluator(bank, report, with_updates=False)


def stages_of(name: str, evaluator: Evaluator) -> tuple[int, ...]:
    """Growing numbers of windows, as a run gives them to this searcher."""
    return SEARCHERS[name].stages(*evaluator.reference.tokens.shape)


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


def compete(table: Table, cap: int, seeds: int, everything: int) -> Iterator[Row]:
    """Staged evolution first; the others may spend what it spent on average, and as much as it takes without chance."""
    budget = math.inf
    for name in LABELS:
        most = cap if name == "staged" else 1 << 20
        alike = SEARCHERS[name].rounds is not None
        spend = math.inf if alike else budget
        runs = [search(table, name, seed, spend, most) for seed in range(1 if alike else seeds)]
        share = statistics.mean(cost for _, cost in runs) / everything
        yield Row(name, [found for found, _ in runs], share)
        if name == "staged":
            budget = share * everything


def search(table: Table, name: str, seed: int, budget: float, cap: int) -> tuple[Cut, float]:
    """The best cut that a searcher saw on full evidence, and what it spent in passes x windows."""
    space, stages = CollapseSpace(table.depth, table.drop), stages_of(name, table.evaluator)
    reference = table.evaluator.reference
    scores = Scores(block_influence(reference), block_distance(reference))
    schedule = Schedule(tuple(map(Fidelity, stages)), cap, scores=scores)
    asking = SEARCHERS[name].propose(space, schedule, np.random.default_rng(seed))
    cost, best = 0.0, (math.inf, ())
    answer: tuple[Outcome, ...] | None = None
    while cost < budget:
        try:
            trials = asking.send(answer)
        except StopIteration:
            break
        for n in stages:
            cuts = [cut_of(space, t) for t in trials if t.fidelity.sequences == n]
            cost += n * passes(table.depth, cuts)
        answer = tuple(told(table, space, trials))
        full = [o for o in answer if o.trial.fidelity.sequences == stages[-1]]
        wanted = [(o.values[0], cut_of(space, o.trial)) for o in full]
        best = min([best, *((v, c) for v, c in wanted if len(c) == table.drop)])
    return best[1], cost


def told(table: Table, space: CollapseSpace, trials: Sequence[Trial]) -> Iterator[Outcome]:
    """What the table says to trials."""
    for trial in trials:
        cut, sequences = cut_of(space, trial), trial.fidelity.sequences
        table.fill([cut], sequences)
        yield Outcome(trial, (table.known[sequences][cut],))


def cut_of(space: CollapseSpace, trial: Trial) -> Cut:
    """The layers that a genome removes."""
    kept = {spec.anchor.layer for spec in space.decode(trial.genome)}
    return tuple(layer for layer in range(space.depth) if layer not in kept)


def report_scores(report: Evaluator, table: Table, found: Sequence[Sequence[Cut]]) -> Scoring:
    """NLL per report window of every cut that somebody found, and of the dense model (the empty cut)."""
    cuts = sorted({cut for group in found for cut in group} | {()})
    sequences = len(report.reference.tokens)
    scores = report.token_scores([table.blueprint(c) for c in cuts], Fidelity(sequences))
    nll = {c: n.double().mean(1).numpy() for c, (_, n) in zip(cuts, scores, strict=True)}
    return nll.__getitem__


def show(rows: Sequence[Row], best: Sequence[Cut], nll: Scoring) -> None:
    """Print the table; perplexities are of what a searcher found most often."""
    ends = ppl(nll(best[0])), ppl(nll(()))
    print(f"Optimum: {best[0]}; perplexity on the report split {ends[0]}, dense {ends[1]}.\n")
    print(f"| | {' | '.join(COLUMNS)} |\n|---|---:|---:|---:|---|---:|---:|")
    for row in rows:
        ranks = [best.index(c) + 1 for c in row.found]
        usual = Counter(row.found).most_common(1)[0][0]
        low, high = interval(nll(usual) - nll(best[0]))[1]
        against = f"× {math.exp(low):.3f} to {math.exp(high):.3f}" if usual != best[0] else "the same"
        cells = (
            LABELS[row.name],
            f"{ranks.count(1)} of {len(ranks)}",
            f"{statistics.median(ranks):g}, {max(ranks)}",
            f"{row.share:.3f}",
            ", ".join(map(str, usual)),
            ppl(nll(usual)),
            against,
        )
        print(f"| {' | '.join(cells)} |")


def ppl(nll: np.ndarray) -> str:
    """Perplexity of per-window NLLs."""
    return f"{perplexity(nll).perplexity:.2f}"


if __name__ == "__main__":
    main()
