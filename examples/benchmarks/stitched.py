"""What stitching is worth: one model out of a base and three specialists, beside every way to cut them without it.

The bundled base and its specialists (plays, code, questions) lose `--drop-layers` of 16 layers, without training. A row
is one run per seed, all searches with as many trials: mean log-perplexity over the six corpora of the report split, and
accuracy on the six report tasks as a share of the best dense parent's. Searches and choices never see either.

    python examples/benchmarks/stitched.py --seeds 0 1 2
    python examples/benchmarks/stitched.py --seeds 0 --evaluations 320   (quick)

`--keep FOLDER` keeps the runs, so that a stopped benchmark goes on; other flags are those of `hf-prune compress`.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from hf_prune.data.bundled import demo_folder
from hf_prune.pipeline import run
from hf_prune.recipe import TASK_OBJECTIVES, Recipe

SPECIALISTS = ("plays", "code", "qa")
TASKS = Path(__file__).parent / "tasks"
"""400 report items of each of the base's own tasks, of which the demo has 150."""


def main() -> None:
    """Run every seed and print a markdown table."""
    a = arguments()
    with tempfile.TemporaryDirectory() as home:
        folder = a.keep or Path(home)
        reports = [report_of(a, seed, folder) for seed in a.seeds]
    sections = [r["retention"] for r in reports]
    first, references = sections[0], dict.fromkeys(s["reference"] for s in sections)
    print(
        f"\nreference: {', '.join(references)}; {len(first['corpora'])} corpora, "
        f"{first['items']} items of each of {len(first['tasks'])} tasks; "
        f"{a.evaluations or 'default'} trials\n"
    )
    show(sections)
    print()
    detail(first, a.seeds[0])


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--drop-layers", type=int, default=4)
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--evaluations", type=int, help="trials of every search; default as in hf-prune compress")
    p.add_argument("--objective", default="kl")
    p.add_argument("--halves", action="store_true", help="attention and MLP are mixed apart")
    p.add_argument("--tune", type=int, default=0, help="steps of gradient descent on the winner's mixes")
    p.add_argument("--sequences", type=int, default=48)
    p.add_argument("--search-items", type=int, default=96, help="of every task, for objectives that look at tasks")
    p.add_argument("--selection-items", type=int, default=64, help="of every task, to choose among the finalists")
    p.add_argument("--items", type=int, default=400, help="of every report task")
    p.add_argument("--keep", type=Path, help="folder for the runs")
    return p.parse_args()


def report_of(a: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """One seed."""
    demo = demo_folder()
    special = demo / "specialists"
    asked = files(special / "tasks", "search")
    name = f"{a.objective}-{a.sequences}-{a.halves}-{a.evaluations}-{a.drop_layers}-{seed}"
    recipe = Recipe.of(
        base=str(demo / "storymath-16l"),
        variants=tuple(str(special / name) for name in SPECIALISTS),
        data=(str(demo / "text"), str(special / "text")),
        tasks=files(TASKS, "report") + files(special / "tasks", "report"),
        search_tasks=asked if a.objective in TASK_OBJECTIVES else (),
        method="stitch",
        drop_layers=a.drop_layers,
        seed=seed,
        objective=a.objective,
        mix_halves=a.halves,
        tune=a.tune,
        evaluations=a.evaluations,
        sequences=a.sequences,
        selection_sequences=36,
        search_items=a.search_items,
        selection_items=a.selection_items,
        report_sequences=96,
        task_items=a.items,
        repair=True,
        repair_finalists=2,
        output=str(folder / name),
    )
    found = run(recipe)
    timing = found.report["seconds"]
    print(f"seed {seed}: {timing['total']:.0f} s, of which search {timing['search']:.0f} s", flush=True)
    return json.loads((found.folder / "report.json").read_text(encoding="utf-8"))


def files(folder: Path, split: str) -> tuple[str, ...]:
    """Tasks of one split."""
    return tuple(str(path) for path in sorted(folder.glob(f"*.{split}.jsonl")))


def show(sections: list[dict[str, Any]]) -> None:
    """Every way to make the model, over the seeds."""
    columns = ("mean log-perplexity", "mean retention", "length-normalised", "doubt, nats")
    print(f"| | {' | '.join(f'{name} | worst seed' for name in columns)} |\n|---|{'---:|' * 8}")
    for what in dict.fromkeys(r["label"] for s in sections for r in s["rows"]):
        rows = [next((r for r in s["rows"] if r["label"] == what), None) for s in sections]
        text = [r["log_perplexity"] for r in rows if r]
        cells = [f"{statistics.mean(text):.3f}", f"{max(text):.3f}"]
        for how in ("mean_retention", "mean_retention_norm"):
            kept = [r[how] for r in rows if r]
            cells += [f"{statistics.mean(kept):.1%}", f"{min(kept):.1%}"]
        doubt = [r["doubt"] for r in rows if r]
        cells += [f"{statistics.mean(doubt):.4f}", f"{max(doubt):.4f}"]
        print(f"| {what} | {' | '.join(cells)} |")


def detail(section: dict[str, Any], seed: int) -> None:
    """Doubt and accuracies of one seed, the latter task by task, and means against the result's on the same items."""
    print("| | doubt, nats above the result's |\n|---|---:|")
    for row in section["rows"]:
        middle, low, high = row["difference_doubt"], *row["difference_ci_doubt"]
        print(f"| {row['label']} | {middle:+.4f} ({low:+.4f} to {high:+.4f}) |")
    print()
    for suffix, what in (("", "Accuracy"), ("_norm", "Length-normalised accuracy")):
        print(f"{what}, seed {seed}; best dense parent: {section[f'reference{suffix}']}\n")
        print(f"| | {' | '.join(section['tasks'])} | mean, points above the result's |")
        print(f"|---|{'---:|' * (len(section['tasks']) + 1)}")
        for row in section["rows"]:
            cells = [f"{row[f'accuracy{suffix}'][t]:.1%}" for t in section["tasks"]]
            found = (row[f"difference{suffix}"], *row[f"difference_ci{suffix}"])
            middle, low, high = (100 * v for v in found)
            print(f"| {row['label']} | {' | '.join(cells)} | {middle:+.1f} ({low:+.1f} to {high:+.1f}) |")
        print()


if __name__ == "__main__":
    main()
