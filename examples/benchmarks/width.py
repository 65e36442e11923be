"""What is a search over widths worth? The bundled model at half of its blocks' parameters, beside ways without one.

Every seed searches with the same trials; baselines do not depend on the seed. Perplexity on the report split, which no
search and no choice has seen. With `--heal` the search's results and the baselines are trained alike, on as many
tokens, and measured again; with `--aware` the search is repeated with its finalists trained before the choice.

    python examples/benchmarks/width.py --seeds 0 1 2
    python examples/benchmarks/width.py --seeds 0 --heal 250k --aware 10k
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.calibration import demo_folder
from hf_prune.evaluate import Evaluator
from hf_prune.heal import heal
from hf_prune.job import Job, open_job
from hf_prune.pipeline import run
from hf_prune.recipe import Recipe
from hf_prune.recovery import course
from hf_prune.report import perplexity
from hf_prune.width_rivals import LABELS, libraries


def main() -> None:
    """Search with every seed and print a markdown table."""
    a = arguments()
    job = open_job(recipe(a, a.seeds[0], "unused"))
    for _ in libraries(job):
        pass
    windows = job.evidence["report"]
    evaluator = Evaluator(job.bank, windows.tokens)
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as home:
        for label, blueprint in models(a, Path(home)):
            rows.setdefault(label, []).append(tuple(values(a, job, evaluator, blueprint, Path(home))))
            print(f"  {label}: {', '.join(f'{v:.2f}' for v in rows[label][-1])}", flush=True)
            if label == "width search" and len(rows[label]) == 1:
                share, time_share = costs(job, evaluator, blueprint)
                print(f"  a candidate takes {time_share:.2f} of the dense model's sweep, for {share:.2f} of its FLOPs")
    dense = values_of(evaluator.live_scores(job.bank.model))
    print(f"\n{a.ratio:.1%} of all parameters gone; dense {dense:.2f}; {len(a.seeds)} seeds\n")
    healed = f" after {a.heal} tokens | worst seed |" if a.heal != "0" else ""
    print(f"| | perplexity | worst seed |{healed}\n|---|{'---:|' * (4 if healed else 2)}")
    for label, found in rows.items():
        cells = [f"{f(column):.2f}" for column in zip(*found, strict=True) for f in (statistics.mean, max)]
        print(f"| {label} | {' | '.join(cells)} |")


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ratio", type=float, default=0.4615, help="of all parameters; the default is half of the blocks'")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--evaluations", type=int)
    p.add_argument("--heal", default="0", help="tokens to train everything on")
    p.add_argument("--aware", help="tokens of the first round of training-aware selection")
    return p.parse_args()


def recipe(a: argparse.Namespace, seed: int, output: str, **more: Any) -> Recipe:
    """One run."""
    demo = demo_folder()
    fixed = {"base": str(demo / "storymath-16l"), "data": (str(demo / "text"),), "method": "width", "task_items": 1}
    return Recipe.of(**fixed, ratio=a.ratio, seed=seed, evaluations=a.evaluations, heal=a.heal, output=output, **more)


def models(a: argparse.Namespace, home: Path) -> Iterator[tuple[str, Blueprint]]:
    """Baselines once, and what every seed finds."""
    for seed in a.seeds:
        untrained = recipe(a, seed, str(home / f"{seed}")).model_copy(update={"heal": 0})
        found = run(untrained)
        if seed == a.seeds[0]:
            for row in found.report["baselines"]:
                if row["name"] in LABELS:
                    yield row["label"], Blueprint.from_json(row["blueprint"])
        yield "width search", Blueprint.from_json((found.folder / "blueprint.json").read_text(encoding="utf-8"))
        if a.aware:
            aware = untrained.model_copy(update={"search_heal": tokens(a.aware), "output": str(home / f"{seed}-aware")})
            folder = run(aware).folder
            yield (
                f"width search, finalists trained on {a.aware} tokens and more",
                Blueprint.from_json((folder / "blueprint.json").read_text(encoding="utf-8")),
            )


def costs(job: Job, evaluator: Evaluator, blueprint: Blueprint) -> tuple[float, float]:
    """Share of the dense model's matrix FLOPs and of its time in the sweep, layers made already; medians of 7."""
    plain = Evaluator(job.bank, evaluator.own.tokens, reuse_reference=False)
    both = {"dense": job.identity(0), "cut": blueprint}
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for _ in range(8):
        for name, model in both.items():
            begin = time.perf_counter()
            plain.evaluate([model], Fidelity(len(evaluator.own.tokens)))
            seconds[name].append(time.perf_counter() - begin)
    # A tied embedding multiplies as the head; looking tokens up costs nothing.
    share = evaluator.parameters(blueprint) / job.parent.parameters
    return share, statistics.median(seconds["cut"][1:]) / statistics.median(seconds["dense"][1:])


def tokens(text: str) -> int:
    """10k as a number."""
    return Recipe.of(base="x", heal=text).heal


def values(a: argparse.Namespace, job: Job, evaluator: Evaluator, blueprint: Blueprint, home: Path) -> Iterator[float]:
    """Perplexity of a model, and after training."""
    student = job.assembled(blueprint)
    yield values_of(evaluator.live_scores(student))
    if a.heal == "0":
        return
    wanted = job.recipe
    train = job.training(-(-wanted.heal // wanted.length)).tokens
    with tempfile.TemporaryDirectory(dir=home) as folder:
        done = heal(student, job.bank.model, job.parent.family, train, job.evidence["selection"].tokens, course(wanted),
                    Path(folder), lambda *_: None)  # fmt: skip
    yield values_of(evaluator.live_scores(done.model))


def values_of(scores: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Perplexity over all report windows."""
    return perplexity(np.asarray(scores[1].double().mean(1)))["perplexity"]


if __name__ == "__main__":
    main()
