"""How fast is one generation? 32 offspring of one parent through the sweep, against the plain way, in one run.

The plain way is what the papers' code does for each candidate: deep copy of the model, drop the layers, forward, KL of
full next-token distributions against cached dense log-probabilities; once at batch 1 and once with all windows in one
batch. Offspring are 1 to 3 swaps away from one parent with a quarter of the layers gone. Ratios are medians over
interleaved rounds. Where the processor computes in bfloat16 the search uses it; both ways are then timed in float32
too, and the ranks of the generation in both precisions are compared.

    python examples/benchmarks/search_throughput.py
    python examples/benchmarks/search_throughput.py --shape demo --layers 32
    python examples/benchmarks/search_throughput.py --shape 7b --device cuda --dtype bfloat16 --windows 1 --length 2048
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig

from hf_prune.assembly.assemble import Parent, assemble, quiet
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, Source
from hf_prune.data.bundled import demo_folder
from hf_prune.data.windows import windows
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.speed import computes_bfloat16
from hf_prune.methods.collapse import CollapseSpace
from hf_prune.metrics.rank_correlation import spearman
from hf_prune.models.inference import family_of

SHAPES = {
    "demo": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
    },
}


def main() -> None:
    """Measure and print a markdown table."""
    a = arguments()
    torch.manual_seed(a.seed)
    dtype = precision(a)
    bank, tokens = subject(a, dtype)
    depth = bank.parents[0].depth
    offspring = generation(depth, a.drop or depth // 4, a.offspring, np.random.default_rng(a.seed), bank)
    fidelity = Fidelity(len(tokens))
    print(
        f"{depth} layers, {a.drop or depth // 4} gone, {a.offspring} offspring, {tokens.numel()} tokens, "
        f"seed {a.seed}, {bank.model.dtype}, {tokens.device}, {torch.get_num_threads()} threads\n"
    )
    ways = {name: way(bank, tokens, offspring, fidelity) for name, way in WAYS.items() if name not in a.skip}
    twice = dtype != torch.float32 and not a.shape
    if twice:
        exact = subject(a, torch.float32)[0]
        ways |= {f"{n}, float32": w(exact, tokens, offspring, fidelity) for n, w in WAYS.items() if n in IN_BOTH}
    seconds = {name: [] for name in ways}
    for _ in range(a.rounds):
        for name, run in ways.items():
            seconds[name].append(timed(run, tokens.device))
    rows = {name: statistics.median(s) for name, s in seconds.items()}
    print("| way | ms per candidate (median) | fastest round | sweep is faster by |\n|---|---:|---:|---:|")
    for name, value in rows.items():
        ratio = statistics.median(x / y for x, y in zip(seconds[name], seconds["sweep"], strict=True))
        print(f"| {name} | {value * 1e3:.1f} | {min(seconds[name]) * 1e3:.1f} | {ratio:.2f} x |")
    counted = Evaluator(bank, tokens)
    counted.evaluate(offspring, fidelity)
    share = counted.cost.layer_tokens / (tokens.numel() * len(offspring))
    print(f"\nlayer passes per candidate: {share:.2f} of {len(offspring[0].layers)}")
    agree(bank, tokens, offspring[0], fidelity)
    if twice:
        kls = [[m.kl for m in Evaluator(b, tokens).evaluate(offspring, fidelity)] for b in (bank, exact)]
        print(f"rank correlation of the generation's KL in {bank.model.dtype} and float32: {spearman(*kls):.5f}")


def precision(a: argparse.Namespace) -> torch.dtype:
    """What the search would use: the bundled weights are bfloat16."""
    if a.dtype != "auto":
        return getattr(torch, a.dtype)
    return torch.bfloat16 if a.device != "cpu" or computes_bfloat16() else torch.float32


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape instead of the bundled model")
    p.add_argument("--layers", type=int, help="depth of a random model")
    p.add_argument("--offspring", type=int, default=32)
    p.add_argument("--drop", type=int, help="layers removed; default a quarter")
    p.add_argument("--windows", type=int, default=16)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", default="auto")
    p.add_argument("--skip", nargs="*", default=[], help="ways to leave out")
    return p.parse_args()


def subject(a: argparse.Namespace, dtype: torch.dtype) -> tuple[LayerBank, torch.Tensor]:
    """The dense model on its device, and the windows."""
    if a.shape:
        return random_model(a, dtype), torch.randint(
            100, SHAPES[a.shape]["vocab_size"], (a.windows, a.length), device=a.device
        )
    folder = demo_folder() / "storymath-16l"
    parent = Parent.open(Source(folder.name, "bundled"), folder)
    model = assemble(Blueprint.identity(parent.source, parent.depth), [parent], dtype=dtype, device=a.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = windows([str(demo_folder() / "text")], tokenizer, "search", a.windows, a.length).tokens
    return LayerBank(model, [parent]), tokens.to(a.device)


def random_model(a: argparse.Namespace, dtype: torch.dtype) -> LayerBank:
    """A model that exists on the device alone; plain deletions never read its files."""
    shape = {**SHAPES[a.shape], **({"num_hidden_layers": a.layers} if a.layers else {})}
    config = LlamaConfig(**shape, max_position_embeddings=max(a.length, 2048))
    with quiet(), torch.device(a.device):
        from transformers import LlamaForCausalLM

        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        parent = Parent(Source(f"random-{a.shape}", "none"), config, family_of(config), _NoFiles(Path(folder)))
    return LayerBank(model, [parent])


class _NoFiles:
    """Stands for the checkpoint of a model that was never saved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def generation(depth: int, drop: int, count: int, rng: np.random.Generator, bank: LayerBank) -> list[Blueprint]:
    """Distinct offspring, 1 to 3 swaps from one random parent."""
    space = CollapseSpace(depth, drop)
    parent, found = space.random(rng), {}
    while len(found) < count:
        genome = parent
        for _ in range(rng.integers(1, 4)):
            genome = space.mutate(genome, rng)
        blueprint = Blueprint((bank.parents[0].source,), space.decode(genome)).canonical()
        found[blueprint.digest] = blueprint
    return list(found.values())


