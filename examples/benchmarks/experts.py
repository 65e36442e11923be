"""Experts taken out of a mixture without training: by search, by search and repair, and by single scores.

Every row is the gap of log-perplexity to the dense mixture on the report split, nats per token, all corpora alike: of
each seed, then their mean. The search has the recipe's default number of trials unless --evaluations says another.
One run with repair gives all rows of a seed: its report tells the cut, the repaired model and the baselines apart.

    python examples/upcycle.py mixture --tokens 90000
    python examples/benchmarks/experts.py mixture --go 2 4 --seeds 0 1 2 --evaluations 120
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path

from hf_prune import hub
from hf_prune.data.bundled import demo_folder
from hf_prune.models.headers import weigh
from hf_prune.pipeline import run
from hf_prune.recipe import Recipe

SCORES = ("reap", "frequency", "output_norm", "ean", "weight_norm", "random_experts")


def main() -> None:
    """Measure and print a markdown table."""
    a = arguments()
    print("| experts that go of 8 | model | " + " | ".join(f"seed {s}" for s in a.seeds) + " | mean |")
    print("|" + "---|" * (len(a.seeds) + 3))
    for go in a.go:
        found: dict[str, list[float]] = {}
        for seed in a.seeds:
            for name, gap in measured(a, go, seed).items():
                found.setdefault(name, []).append(gap)
        for name, gaps in found.items():
            print(f"| {go} | {name} | " + " | ".join(f"{g:.4f}" for g in gaps) + f" | {statistics.mean(gaps):.4f} |")


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixture", type=Path)
    parser.add_argument("--go", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--windows", type=int, default=24, help="that the search reads")
    parser.add_argument("--per-layer", action="store_true")
    return parser.parse_args()


def measured(a: argparse.Namespace, go: int, seed: int) -> dict[str, float]:
    """Gap of each model, one seed."""
    weights = weigh(hub.peek(str(a.mixture)))
    ratio = go * len(weights.mixture.layers) * weights.mixture.parameters / weights.total
    texts = (demo_folder() / "text", demo_folder() / "specialists" / "text")
    with tempfile.TemporaryDirectory() as home:
        recipe = Recipe.of(
            base=str(a.mixture), output=f"{home}/out", method="experts", ratio=ratio, seed=seed,
            data=tuple(map(str, texts)), length=128, sequences=a.windows, selection_sequences=24, report_sequences=48,
            library_sequences=48, library=f"{home}/library", repair=True, repair_sequences=96, repair_finalists=2,
            time=None, evaluations=a.evaluations, baselines=SCORES, per_layer=a.per_layer,
            tasks=(str(demo_folder() / "tasks" / "math_cloze.report.jsonl"),), task_items=4,
        )  # fmt: skip
        report = run(recipe).report
    all_text = report["text"]["all"]
    dense = math.log(all_text["dense"]["perplexity"])
    gaps = {b["name"]: math.log(b["perplexity"]) - dense for b in report["baselines"]}
    return {**gaps, "hf_prune, repaired": all_text["log_ratio"]}


if __name__ == "__main__":
    main()
