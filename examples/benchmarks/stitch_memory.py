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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from write_memory import MB, Peak, anonymous

if TYPE_CHECKING:
    from numpy.random import Generator

    from hf_prune.blueprint import Blueprint
    from hf_prune.session.scorer import Scorer
    from hf_prune.session.session import Session

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
            cells = (
                f"{count}",
                f"{model / MB:.0f} MiB",
                f"{layer / MB:.1f} MiB",
                f"{tight['held'] / MB:.0f} MiB",
                f"1 + {(tight['held'] - model) / layer:.1f}",
                f"1 + {count + 1}",
                f"{loose['held'] / MB:.0f} MiB",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


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
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


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
    from hf_prune.session.session import open_session

    base, *variants = (str(home / str(k)) for k in range(count + 1))
    fields = {
        "base": base,
        "variants": tuple(variants),
        "method": "stitch",
        "drop_layers": 4,
        "dtype": "bfloat16",
        "data": (str(demo_folder() / "text"),),
        "output": str(home / "out"),
    }
    probe = open_session(Recipe.of(**fields))
    model, layer = (2 * n for n in (probe.inputs.base.parameters, probe.inputs.base.layer_parameters))
    memory = (model + (count + 1) * layer + probe.need.beside) / 2**30 + 1e-6
    session = open_session(Recipe.of(**fields, memory=memory)) if held == "tight" else probe
    start = anonymous()
    tokens = session.evidence.windows["search"].tokens[:2, :64]
    evaluator = Evaluator(session.bank, tokens, with_updates=False)
    resident = anonymous() - start
    rng = np.random.default_rng(0)
    blends = drawn(scorer_of(session), 16, rng)
    # Plain deletions make no layers.
    whole = [session.inputs.identity(0), *drawn(session.deletions(4), 4, rng)]
    with Peak() as dense:
        evaluator.evaluate(whole, Fidelity(2))
    with Peak() as stitched:
        for blueprint in blends:
            evaluator.evaluate([blueprint], Fidelity(2))
    return {"model": model, "layer": layer, "held": max(resident, model) + max(0, stitched.bytes - dense.bytes)}


def scorer_of(session: "Session") -> "Scorer":
    """Of all blends, as the session's own, which would first ask every parent what it knows."""
    from hf_prune.planning import facts_of

    inputs = session.inputs
    facts = facts_of(session.recipe, inputs.depth, inputs.target.remove)
    embeds, heads = inputs.ends()
    facts = replace(facts, embed_of=embeds, head_of=heads)
    return session.scoring(inputs.method.space(session.recipe, facts))


def drawn(scorer: "Scorer", count: int, rng: "Generator") -> "list[Blueprint]":
    """Random models."""
    return [scorer.blueprint(scorer.space.random(rng)) for _ in range(count)]


if __name__ == "__main__":
    main()
