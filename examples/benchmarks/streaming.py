"""What does it cost that a base does not fit? Anonymous memory, time beside the resident run, and waiting for reads.

A random-weight llama (bfloat16 on disk) is searched, repaired, written and certified, once with `--memory` and once
without. Every run is a process of its own; what counts is anonymous memory (RssAnon: pages that no file backs) at its
peak, above what is in use when torch and transformers are loaded. Beside other work seconds of a processor say more
than those of the clock; the fresh processes of check and certificate are in the latter only. The results must be the
same to the last bit.

    OMP_NUM_THREADS=2 python examples/benchmarks/streaming.py --gb 3 --memory 0.7
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from write_memory import MB, Peak

WIDTH = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 8,
         "vocab_size": 4096, "tie_word_embeddings": True}  # fmt: skip
LAYER = 4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024
OFFSPRING, GENERATIONS = 32, 2


def main() -> None:
    """Measure both ways and print a markdown table."""
    a = arguments()
    if a.way:
        return print(json.dumps(measured(a)))
    layers = round(a.gb * 1e9 / 2 / LAYER)
    print(f"{layers} layers, {layers * LAYER * 2 / 1e9:.2f} GB in bfloat16, {a.windows} windows of {a.length} tokens\n")
    print("| | memory | seconds | of a processor | layers read | waited for reads | result |")
    print("|---|---:|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory(dir=a.home) as home:
        make(Path(home, "base"), layers)
        for way in a.ways:
            found = child(way, home, a)
            cells = (
                f"`--memory {a.memory}`" if way == "streamed" else "resident",
                f"{found['peak'] / MB:,.0f} MiB",
                f"{found['seconds']:.0f}",
                f"{found['busy']:.0f}",
                f"{found['read']:,}" if way == "streamed" else "–",
                f"{found['waited']:.1%}" if way == "streamed" else "–",
                found["digest"],
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def arguments() -> argparse.Namespace:
    """Command line; --way and --source are for the processes this starts."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gb", type=float, default=3.0)
    p.add_argument("--memory", type=float, default=0.7)
    p.add_argument("--windows", type=int, default=2)
    p.add_argument("--length", type=int, default=64)
    p.add_argument("--ways", nargs="+", default=["streamed", "resident"], choices=["streamed", "resident"])
    p.add_argument("--home", help="a folder on a disk with room for the model and what is made of it")
    p.add_argument("--way", help=argparse.SUPPRESS)
    p.add_argument("--source", help=argparse.SUPPRESS)
    return p.parse_args()


def child(way: str, home: str, a: argparse.Namespace) -> dict:
    """One run in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--source", home, "--memory", a.memory]
    command += ["--windows", a.windows, "--length", a.length]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make(folder: Path, layers: int, width: Mapping[str, Any] = WIDTH, alike: bool = False) -> None:
    """A random model on disk, layer by layer, with the bundled tokenizer; layers that are alike are drawn once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_prune.data.bundled import demo_folder
    from hf_prune.models.checkpoint import write_shards

    folder.mkdir()
    config = LlamaConfig(**width, num_hidden_layers=layers, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).named_parameters()}
    draw, before = torch.Generator().manual_seed(0), {}

    def drawn(name: str) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(shapes[name], dtype=torch.bfloat16)
        kind = name.split(".")[-2]
        if not (alike and kind in before):
            # As large as lets every layer change the state.
            before[kind] = (torch.randn(shapes[name], generator=draw) * 0.02).to(torch.bfloat16)
        return before[kind]

    tensors = [(n, 2 * shape.numel(), lambda n=n: drawn(n)) for n, shape in shapes.items() if n != "lm_head.weight"]
    write_shards(tensors, folder, shard_bytes=256 * MB)
    for path in (demo_folder() / "storymath-16l").glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())


def measured(a: argparse.Namespace) -> dict:
    """One run: seconds, peak, layers read, share of the time waited for them, and a digest of what was found."""
    import transformers  # noqa: F401 - what loading takes is not counted

    from hf_prune.assembly.layer_stream import LayerStream
    from hf_prune.data.bundled import demo_folder
    from hf_prune.data.tasks import bundled_tasks
    from hf_prune.pipeline import run
    from hf_prune.recipe import Recipe

    streams, reach = [], LayerStream.__post_init__

    def opened(stream: LayerStream) -> None:
        streams.append(stream)
        reach(stream)

    LayerStream.__post_init__ = opened
    home = Path(a.source)
    recipe = Recipe.of(
        base=str(home / "base"),
        output=str(home / a.way),
        ratio=0.25,
        time=None,
        memory=a.memory if a.way == "streamed" else None,
        dtype="float32",
        data=(str(demo_folder() / "text"),),
        tasks=tuple(map(str, bundled_tasks()))[:1],
        task_items=2,
        length=a.length,
        sequences=a.windows,
        selection_sequences=a.windows,
        report_sequences=a.windows,
        evaluations=OFFSPRING * GENERATIONS,
        population=OFFSPRING,
        offspring=OFFSPRING,
        baselines=("shortgpt",),
        repair=True,
        repair_sequences=4 * a.windows,
        repair_finalists=1,
    )
    begin, busy = time.perf_counter(), time.process_time()
    with Peak() as peak:
        done = run(recipe)
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    digest = hashlib.sha256()
    for path in sorted(done.folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    base = streams[0].reading if streams else None
    return {
        "peak": peak.bytes,
        "seconds": seconds,
        "busy": busy,
        "read": sum(s.reading.layers for s in streams),
        "waited": sum(s.reading.waited for s in streams) / (time.perf_counter() - base.begun) if base else 0.0,
        "digest": digest.hexdigest()[:12],
    }


if __name__ == "__main__":
    main()
