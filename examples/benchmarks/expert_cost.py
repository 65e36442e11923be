"""What one candidate of method experts costs, as a share of its forward pass: processor time, nothing shared.

Every candidate has lost other experts of every layer, so that each of its layers is made for it. It is scored by the
sweep one at a time; beside it stands the plain forward of the dense mixture on the same windows, which multiplies as
much (a token goes to as many experts), with the comparison of its logits.

    python examples/upcycle.py mixture
    python examples/benchmarks/expert_cost.py mixture
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from hf_prune import hub
from hf_prune.assembly.assemble import assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.methods.expert_space import ExpertSpace
from hf_prune.models.parent import Parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixture", type=Path)
    parser.add_argument("--go", type=int, default=4)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--candidates", type=int, default=12)
    a = parser.parse_args()
    torch.set_num_threads(1)
    pulled = hub.pull(str(a.mixture))
    parent = Parent.open(pulled.source, pulled.folder)
    model = assemble(Blueprint.identity(parent.source, parent.depth), [parent], dtype=torch.float32)
    rng = np.random.default_rng(0)
    tokens = torch.tensor(rng.integers(3, model.config.vocab_size, (a.windows, a.length)))
    evaluator = Evaluator(LayerBank(model, [parent]), tokens)
    space = ExpertSpace(parent.depth, parent.mixture, a.go)
    cuts = [Blueprint((parent.source,), space.decode(space.random(rng))) for _ in range(a.candidates)]
    full = Fidelity(a.windows)
    ours, plain = [], []
    for cut in cuts:
        plain.append(seconds(lambda: evaluator.live_scores(model)))
        ours.append(seconds(lambda cut=cut: evaluator.evaluate([cut], full)))
    ratio = statistics.median(ours) / statistics.median(plain)
    print(f"forward {statistics.median(plain):.2f} s, candidate {statistics.median(ours):.2f} s: {ratio:.2f} times")


def seconds(work) -> float:
    """Of the processor."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
