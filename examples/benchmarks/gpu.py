"""Everything that wants a GPU, in one run of at most six minutes: one JSON and one table.

    python examples/benchmarks/gpu.py --output gpu.json
    python examples/benchmarks/gpu.py --output small.json --shape demo --device cpu --stream-gb 0.1 --memory 0.3

A random llama of the shape, less deep than the real one, is written once, in bfloat16. Every part then runs in a
process of its own, so that its peak of memory is its own and nothing that breaks ends the others; a part that takes
longer than its share of --limit is cut off, and the table says so. The streamed part has a model of --stream-gb whose
layers are all alike, read from the files that were just written (a warm page cache); --memory is all that it may take
on the device.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from search_throughput import SHAPES, generation, plain, sweep
from streaming import make

from hf_prune.blueprint import Fidelity
from hf_prune.data.bundled import demo_folder
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.evaluation.speed import measure
from hf_prune.models.noise import quiet
from hf_prune.recipe import Recipe
from hf_prune.recovery.heal import Course, heal
from hf_prune.recovery.repair import repair
from hf_prune.session.session import Session, open_session

LAYERS = 8
"""Of the model that is written; what a layer costs does not depend on it."""
Figures = dict[str, float]


def main() -> None:
    """Run all parts, or the one of this process."""
    a = arguments()
    if a.part:
        begin = time.perf_counter()
        with quiet():
            found = PARTS[a.part](a)
        seconds = time.perf_counter() - begin
        return print(json.dumps({**found, "seconds": seconds, "peak GB": peak(a.device)}))
    begin = time.monotonic()
    result: dict[str, Any] = {"device": named(a.device), "torch": torch.__version__, "shape": a.shape, "parts": {}}
    with tempfile.TemporaryDirectory(dir=a.home) as home:
        make(Path(home, "base"), min(LAYERS, SHAPES[a.shape]["num_hidden_layers"]), widths(a.shape))
        for place, part in enumerate(a.parts):
            left = a.limit - (time.monotonic() - begin)
            result["parts"][part] = attempted(part, home, a, left / (len(a.parts) - place))
            print(part, result["parts"][part], flush=True)
    result["seconds"] = time.monotonic() - begin
    a.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


def arguments() -> argparse.Namespace:
    """Command line; --part is for the processes this starts."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--output", type=Path, required=True, help="the JSON")
    p.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    p.add_argument("--device", default="cuda")
    p.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    p.add_argument("--limit", type=float, default=340.0, help="seconds of all parts together")
    p.add_argument("--length", type=int, default=512, help="tokens of a window")
    p.add_argument("--windows", type=int, default=8)
    p.add_argument("--stream-gb", type=float, default=30.0)
    p.add_argument("--memory", type=float, default=16.0, help="GB on the device for the streamed part")
    p.add_argument("--home", help="a folder on a disk with room for the models")
    p.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    return p.parse_args()


