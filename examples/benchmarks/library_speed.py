"""How long does the removal order of a wide map take? Blocked updates against removing inputs one at a time.

A down_proj of a 7B shape (4096 x 11008), random weights and correlated random inputs. The plain way removes the
cheapest input, updates W and H^-1 by one rank, and begins again; a slice of its removals is timed and extrapolated (the
matrices keep their size, as in the reference). Both start from the same H^-1. At a smaller width both run to the end,
and their orders are compared.

    OMP_NUM_THREADS=2 python examples/benchmarks/library_speed.py
    python examples/benchmarks/library_speed.py --device cuda
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hf_prune.recovery.obs import _singles, compensated, damped, increments, inverse, removal_order


def main() -> None:
    """Time both and print a markdown table."""
    a = arguments()
    same = compared(a)
    seconds: dict[str, float] = {}
    weight, x = made(a.outputs, a.inputs, a.samples, a.device)
    hessian = timed(seconds, "Hessian of the inputs", lambda: damped(x.T @ x / len(x)), a)
    inverted = timed(seconds, "its inverse", lambda: inverse(hessian), a)
    gram = timed(seconds, "W^T W", lambda: weight.T @ weight, a)
    order, _ = timed(seconds, "order of removal", lambda: _singles(gram.clone(), inverted.clone()), a)
    kept = [a.inputs * (10 - i) // 10 // 8 * 8 for i in range(1, 10)]
    columns = torch.tensor(order, device=a.device)
    steps = timed(seconds, "increments of 9 levels", lambda: increments(hessian, columns, kept), a)
    timed(seconds, "weights of the narrowest level", lambda: compensated(weight, columns, steps), a)
    plain = naive(weight.clone(), inverted.clone(), a.slice)[1] * a.inputs / a.slice
    print(f"{a.outputs} x {a.inputs}, {a.samples:,} samples, float32, {a.device}, {torch.get_num_threads()} threads\n")
    print("| | seconds |\n|---|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} |")
    print(f"| one at a time, {a.slice} removals extrapolated to {a.inputs:,} | {plain:.0f} |")
    factor = plain / seconds["order of removal"]
    print(f"\norder of removal: {factor:.0f} x as fast; on {a.check} inputs {same:.1%} of the places are the same")


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--outputs", type=int, default=4096)
    p.add_argument("--inputs", type=int, default=11008)
    p.add_argument("--samples", type=int, default=8192)
    p.add_argument("--slice", type=int, default=24, help="removals of the plain way that are timed")
    p.add_argument("--check", type=int, default=512, help="width at which both run to the end")
    p.add_argument("--device", default="cpu")
    return p.parse_args()


def made(outputs: int, inputs: int, samples: int, device: str) -> tuple[Tensor, Tensor]:
    """Weights, and inputs of which some are larger and some go together."""
    draw = torch.Generator().manual_seed(0)
    few = torch.randn(samples, inputs // 8, generator=draw)
    factors = few @ torch.randn(inputs // 8, inputs, generator=draw) / 16
    x = torch.randn(samples, inputs, generator=draw) + factors
    x *= torch.rand(inputs, generator=draw).exp()
    return torch.randn(outputs, inputs, generator=draw).to(device), x.to(device)


def timed(seconds: dict[str, float], name: str, work: Callable[[], object], a: argparse.Namespace) -> object:
    """Run once and note the time."""
    begin = time.perf_counter()
    found = work()
    if a.device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - begin
    return found


def naive(weight: Tensor, inverted: Tensor, count: int) -> tuple[list[int], float]:
    """The cheapest input goes, W and H^-1 lose it by a rank-1 update each, `count` times; seconds without the first."""
    gone, begin = [], time.perf_counter()
    for step in range(count + 1):
        if step == 1:
            begin = time.perf_counter()
        scores = weight.square().sum(0) / inverted.diagonal()
        scores[gone] = torch.inf
        q = int(scores.argmin())
        gone.append(q)
        row = inverted[q] / inverted[q, q]
        weight -= weight[:, q : q + 1] * row
        inverted -= inverted[:, q : q + 1].clone() * row
        if len(gone) == len(inverted):
            break
    return gone, time.perf_counter() - begin


def compared(a: argparse.Namespace) -> float:
    """Share of equal places of both orders."""
    weight, x = (t.double() for t in made(a.check // 2, a.check, 4 * a.check, "cpu"))
    hessian = damped(x.T @ x / len(x))
    ours = removal_order(weight, hessian).groups.tolist()
    theirs, _ = naive(weight.clone(), inverse(hessian), a.check)
    return sum(p == q for p, q in zip(ours, theirs, strict=True)) / a.check


if __name__ == "__main__":
    main()
