"""Who finds the better stitched model: evolution, SMAC or chance? Best score against evidence spent, at equal evidence.

Every searcher starts from the same warm starts (late and middle removals and ShortGPT's of every parent and of uniform
blends) and may spend the same number of windows: a trial on a quarter of the windows counts a quarter. SMAC runs as in
GPTailor (Hyperband with eta 3 over a ninth, a third and all of it). What is shown is the best value on full evidence.

    python examples/benchmarks/stitch_search.py --windows-spent 12000 --seeds 0 1 2
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_prune.blueprint import Genome
from hf_prune.data.bundled import demo_folder
from hf_prune.evaluation.comparison import block_influence
from hf_prune.events import exhaust
from hf_prune.recipe import Recipe
from hf_prune.search import SEARCHERS, Schedule, drive, focus
from hf_prune.session.session import Session, open_session

SEARCHES = ("staged", "smac", "random")
CHECKPOINTS = (0.1, 0.25, 0.5, 1.0)


class Spent(Exception):
    """The evidence is used up."""


@dataclass
class Ledger:
    """A journal that counts windows and remembers how good the best was after how many."""

    full: int
    most: float
    known: dict = field(default_factory=dict)
    spent: float = 0.0
    course: list[tuple[float, float]] = field(default_factory=list)

    def get(self, key: object) -> tuple[float, ...] | None:
        """As a journal."""
        return self.known.get(key)

    def record(self, entries: list) -> None:
        """As a journal; ends the search when too much was spent."""
        for key, _, values in entries:
            self.known[key] = values
            self.spent += key[1].sequences
            best = self.course[-1][1] if self.course else float("inf")
            if key[1].sequences == self.full:
                best = min(best, values[0])
            self.course.append((self.spent, best))
        if self.spent >= self.most:
            raise Spent

    def at(self, share: float) -> float:
        """The best by then."""
        return next((b for s, b in reversed(self.course) if s <= share * self.most), self.course[0][1])


def main() -> None:
    """Search with every seed and print a markdown table."""
    a = arguments()
    found: dict[str, list[Ledger]] = {name: [] for name in SEARCHES}
    seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
    with tempfile.TemporaryDirectory() as home:
        session = opened(a, Path(home))
        for seed in a.seeds:
            for name in SEARCHES:
                begin = time.perf_counter()
                found[name].append(searched(session, name, a.windows_spent, seed))
                seconds[name].append(time.perf_counter() - begin)
                best = found[name][-1].course[-1][1]
                print(f"seed {seed}, {name}: {best:.4f} in {seconds[name][-1]:.0f} s", flush=True)
    print(
        f"\nbest {a.objective} on {a.windows} windows of {a.length} tokens, mean of {len(a.seeds)} seeds; "
        f"4 of 16 layers gone, base and three variants, {a.windows_spent:,} windows each\n"
    )
    print(f"| | {' | '.join(f'{c:.0%} spent' for c in CHECKPOINTS)} | worst seed | seconds |")
    print(f"|---|{'---:|' * (len(CHECKPOINTS) + 2)}")
    for name, ledgers in found.items():
        cells = [f"{statistics.mean(ledger.at(c) for ledger in ledgers):.4f}" for c in CHECKPOINTS]
        worst = max(ledger.at(1.0) for ledger in ledgers)
        print(f"| {name} | {' | '.join(cells)} | {worst:.4f} | {statistics.mean(seconds[name]):.0f} |")


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--windows", type=int, default=24, help="of full evidence")
    p.add_argument("--length", type=int, default=256, help="tokens of a window")
    p.add_argument("--windows-spent", type=int, default=12_000)
    p.add_argument("--objective", default="kl")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    return p.parse_args()


def opened(a: argparse.Namespace, home: Path) -> Session:
    """The bundled family."""
    demo = demo_folder()
    special = demo / "specialists"
    variants = tuple(str(special / n) for n in ("plays", "code", "qa"))
    recipe = Recipe.of(
        base=str(demo / "storymath-16l"),
        variants=variants,
        data=(str(demo / "text"), str(special / "text")),
        method="stitch",
        drop_layers=4,
        objective=a.objective,
        sequences=a.windows,
        length=a.length,
        selection_sequences=6,
        output=str(home / "out"),
    )
    session = open_session(recipe)
    session.workdir.folder.mkdir(parents=True)
    return session


def warm_starts(session: Session) -> tuple[Genome, ...]:
    """The same for all."""
    space, inputs = session.scorer.space, session.inputs
    depth, remove, count = inputs.depth, inputs.target.remove, len(inputs.parents)
    order = np.argsort(block_influence(session.evaluator.reference), kind="stable")
    cuts = [
        range(depth - 1 - remove, depth - 1),
        range(depth // 2 - 2, depth // 2 - 2 + remove),
        order[:remove].tolist(),
    ]
    mixes = [(1.0,) * count, *(tuple(float(j == k) for j in range(count)) for k in range(count))]
    return tuple(dict.fromkeys(space.of(cut, mix) for mix in mixes for cut in cuts))


def searched(session: Session, name: str, most: int, seed: int) -> Ledger:
    """Until the evidence is spent."""
    full, scorer = session.recipe.data.sequences, session.scorer
    stages = {
        "staged": (full // 4, full),
        "smac": (max(1, full // 9), full // 3, full),
        "random": (full,),
    }
    fidelities = tuple(map(session.evidence.fidelity, stages[name]))
    trials = 10**6 if name != "random" else most // full + 100
    schedule = Schedule(fidelities, trials, seeds=warm_starts(session))
    ledger = Ledger(full, most)
    search = SEARCHERS[name].propose(scorer.space, schedule, np.random.default_rng(seed))
    with contextlib.suppress(Spent):
        exhaust(drive(focus(search, (0,)), scorer.evaluate, ledger, scorer.key, batch=64))
    return ledger


if __name__ == "__main__":
    main()
