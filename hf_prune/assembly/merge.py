"""Pure functions that merge the same tensor of several layers. A new merge is one function and one entry.

A merge is spelled NAME[:DENSITY[:SEED]]. `ties`, `dare` and `dare-ties` begin with the base's tensor, whose weight has
no meaning; what they call deltas is the others' difference to it. Semantics and defaults are those of mergekit
(Goddard et al., arXiv 2403.13257): ties divides by the weights that agree, the dares do not and rescale what they keep.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_prune.errors import IncompatibleSources, InvalidBlueprint
from hf_prune.models.dtypes import widest

PARALLEL = 0.9995
"""Cosine beyond which slerp is a plain mean."""


def _dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return widest(t.dtype for t in tensors)


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum, added up in float32 (float64 stays float64) and cast back to the widest of the tensors' dtypes.

    Args:
        tensors: at least one, all of the same shape, any floating dtype; left unchanged.
        weights: one per tensor.

    Returns:
        The sum. A single tensor of weight 1 is returned itself, so plain layers stay bit-exact.

    Raises:
        IncompatibleSources: the shapes differ.
        ValueError: no tensors, or not one weight each.
    """
    _check_shapes(tensors, weights)
    first = tensors[0]
    if len(tensors) == 1 and weights[0] == 1:
        return first
    wide = torch.promote_types(_dtype(tensors), torch.float32)
    total = first.to(wide) * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor.to(wide), alpha=weight)
    return total.to(_dtype(tensors))


def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """From the first tensor to the second along the arc between them, both flattened (Shoemake 1985)."""
    _check_shapes(tensors, weights)
    a, b = (t.double().flatten() for t in tensors)
    share = weights[1] / (weights[0] + weights[1])
    cosine = float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30))
    if abs(cosine) > PARALLEL:
        return linear(tensors, [1 - share, share])
    angle = math.acos(cosine)
    near, far = math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)
    return (near * a + far * b).view_as(tensors[0]).to(_dtype(tensors))


