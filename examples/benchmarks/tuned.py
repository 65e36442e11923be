"""What the weights of mixes should be learned from: text alone, or the doubt about tasks, too; and from how many items.

The bundled base and its specialists at a cut that searches for `abilities` end at, every layer half the base and half
the mean of the others. From there weights are learned from the search windows and from so many items of each of the six
tasks; a row is how the result does on other windows and other items, taken a part of the way.

    python examples/benchmarks/tuned.py
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from hf_prune.blueprint import Blueprint, LayerSpec, Part
from hf_prune.data.bundled import demo_folder
from hf_prune.evaluation.objectives import Measures, values
from hf_prune.recipe import Recipe
from hf_prune.recovery.mixes import midway, tune
from hf_prune.session.session import Session, open_session

REMOVED = (3, 6, 7, 12)
SHARES = (0.5, 0.75, 1.0)


def main() -> None:
    """Learn from every number of items and print a markdown table."""
    a = arguments()
    with tempfile.TemporaryDirectory() as home:
        session = opened(a, Path(home))
        start = blend(session)
        before, *_ = session.evaluator.evaluate([start], session.evidence.selection)
        lines = [line("before", before)]
        for items in a.items:
            begin = time.perf_counter()
            evidence = replace(session.evidence.text, items=items)
            learned = tune(session.evaluator, start, evidence, a.steps).blueprint
            print(f"{items} items: {(time.perf_counter() - begin) / a.steps:.1f} s a step", flush=True)
            ways = [midway(start, learned, share) for share in SHARES]
            after = session.evaluator.evaluate(ways, session.evidence.selection)
            for share, m in zip(SHARES, after, strict=True):
                lines.append(line(f"{items} items, {share:.0%} of the way", m))
    print("\n| learned from | abilities | log-perplexity | doubt, nats | acc_norm | acc |")
    print("\n".join(["|---|---:|---:|---:|---:|---:|", *lines]))


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--items", type=int, nargs="+", default=[0, 16, 48], help="of every task; 0 is text alone")
    p.add_argument("--held", type=int, default=112, help="items of every task to measure by")
    p.add_argument("--steps", type=int, default=20)
    return p.parse_args()


def opened(a: argparse.Namespace, home: Path) -> Session:
    """Base and three variants, with their text and tasks."""
    demo = demo_folder()
    special = demo / "specialists"
    return open_session(
        Recipe.of(
            base=str(demo / "storymath-16l"),
            variants=tuple(str(special / name) for name in ("plays", "code", "qa")),
            data=(str(demo / "text"), str(special / "text")),
            search_tasks=tuple(str(path) for path in sorted((special / "tasks").glob("*.search.jsonl"))),
            method="stitch",
            objective="abilities",
            drop_layers=len(REMOVED),
            sequences=48,
            selection_sequences=36,
            search_items=max(1, *a.items),
            selection_items=a.held,
            output=str(home / "out"),
        )
    )


def blend(session: Session) -> Blueprint:
    """Half the base and half the mean of its variants."""
    others = len(session.inputs.parents) - 1
    shares = (0.5, *[0.5 / others] * others)
    kept = (layer for layer in range(session.inputs.depth) if layer not in REMOVED)
    mixes = (tuple(Part(parent, layer, share) for parent, share in enumerate(shares)) for layer in kept)
    return Blueprint(session.inputs.sources, tuple(map(LayerSpec, mixes))).canonical()


def line(name: str, m: Measures) -> str:
    """A row of the table."""
    cells = (
        f"{values(m, ('abilities',))[0]:.3f}",
        f"{m.text:.3f}",
        f"{m.doubt:.4f}",
        f"{1 - m.error_norm:.1%}",
        f"{1 - m.error:.1%}",
    )
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
