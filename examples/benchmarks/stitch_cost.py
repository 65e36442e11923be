"""What does a stitched candidate cost? In the sweep, against assembling to disk, reloading and scoring with lm_eval.

Both score the same items of the same three tasks, none of them twice; `--shots` puts as many answered ones before each,
the same before all (lm_eval's `first_n`), as far as the model has positions. The sweep is timed for
a candidate by itself, whose layers have never been made, and per candidate of a generation: `--offspring` models that
are one to three local moves away from one parent. The plain way writes the model, loads it with from_pretrained and
asks lm_eval, with its default batch and with larger ones. Medians over interleaved rounds, in one run; the accuracies
of both are compared. Processor time, of all threads, is shown beside: it says more where other work runs.

    OMP_NUM_THREADS=2 python examples/benchmarks/stitch_cost.py
    python examples/benchmarks/stitch_cost.py --shape 7b --device cuda   (random weights; the sweep alone)
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stitch_memory import scorer_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from hf_prune.assembly.assemble import quiet, write
from hf_prune.blueprint import Blueprint, Fidelity, Genome
from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_sources import load_tasks
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.recipe import Recipe
from hf_prune.report import lm_eval
from hf_prune.session.scorer import Scorer
from hf_prune.session.session import Session, open_session

NAMES = ("plays_cloze", "code_cloze", "qa_choice")
SPECIALISTS = demo_folder() / "specialists"
SHAPES = {
    "7b": {
        "vocab_size": 2048,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
}
Way = Callable[[], tuple[int, Any]]
"""Scores candidates: how many, and what was found."""
Seconds = dict[str, list[tuple[float, float]]]
"""Of every way and round, per candidate: on the clock and of the processor."""
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def main() -> None:
    """Time both ways and print a markdown table."""
    a = arguments()
    with tempfile.TemporaryDirectory() as home:
        files = written_tasks(Path(home), a.items, a.shots)
        session = opened(a, Path(home))
        scorer, rng = scorer_of(session), np.random.default_rng(a.seed)
        parent = scorer.space.random(rng)

        def alone() -> list[Blueprint]:
            return [scorer.blueprint(scorer.space.random(rng))]

        def generation() -> list[Blueprint]:
            return offspring(scorer, parent, a.offspring, rng)

        ways: dict[str, Way] = {
            "sweep, by itself": lambda: swept(session, files, alone(), a.items),
            "sweep, in a generation": lambda: swept(session, files, generation(), a.items),
        }
        if a.shape == "demo":
            written = scorer.blueprint(scorer.space.random(np.random.default_rng(1)))
            for n in a.batches:
                name = f"to disk, reload, lm_eval in batches of {n}"
                ways[name] = functools.partial(plain, session, files, Path(home), written, n)
        show(a, measured(ways, a))
        if a.shape == "demo":
            apart = agreement(session, files, Path(home), scorer.blueprint(parent))
            print(f"\nlargest difference of an accuracy between the two: {apart:.4f}")


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--items", type=int, default=600, help="of each of three tasks")
    p.add_argument("--shots", type=int, default=0, help="answered items before every question")
    p.add_argument("--offspring", type=int, default=32)
    p.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="of lm_eval, whose default is 1")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--shape", choices=["demo", *SHAPES], default="demo")
    p.add_argument("--device", default="cpu")
    return p.parse_args()


def written_tasks(home: Path, count: int, shots: int) -> list[Path]:
    """The tasks as JSONL and as YAML of lm_eval beside it."""
    files = []
    for name in NAMES:
        given = [SPECIALISTS / "tasks" / f"{name}.{side}.jsonl" for side in ("report", "search")]
        paths = [*given, Path(__file__).parent / "tasks" / f"{name}.search.jsonl"]
        items = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
        if count + shots > len(items):
            raise SystemExit(f"{name} has {len(items)} items; ask for fewer with --items and --shots.")
        # lm_eval takes the option as it is; here white space stands in the option or nowhere.
        for item in items:
            item["choices"] = [c if c[:1].isspace() else f" {c}" for c in item["choices"]]
            item["context"] = item["context"].rstrip()
        asked = with_examples(items[-count:], items[:-count][:shots])
        files.append(home / f"{name}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, asked)) + "\n", encoding="utf-8")
        files[-1].with_suffix(".yaml").write_text(YAML.format(name=name), encoding="utf-8")
    return files


def with_examples(items: Sequence[dict[str, Any]], examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items behind as many of the examples as leave room for all of them."""
    folder = demo_folder() / "storymath-16l"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    room = AutoConfig.from_pretrained(folder).max_position_embeddings
    longest = max(len(tokenizer(i["context"] + c).input_ids) for i in items for c in i["choices"])
    begin = ""
    for example in examples:
        longer = f"{begin}{example['context']}{example['choices'][example['answer']]}\n\n"
        if len(tokenizer(longer).input_ids) + longest > room:
            break
        begin = longer
    return [{**item, "context": begin + item["context"]} for item in items]


