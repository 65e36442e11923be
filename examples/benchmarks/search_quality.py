"""Does the search find the best cut? Every way to drop k layers is scored once; then searchers look for the best.

The bundled model has few enough layers to enumerate: 1,820 ways to drop 4 of 16, 8,008 to drop 6; a real one of 30
layers has 4,060 and 27,405 to drop 3 and 4. The table holds KL and NLL of each on every search window. The searchers
are those of the package and are told values from the table; staged evolution begins as in a run of hf-prune, but
without the cut of SLEB, and pays for the search of the best window; the others begin from random cuts. What a
generation costs is counted as the sweep computes it: multiplications of layers and head, shared prefixes once,
prefixes of the dense model free. EvoPress's schedule, the genetic algorithm and random choice may spend what staged
evolution spent on average. The last columns compare perplexity on the report split, which none of them saw, with the
optimum of the search evidence: paired 95 % interval over windows.

    python examples/benchmarks/search_quality.py --drop 4 --windows 16 --length 256 --seeds 20
    python examples/benchmarks/search_quality.py --drop 6 --windows 8 --length 128 --seeds 10
    python examples/benchmarks/search_quality.py --model SMOLLM2 --data TEXT --drop 3 --windows 8 --length 128
    python examples/benchmarks/search_quality.py --model SMOLLM2 --data TEXT --drop 6 --windows 8 --length 128 \
        --longer 10

SMOLLM2 is a folder of HuggingFaceTB/SmolLM2-135M-Instruct, TEXT a folder of NAME.{search,report}.jsonl, such as
Salesforce/wikitext and openai/gsm8k. `--table FILE.npz` keeps what was scored for another run. `--longer N`
enumerates nothing: the reference is the best that any of three searches finds with N times the cost.
"""

import argparse
import hashlib
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
from hf_prune.blueprint import Blueprint, Fidelity, Genome, Outcome, Source, Trial
from hf_prune.data.bundled import demo_folder
from hf_prune.data.windows import windows
from hf_prune.evaluation.comparison import block_distance, block_influence
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.speed import computes_bfloat16
from hf_prune.methods import METHODS
from hf_prune.methods.collapse import CollapseSpace
from hf_prune.methods.method import Facts
from hf_prune.planning import evaluations, facts_of
from hf_prune.recipe import Recipe
from hf_prune.report.statistics import interval, perplexity
from hf_prune.search import SEARCHERS, Schedule, Scores, focus

Cut = tuple[int, ...]
LABELS = {
    "staged": "staged evolution",
    "evopress": "EvoPress's schedule",
    "genetic": "genetic algorithm",
    "random": "random choice",
    "greedy": "SLEB (greedy)",
    "shortgpt": "ShortGPT",
    "window": "best window",
}
AS_LONG = ("staged", "evopress", "genetic")
"""Who looks for the reference where there are too many cuts to enumerate."""
COLUMNS = (
    "finds the best",
    "KL against the best's: median, worst",
    "cost of the enumeration",
    "most often",
    "perplexity",
    "against the best",
)
CHUNK = 2048
"""Cuts that share a sweep: enough for their prefixes, few enough for memory."""
Scoring = Callable[[Cut], np.ndarray]
"""NLL of a cut, per window of the report split."""


