"""How much memory does a search over several parents hold? With `--memory`: one model and K + 1 layers for K variants.

A random-weight llama and its variants (full models, bfloat16) are stitched: random blends of all of them go through the
sweep. Every run is a process of its own; what counts is anonymous memory (RssAnon: pages that no file backs) that the
weights take: its peak over the candidates, less what the same sweep of the dense base takes besides its weights.
Mapped pages of the variants are the kernel's to drop.

    python examples/benchmarks/stitch_memory.py --variants 1 3 6
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from write_memory import MB, Peak, anonymous

WIDTH = {"hidden_size": 768, "intermediate_size": 2304, "num_attention_heads": 12, "vocab_size": 2048}


def main() -> None:
    """Measure every number of variants and print a markdown table."""
    a = arguments()
    if a.source:
        return print(json.dumps(measured(Path(a.source), a.variants[0], a.held)))
    print("| variants | model | layer | held with --memory | in models + layers | allowed | without --memory |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as home:
        make(Path(home), max(a.variants), a.layers)
        for count in a.variants:
            tight, loose = (child(home, count, held) for held in ("tight", "loose"))
            model, layer = tight["model"], tight["layer"]
            print(f"| {count} | {model / MB:.0f} MiB | {layer / MB:.1f} MiB | {tight['held'] / MB:.0f} MiB | "
                  f"1 + {(tight['held'] - model) / layer:.1f} | 1 + {count + 1} | {loose['held'] / MB:.0f} MiB |",
                  flush=True)  # fmt: skip


def arguments() -> argparse.Namespace:
    """Command line; --source and --held are for the processes this starts."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--variants", type=int, nargs="+", default=[1, 3, 6])
    p.add_argument("--layers", type=int, default=16)
    p.add_argument("--source", help=argparse.SUPPRESS)
    p.add_argument("--held", choices=["tight", "loose"], help=argparse.SUPPRESS)
    return p.parse_args()


def child(home: str, count: int, held: str) -> dict[str, int]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--source", home, "--variants", str(count), "--held", held]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def make(home: Path, count: int, layers: int) -> None:
    """Random models on disk, with the bundled tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from hf_prune.data.bundled import demo_folder

    logging.disable_progress_bar()
    for k in range(count + 1):
        torch.manual_seed(k)
        config = LlamaConfig(**WIDTH, num_hidden_layers=layers)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(home / str(k))
        for path in (demo_folder() / "storymath-16l").glob("tokenizer*"):
            (home / str(k) / path.name).write_bytes(path.read_bytes())


def measured(home: Path, count: int, held: str) -> dict[str, int]:
    """Bytes that weights take at the peak of a generation of random blends."""
    import numpy as np

    from hf_prune.blueprint import Fidelity
    from hf_prune.data.bundled import demo_folder
    from hf_prune.evaluation.evaluator import Evaluator
    from hf_prune.recipe import Recipe
    from hf_prune.session.job import open_job

    base, *variants = (str(home / str(k)) for k in range(count + 1))
    fields = {"base": base, "variants": tuple(variants), "method": "stitch", "drop_layers": 4, "dtype": "bfloat16",
              "data": (str(demo_folder() / "text"),), "output": str(home / "out")}  # fmt: skip
    probe = open_job(Recipe.of(**fields))
    model, layer = probe.parent.parameters * 2, probe.parent.layer_parameters * 2
    memory = (model + (count + 1) * layer) / 2**30 + 1e-6
    job = open_job(Recipe.of(**fields, memory=memory)) if held == "tight" else probe
    start = anonymous()
    tokens = job.evidence["search"].tokens[:2, :64]
    evaluator = Evaluator(job.bank, tokens, with_updates=False)
    resident = anonymous() - start
    rng = np.random.default_rng(0)
    blueprints = [job.scorer.blueprint(job.scorer.space.random(rng)) for _ in range(16)]
    with Peak() as dense:
        evaluator.evaluate([job.identity(0), *(probe.deletions(4).blueprint(g) for g in cuts(probe, rng))], Fidelity(2))
    with Peak() as stitched:
        for blueprint in blueprints:
            evaluator.evaluate([blueprint], Fidelity(2))
    return {"model": model, "layer": layer, "held": max(resident, model) + max(0, stitched.bytes - dense.bytes)}


def cuts(job, rng) -> list:
    """Plain deletions, which make no layers."""
    space = job.deletions(4).space
    return [space.random(rng) for _ in range(4)]


if __name__ == "__main__":
    main()