def attempted(part: str, home: str, a: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Figures of one part, or why there are none."""
    command = [sys.executable, __file__, "--part", part, "--home", home, "--output", a.output, "--shape", a.shape]
    command += ["--device", a.device, "--length", a.length, "--windows", a.windows]
    command += ["--stream-gb", a.stream_gb, "--memory", a.memory]
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"cut off after {limit:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def show(result: dict[str, Any]) -> None:
    """A markdown table."""
    print(f"\n{result['device']}, torch {result['torch']}, shape {result['shape']}, {result['seconds']:.0f} s\n")
    print("| part | figures | peak | seconds |\n|---|---|---:|---:|")
    for part, found in result["parts"].items():
        if "failed" in found:
            print(f"| {part} | failed: {found['failed']} | | |")
            continue
        figures = "; ".join(f"{k} {v:,.4g}" for k, v in found.items() if k not in ("seconds", "peak GB"))
        print(f"| {part} | {figures} | {found['peak GB']:.2f} GB | {found['seconds']:.0f} |")


def widths(shape: str) -> dict[str, Any]:
    """Fields of a config, without its depth."""
    fields = {k: v for k, v in SHAPES[shape].items() if k != "num_hidden_layers"}
    return {**fields, "tie_word_embeddings": True, "max_position_embeddings": 4096}


def named(device: str) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def peak(device: str) -> float:
    """Most memory so far, in GB: of the device, or of this process where that is the processor's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def timed(work: Callable[[], object], a: argparse.Namespace) -> float:
    """Seconds of the second of two calls: the first one loads kernels."""
    for _ in range(2):
        finish(a)
        begin = time.perf_counter()
        work()
        finish(a)
    return time.perf_counter() - begin


def finish(a: argparse.Namespace) -> None:
    """Wait for what the device still computes."""
    if a.device.startswith("cuda"):
        torch.cuda.synchronize(a.device)


# Parts ----------------------------------------------------------------------------------------------------------------


def opened(a: argparse.Namespace, base: str = "base", **fields: Any) -> Session:
    """The written model on the device, and windows of the bundled text."""
    recipe = Recipe.of(
        base=str(Path(a.home, base)), output=str(Path(a.home, "out")), data=(str(demo_folder() / "text"),),
        device=a.device, dtype="bfloat16", length=a.length, sequences=a.windows, selection_sequences=a.windows,
        **{"ratio": 0.25, **fields},
    )  # fmt: skip
    return open_session(recipe)


def offspring(session: Session, count: int) -> list:
    """Candidates a quarter less deep, near one another."""
    depth = session.inputs.depth
    drop = max(1, depth // 4)
    count = min(count, math.comb(depth, drop) // 2)
    return generation(depth, drop, count, np.random.default_rng(0), session.bank)


def search(a: argparse.Namespace) -> Figures:
    """One generation through the sweep, and one candidate the plain way."""
    session = opened(a)
    tokens, cuts = session.evidence.windows["search"].tokens.to(session.device), offspring(session, 32)
    fidelity = Fidelity(len(tokens))
    swept = sweep()(session.bank, tokens, cuts, fidelity)
    alone = plain(1)(session.bank, tokens, cuts[:1], fidelity)
    ours, theirs = timed(swept, a) / len(cuts), timed(alone, a)
    return {"ms per candidate": ours * 1e3, "plain way, ms": theirs * 1e3, "tokens": tokens.numel()}


def repairing(a: argparse.Namespace) -> Figures:
    """Refitting the layers of one cut."""
    session = opened(a)
    cut, fit = offspring(session, 1)[0], session.evidence.training(2 * a.windows).tokens
    seconds = timed(lambda: repair(session.bank, cut, fit, session.evidence.windows["selection"].tokens), a)
    return {"seconds per layer": seconds / len(cut.layers), "tokens fitted on": fit.numel()}


def library(a: argparse.Namespace) -> Figures:
    """The levels of heads and neurons."""
    session, begin = narrower(a), time.perf_counter()
    session.library(session.inputs.method.libraries(session.recipe)[0])
    finish(a)
    tokens = session.recipe.width.sequences * a.length
    return {"seconds per layer": (time.perf_counter() - begin) / session.inputs.depth, "tokens": tokens}


def narrower(a: argparse.Namespace) -> Session:
    """For widths; the library is kept for the next part."""
    return opened(a, method="width", library=str(Path(a.home, "library")), library_sequences=2 * a.windows, ratio=0.4)


def packed(a: argparse.Namespace) -> Figures:
    """A generation on items of a task."""
    session = opened(a, search_tasks=(str(min((demo_folder() / "tasks").glob("*.jsonl"))),), objective="tasks")
    tasks, tokens = session.evidence.searched, session.evidence.windows["search"].tokens[:1]
    evaluator = Evaluator(
        session.bank, tokens, with_updates=False, exam=lambda dense: Exam(dense, tasks, session.inputs.tokenizer)
    )
    cuts = offspring(session, 8)
    seconds = timed(lambda: evaluator.evaluate(cuts, Fidelity(1, items=32)), a)
    return {"ms per candidate": seconds / len(cuts) * 1e3, "items": 32}


def speed(a: argparse.Namespace) -> Figures:
    """Prefill and decoding of a model less 40 % of its parameters, all layers equally narrow, beside the dense one."""
    session = narrower(a)
    facts, method = session.facts(judged=True), session.inputs.method
    space = method.space(session.recipe, facts)
    cut = session.scoring(space).blueprint(method.starts(space, facts, ())[0])
    models = {"dense": session.bank.model, "narrow": session.assembled(cut)}
    found = measure(models, np.random.default_rng(0), min(256, a.length // 2), 32)
    phases = {"prefill": "prefill_tokens_per_s", "decoding": "decode_tokens_per_s"}
    dense = {f"dense {name}, tokens per second": found["dense"][key] for name, key in phases.items()}
    return dense | {
        f"{name}, times as fast": found["narrow"][key] / found["dense"][key] for name, key in phases.items()
    }


def healing(a: argparse.Namespace) -> Figures:
    """LoRA with the dense model as teacher."""
    session, batch, steps = opened(a), 8, 6
    student, train = session.assembled(offspring(session, 1)[0]), session.evidence.training(batch * steps).tokens
    course = Course(train.numel(), rank=32, kl=1.0, ce=0.0, batch=batch, checks=1)
    with tempfile.TemporaryDirectory() as home:
        done = heal(student, session.bank.model, session.inputs.base.family, train, train[:2], course, Path(home))
    return {"tokens per second": train.numel() / done.seconds}


def streamed(a: argparse.Namespace) -> Figures:
    """One generation of a model whose layers are read as the sweep reaches them."""
    shape = widths(a.shape)
    layer = (4 * shape["hidden_size"] + 3 * shape["intermediate_size"]) * shape["hidden_size"] * 2
    layers = max(4, round(a.stream_gb * 1e9 / layer))
    make(Path(a.home, "large"), layers, shape, alike=True)
    session = opened(a, "large", memory=a.memory)
    tokens, cuts = session.evidence.windows["search"].tokens.to(session.device), offspring(session, 16)
    evaluator = Evaluator(session.bank, tokens, with_updates=False)
    begin = time.perf_counter()
    evaluator.evaluate(cuts, Fidelity(len(tokens)))
    finish(a)
    seconds, read = time.perf_counter() - begin, session.bank.stream.reading if session.streams else None
    waited = {"share of waiting": read.waited / seconds, "layers read": read.layers} if read else {}
    return {"ms per candidate": seconds / len(cuts) * 1e3, "layers": layers, **waited}


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "search": search,
    "repair": repairing,
    "library": library,
    "packed tasks": packed,
    "speed of widths": speed,
    "healing": healing,
    "streamed search": streamed,
}


if __name__ == "__main__":
    main()