@dataclass(eq=False)
class Table:
    """KL and NLL of cuts on every search window, [windows, 2]; what is not there yet is evaluated."""

    evaluator: Evaluator
    drop: int
    path: Path | None = None
    known: dict[Cut, np.ndarray] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Layers of the dense model."""
        return self.evaluator.bank.parents[0].depth

    @property
    def windows(self) -> int:
        """Full evidence."""
        return len(self.evaluator.reference.tokens)

    def blueprint(self, cut: Cut) -> Blueprint:
        """The model without these layers."""
        space = CollapseSpace(self.depth, len(cut))
        return Blueprint(self.evaluator.bank.sources, space.decode(space.from_removed(cut)))

    def fill(self, cuts: Sequence[Cut]) -> None:
        """Evaluate what is missing."""
        missing = [c for c in dict.fromkeys(cuts) if c not in self.known]
        for first in range(0, len(missing), CHUNK):
            some = missing[first : first + CHUNK]
            scores = self.evaluator.token_scores(list(map(self.blueprint, some)), Fidelity(self.windows))
            for cut, pair in zip(some, scores, strict=True):
                self.known[cut] = torch.stack([x.double().mean(1) for x in pair], 1).numpy()
            if len(missing) > CHUNK:
                self.save()

    def values(self, cut: Cut, sequences: int) -> tuple[float, float]:
        """KL and NLL on the first windows."""
        kl, nll = self.known[cut][:sequences].mean(0)
        return float(kl), float(nll)

    def ranked(self) -> list[Cut]:
        """Every cut of the wanted size that was scored, best first."""
        return sorted(
            (c for c in self.known if len(c) == self.drop), key=lambda c: (self.values(c, self.windows)[0], c)
        )

    @property
    def digest(self) -> str:
        """Of all values, to the sixth digit."""
        text = "".join(f"{c}{self.values(c, self.windows)[0]:.6g}" for c in sorted(self.known))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self) -> None:
        """What an earlier run scored on the same windows in the same precision."""
        if self.path and self.path.exists():
            stored = np.load(self.path)
            if str(stored["key"]) == self._key:
                cuts = [tuple(int(i) for i in row if i >= 0) for row in stored["cuts"]]
                self.known |= dict(zip(cuts, stored["values"], strict=True))

    def save(self) -> None:
        """Everything scored so far."""
        if self.path:
            cuts = np.full((len(self.known), self.depth), -1)
            for row, cut in enumerate(self.known):
                cuts[row, : len(cut)] = cut
            partial = self.path.with_suffix(".partial.npz")
            np.savez(partial, key=self._key, cuts=cuts, values=np.stack(list(self.known.values())))
            os.replace(partial, self.path)

    @property
    def _key(self) -> str:
        tokens = self.evaluator.reference.tokens
        return f"{self.evaluator.bank.model.dtype}-{hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Price:
    """Multiplications of a token: through one layer, and through the head."""

    layer: int
    head: int

    def of(self, depth: int, cuts: Sequence[Cut]) -> int:
        """Of one sweep: distinct prefixes of kept layers that are not the dense model's own, and every head."""
        prefixes = set()
        for cut in cuts:
            kept = [layer for layer in range(depth) if layer not in cut]
            prefixes |= {tuple(kept[: n + 1]) for n in range(len(kept)) if kept[n] != n}
        return len(prefixes) * self.layer + len(cuts) * self.head


def main() -> None:
    """Enumerate, search, compare, print a markdown table."""
    a = arguments()
    search, report = subjects(a)
    table = Table(search, a.drop, a.table)
    table.load()
    parent = search.bank.parents[0]
    price = Price(parent.layer_parameters, search.bank.model.get_output_embeddings().weight.numel())
    everything = math.comb(table.depth, a.drop)
    asked = Recipe.of(base="any", drop_layers=a.drop, evaluations=a.evaluations)
    cap = evaluations(asked, facts_of(asked, table.depth, a.drop))
    print(
        f"{everything:,} ways to drop {a.drop} of {table.depth} layers; fitness KL on {a.windows} x {a.length} tokens "
        f"of the search split; staged evolution asks at most {cap} times; {a.seeds} seeds; "
        f"{search.bank.model.dtype}, {torch.get_num_threads()} threads\n"
    )
    runs = Runs(table, price, cap, a.seeds)
    if a.longer:
        whole = runs.search_longer(a.longer)
    else:
        table.fill(list(itertools.combinations(range(table.depth), a.drop)))
        whole = price.of(table.depth, [c for c in table.known if len(c) == a.drop]) * a.windows
    table.save()
    rows = list(runs.compete(whole))
    table.save()
    best = table.ranked()
    print(f"{len(table.known):,} cuts were scored; digest of their values {table.digest}.")
    show(rows, table, report_scores(report, table, [r.found for r in rows] + [[best[0]]]))


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path, default=demo_folder() / "storymath-16l")
    p.add_argument("--data", default=str(demo_folder() / "text"))
    p.add_argument("--drop", type=int, default=4)
    p.add_argument("--windows", type=int, default=16)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--report-windows", type=int, default=48)
    p.add_argument("--evaluations", type=int, help="of staged evolution; default as in hf-prune compress")
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--table", type=Path, help="where what was scored is kept")
    p.add_argument("--longer", type=float, help="enumerate nothing: compare with what so many times the cost finds")
    return p.parse_args()


def subjects(a: argparse.Namespace) -> tuple[Evaluator, Evaluator]:
    """Evaluators of the model on the search and on the report split."""
    parent = Parent.open(Source(a.model.name, "local"), a.model)
    dtype = torch.bfloat16 if computes_bfloat16() else torch.float32
    model = assemble(Blueprint.identity(parent.source, parent.depth), [parent], dtype=dtype)
    bank = LayerBank(model, [parent])
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    search = windows([a.data], tokenizer, "search", a.windows, a.length).tokens
    report = windows([a.data], tokenizer, "report", a.report_windows, a.length).tokens
    return Evaluator(bank, search, with_updates=False), Evaluator(bank, report, with_updates=False)


@dataclass(frozen=True)
class Row:
    """One searcher over all seeds: what it found, and the mean share of the enumeration's cost."""

    name: str
    found: list[Cut]
    share: float