def passthrough(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """One tensor, scaled."""
    return linear(tensors, weights)


def ties(tensors: Sequence[Tensor], weights: Sequence[float], density: float = 1.0) -> Tensor:
    """The largest share of every delta, where it has the sign that prevails (TIES, arXiv 2306.01708)."""
    base, deltas = _deltas(tensors, weights)
    weighted, scale = _weighted(torch.stack([_largest(d, density) for d in deltas]), weights)
    agree = _agreeing(weighted)
    divisor = (scale * agree).sum(0)
    divisor[divisor.abs() < 1e-8] = 1.0
    return (base + (weighted * agree).sum(0) / divisor).to(_dtype(tensors))


def dare(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float = 1.0,
    draws: Sequence[torch.Generator] = (),
    consensus: bool = False,
) -> Tensor:
    """A random share of every delta, rescaled, and their sum (DARE, arXiv 2311.03099).

    Args:
        tensors: the base's first.
        weights: one per tensor; that of the base has no meaning.
        density: share that is kept.
        draws: one generator per delta, on the CPU.
        consensus: leave out what has not the sign that prevails, as `ties` does.
    """
    base, deltas = _deltas(tensors, weights)
    kept = [d if density >= 1 else d * _mask(d, density, draw) / density for d, draw in _paired(deltas, draws)]
    weighted, _ = _weighted(torch.stack(kept), weights)
    if consensus:
        weighted = weighted * _agreeing(weighted)
    return (base + weighted.sum(0)).to(_dtype(tensors))


Merge = Callable[..., Tensor]
MERGES: dict[str, Merge] = {
    "linear": linear,
    "slerp": slerp,
    "passthrough": passthrough,
    "ties": ties,
    "dare": dare,
    "dare-ties": dare,
}
PARTS = {"slerp": (2, 2), "passthrough": (1, 1), "ties": (2, 99), "dare": (2, 99), "dare-ties": (2, 99)}
"""Least and most parts of a merge that does not take any number."""
SPARSE = ("ties", "dare", "dare-ties")


def merged(name: str, tensors: Sequence[Tensor], weights: Sequence[float], where: str = "") -> Tensor:
    """Merge by name.

    Args:
        name: NAME[:DENSITY[:SEED]].
        tensors: of the parts, in their order.
        weights: one per tensor.
        where: names the tensor; a random mask depends on it, on the seed and on the part, never on the order of work.

    Raises:
        IncompatibleSources: the shapes differ.
    """
    kind, density, seed = _parsed(name)
    if kind in ("dare", "dare-ties"):
        draws = [_draw(seed, where, part) for part in range(1, len(tensors))]
        return dare(tensors, weights, density, draws, kind == "dare-ties")
    return ties(tensors, weights, density) if kind == "ties" else MERGES[kind](tensors, weights)


def check_merge(name: str, parts: int) -> None:
    """Refuse a merge that does not exist or cannot be done with so many parts.

    Raises:
        InvalidBlueprint: says which.
    """
    kind, density, _ = _parsed(name)
    if not 0 < density <= 1:
        raise InvalidBlueprint(f"The merge {name!r} keeps a share of {density:g}; it must be above 0 and at most 1.")
    least, most = PARTS.get(kind, (1, 99))
    if not least <= parts <= most:
        raise InvalidBlueprint(f"The merge {name!r} cannot be done with {parts} parts; it takes {least} to {most}.")


def _parsed(name: str) -> tuple[str, float, int]:
    kind, *options = name.split(":")
    allowed = 2 if kind.startswith("dare") else 1 if kind == "ties" else 0
    try:
        if kind not in MERGES or len(options) > allowed:
            raise ValueError
        return kind, float(options[0]) if options else 1.0, int(options[1]) if len(options) > 1 else 0
    except ValueError:
        raise InvalidBlueprint(
            f"The blueprint merges by {name!r}; known are linear, slerp, passthrough, ties:DENSITY, dare:DENSITY:SEED "
            "and dare-ties:DENSITY:SEED."
        ) from None


def _check_shapes(tensors: Sequence[Tensor], weights: Sequence[float]) -> None:
    if not tensors or len(tensors) != len(weights):
        raise ValueError(f"a merge needs one weight per tensor, not {len(weights)} for {len(tensors)}")
    first = tensors[0]
    if wrong := [t.shape for t in tensors if t.shape != first.shape]:
        raise IncompatibleSources(
            f"A tensor of shape {list(first.shape)} cannot be merged with one of shape {list(wrong[0])}; "
            "merge layers of equal shape only."
        )


def _deltas(tensors: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    _check_shapes(tensors, weights)
    base = tensors[0].to(torch.promote_types(_dtype(tensors), torch.float32))
    return base, [t.to(base.dtype) - base for t in tensors[1:]]


def _weighted(deltas: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Deltas [k, ...] times their weights, and the weights in a shape that fits them."""
    scale = torch.tensor(list(weights[1:]), dtype=deltas.dtype).view(-1, *[1] * (deltas.dim() - 1)).to(deltas.device)
    return deltas * scale, scale


def _agreeing(weighted: Tensor) -> Tensor:
    """Where each of [k, ...] has the sign of their sum."""
    majority = (weighted.sum(0) >= 0).to(weighted.dtype) * 2 - 1
    return weighted.sign() == majority


def _largest(delta: Tensor, density: float) -> Tensor:
    count = int(density * delta.numel())
    if density >= 1 or not count:
        return delta if density >= 1 else torch.zeros_like(delta)
    keep = torch.zeros(delta.numel(), dtype=delta.dtype, device=delta.device)
    keep[delta.abs().flatten().argsort(descending=True)[:count]] = 1
    return delta * keep.view_as(delta)


def _mask(delta: Tensor, density: float, draw: torch.Generator) -> Tensor:
    return torch.bernoulli(torch.full(delta.shape, density), generator=draw).to(delta)


def _paired(deltas: Sequence[Tensor], draws: Sequence[torch.Generator]) -> list[tuple[Tensor, torch.Generator]]:
    return list(zip(deltas, draws or [None] * len(deltas), strict=True))


def _draw(seed: int, where: str, part: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{where}/{part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