def sweep(share: bool = True, reuse: bool = True, tile: int | None = None) -> Callable[..., Callable[[], float]]:
    """The sweep, perhaps without one of its parts; seconds per candidate."""

    def way(
        bank: LayerBank, tokens: torch.Tensor, offspring: Sequence[Blueprint], fidelity: Fidelity
    ) -> Callable[[], float]:
        evaluator = Evaluator(
            bank, tokens, with_updates=False, share_prefixes=share, reuse_reference=reuse, tile_tokens=tile
        )

        def run() -> float:
            evaluator.evaluate(offspring, fidelity)
            return len(offspring)

        return run

    return way


def plain(batch: int | None, full: bool = True) -> Callable[..., Callable[[], float]]:
    """Deep copy, drop layers, forward, KL: a few candidates of the generation stand for all."""

    def way(
        bank: LayerBank, tokens: torch.Tensor, offspring: Sequence[Blueprint], fidelity: Fidelity
    ) -> Callable[[], float]:
        rows = batch or len(tokens)
        dense = dense_log_probs(bank.model, tokens)
        sample = offspring[:: max(1, len(offspring) // 4)][:4]

        def run() -> float:
            for blueprint in sample:
                plain_kl(bank.model, tokens, dense, blueprint, rows)
            return len(sample)

        return run

    return way


@torch.inference_mode()
def dense_log_probs(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """[N, T-1, V], cached once."""
    return torch.cat([model(t[None], use_cache=False).logits[:, :-1].float().log_softmax(-1) for t in tokens])


@torch.inference_mode()
def plain_kl(model: Any, tokens: torch.Tensor, dense: torch.Tensor, blueprint: Blueprint, rows: int) -> float:
    """Mean KL(dense || candidate) over the full vocabulary."""
    candidate = copy.deepcopy(model)
    layers = candidate.model.layers
    candidate.model.layers = torch.nn.ModuleList(layers[s.anchor.layer] for s in blueprint.layers)
    candidate.config.num_hidden_layers = len(blueprint.layers)
    total = 0.0
    for i in range(0, len(tokens), rows):
        log_q = candidate(tokens[i : i + rows], use_cache=False).logits[:, :-1].float().log_softmax(-1)
        log_p = dense[i : i + rows]
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).sum())
    return total / dense[..., 0].numel()


WAYS = {
    "sweep": sweep(),
    "sweep, no dense prefix from the reference": sweep(reuse=False),
    "sweep, no shared prefixes": sweep(share=False, reuse=False),
    "plain, batch 1": plain(1),
    "plain, one batch": plain(None),
}
IN_BOTH = ("sweep", "plain, batch 1", "plain, one batch")


def timed(run: Callable[[], float], device: torch.device) -> float:
    """Seconds per candidate."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    count = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count


def agree(bank: LayerBank, tokens: torch.Tensor, blueprint: Blueprint, fidelity: Fidelity) -> None:
    """Say how far the two ways are apart on one candidate (full vocabulary)."""
    vocabulary = bank.model.get_output_embeddings().weight.shape[0]
    ours = Evaluator(bank, tokens, top_k=vocabulary).evaluate([blueprint], fidelity)[0].kl
    theirs = plain_kl(bank.model, tokens, dense_log_probs(bank.model, tokens), blueprint, 1)
    print(f"KL of the first offspring: sweep {ours:.6f}, plain {theirs:.6f}")


if __name__ == "__main__":
    main()