@dataclass(frozen=True, eq=False)
class Runs:
    """Searches for one table."""

    table: Table
    price: Price
    cap: int
    seeds: int

    def compete(self, everything: int) -> Iterator[Row]:
        """Staged evolution first; the others may spend what it spent on average, and as much as it takes without
        chance."""
        budget = math.inf
        for name in LABELS:
            most = self.cap if name == "staged" else 1 << 20
            alike = SEARCHERS[name].rounds is not None
            spend = math.inf if alike else budget
            runs = [self.search(name, seed, spend, most) for seed in range(1 if alike else self.seeds)]
            cost = statistics.mean(cost for _, cost in runs)
            yield Row(name, [found for found, _ in runs], cost / everything)
            if name == "staged":
                budget = cost

    def search_longer(self, times: float) -> int:
        """Fill the table with what several searches meet at so many times the cost; returns that cost."""
        _, cost = self.search("staged", 0, math.inf, self.cap)
        for name in AS_LONG:
            self.search(name, 1000, times * cost, round(self.cap * times) if name == "staged" else 1 << 20)
        return round(times * cost)

    def search(self, name: str, seed: int, budget: float, cap: int) -> tuple[Cut, float]:
        """The best cut that a searcher saw on full evidence, and what it spent, in multiplications x windows."""
        table, space = self.table, CollapseSpace(self.table.depth, self.table.drop)
        stages = SEARCHERS[name].stages(*table.evaluator.reference.tokens.shape)
        window, cost = self.search("window", seed, math.inf, cap) if name == "staged" else ((), 0.0)
        asking, best = self._asking(name, space, stages, seed, cap, window), (math.inf, ())
        answer: tuple[Outcome, ...] | None = None
        while cost < budget:
            try:
                trials = asking.send(answer)
            except StopIteration:
                break
            answer = tuple(self._told(space, trials))
            for n in stages:
                cuts = [removed(space, t.genome) for t in trials if t.fidelity.sequences == n]
                cost += n * self.price.of(table.depth, cuts)
            full = [
                (o.values[0], removed(space, o.trial.genome))
                for o in answer
                if o.trial.fidelity.sequences == stages[-1]
            ]
            best = min([best, *((v, c) for v, c in full if len(c) == table.drop)])
        return best[1], cost

    def _asking(self, name: str, space: CollapseSpace, stages: Sequence[int], seed: int, cap: int, window: Cut):
        reference = self.table.evaluator.reference
        scores = Scores(block_influence(reference), block_distance(reference))
        facts = Facts(self.table.depth, self.table.drop, influence=scores.influence)
        method = METHODS["collapse"]
        starts = method.starts(space, facts, (window,)) if name == "staged" else ()
        guess = method.guess(space, facts) if name == "staged" else None
        schedule = Schedule(tuple(map(Fidelity, stages)), cap, scores=scores, seeds=starts, guess=guess)
        asking = SEARCHERS[name].propose(space, schedule, np.random.default_rng(seed))
        return focus(asking, (1,)) if name == "greedy" else focus(asking, (0,))

    def _told(self, space: CollapseSpace, trials: Sequence[Trial]) -> Iterator[Outcome]:
        cuts = [removed(space, t.genome) for t in trials]
        self.table.fill(cuts)
        for trial, cut in zip(trials, cuts, strict=True):
            yield Outcome(trial, self.table.values(cut, trial.fidelity.sequences))


def removed(space: CollapseSpace, genome: Genome) -> Cut:
    """The layers that a genome removes."""
    kept = {spec.anchor.layer for spec in space.decode(genome)}
    return tuple(layer for layer in range(space.depth) if layer not in kept)


def report_scores(report: Evaluator, table: Table, found: Sequence[Sequence[Cut]]) -> Scoring:
    """NLL per report window of every cut that somebody found, and of the dense model (the empty cut)."""
    cuts = sorted({cut for group in found for cut in group} | {()})
    sequences = len(report.reference.tokens)
    scores = report.token_scores([table.blueprint(c) for c in cuts], Fidelity(sequences))
    nll = {c: n.double().mean(1).numpy() for c, (_, n) in zip(cuts, scores, strict=True)}
    return nll.__getitem__


def show(rows: Sequence[Row], table: Table, nll: Scoring) -> None:
    """Print the table; perplexities are of what a searcher found most often."""
    best = table.ranked()[0]
    ends = ppl(nll(best)), ppl(nll(()))
    print(f"Best: {best}; perplexity on the report split {ends[0]}, dense {ends[1]}.\n")
    print(f"| | {' | '.join(COLUMNS)} |\n|---|---:|---:|---:|---|---:|---:|")
    lowest = table.values(best, table.windows)[0]
    for row in rows:
        ratios = [table.values(c, table.windows)[0] / lowest for c in row.found]
        usual = Counter(row.found).most_common(1)[0][0]
        low, high = interval(nll(usual) - nll(best))[1]
        against = f"× {math.exp(low):.3f} to {math.exp(high):.3f}" if usual != best else "the same"
        cells = (
            LABELS[row.name],
            f"{row.found.count(best)} of {len(row.found)}",
            f"{statistics.median(ratios):.3f}, {max(ratios):.3f}",
            f"{row.share:.4f}",
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