def opened(a: argparse.Namespace, home: Path) -> Session:
    """Base and three variants."""
    base, variants = demo_folder() / "storymath-16l", [SPECIALISTS / n for n in ("plays", "code", "qa")]
    if a.shape != "demo":
        base, *variants = (made(home / f"m{k}", SHAPES[a.shape], k) for k in range(4))
    return open_session(
        Recipe.of(
            base=str(base),
            variants=tuple(map(str, variants)),
            method="stitch",
            drop_layers=4,
            device=a.device,
            data=(str(demo_folder() / "text"), str(SPECIALISTS / "text")),
            output=str(home / "out"),
        )
    )


def made(folder: Path, shape: dict[str, int], seed: int) -> Path:
    """A model of random weights in bfloat16, with the bundled tokenizer."""
    torch.manual_seed(seed)
    with torch.device("cpu"), quiet():
        torch.set_default_dtype(torch.bfloat16)
        AutoModelForCausalLM.from_config(LlamaConfig(**shape, dtype="bfloat16")).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
    for path in (demo_folder() / "storymath-16l").glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def offspring(scorer: Scorer, parent: Genome, count: int, rng: np.random.Generator) -> list[Blueprint]:
    """Distinct models near one."""
    found: dict[str, Blueprint] = {}
    while len(found) < count:
        genome = parent
        for _ in range(int(rng.integers(1, 4))):
            genome = scorer.space.mutate(genome, rng)
        blueprint = scorer.blueprint(genome)
        found.setdefault(blueprint.digest, blueprint)
    return list(found.values())


def swept(session: Session, files: Sequence[Path], blueprints: Sequence[Blueprint], items: int) -> tuple[int, Any]:
    """Candidates scored, and their measures; the items were laid out once, as in a run."""
    return len(blueprints), evaluator_of(session, tuple(files)).evaluate(blueprints, Fidelity(1, items=items))


@functools.cache
def evaluator_of(session: Session, files: tuple[Path, ...]) -> Evaluator:
    """Over the tasks alone."""
    tasks = load_tasks(files)
    return Evaluator(
        session.bank,
        session.evidence.windows["search"].tokens[:1],
        with_updates=False,
        exam=lambda dense: Exam(dense, tasks, session.inputs.tokenizer),
    )


def plain(session: Session, files: Sequence[Path], home: Path, blueprint: Blueprint, batch: int) -> tuple[int, Any]:
    """One candidate: merged, written, loaded and scored."""
    inputs, names = session.inputs, [str(f.with_suffix(".yaml")) for f in files]
    with tempfile.TemporaryDirectory(dir=home) as folder:
        write(blueprint.over(inputs.sources), inputs.parents, Path(folder))
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=session.dtype)
        alone = {"digest": "", "limit": None, "cache": None}
        return 1, lm_eval.scores(model, inputs.tokenizer, names, **alone, batch_size=batch)


def measured(ways: dict[str, Way], a: argparse.Namespace) -> Seconds:
    """Interleaved; a first sweep as a warm-up lays the items out."""
    ways["sweep, by itself"]()
    seconds: Seconds = {name: [] for name in ways}
    for _ in range(a.rounds):
        for name, way in ways.items():
            begin = time.perf_counter(), time.process_time()
            count, _ = way()
            if a.device.startswith("cuda"):
                torch.cuda.synchronize()
            end = time.perf_counter(), time.process_time()
            seconds[name].append(((end[0] - begin[0]) / count, (end[1] - begin[1]) / count))
    return seconds


def show(a: argparse.Namespace, seconds: Seconds) -> None:
    """A markdown table."""
    print(
        f"{a.items} items of each of three tasks, {a.shots} shots; {torch.get_num_threads()} threads, "
        f"{a.shape}, {a.device}; base and three variants; median of {a.rounds}\n\n"
        "| | seconds per candidate | ratio | processor seconds | ratio |\n|---|---:|---:|---:|---:|"
    )
    middles = {n: [statistics.median(v) for v in zip(*s, strict=True)] for n, s in seconds.items()}
    least = middles["sweep, in a generation"]
    for name, middle in middles.items():
        cells = (f"{own:.2f} | {own / best:.1f} x" for own, best in zip(middle, least, strict=True))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def agreement(session: Session, files: Sequence[Path], home: Path, blueprint: Blueprint) -> float:
    """Of one model, in both ways."""
    (ours,) = swept(session, files, [blueprint], 10**6)[1]
    theirs = plain(session, files, home, blueprint, 64)[1]
    return max(abs(t.accuracy - theirs[t.task].metrics["acc"]) for t in ours.tasks)


if __name__ == "__main__":
    main()
