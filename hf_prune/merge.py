"""Pure functions that merge the same tensor of several layers. A new merge is one function and one entry."""

from collections.abc import Callable, Sequence

import torch

from hf_prune.errors import IncompatibleSources

Merge = Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor]


def linear(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Weighted sum, added up in float32 (float64 stays float64) and cast back to the dtype of the first tensor.

    Args:
        tensors: at least one, all of the same shape, any floating dtype; left unchanged.
        weights: one per tensor.

    Returns:
        The sum. A single tensor of weight 1 is returned itself, so plain layers stay bit-exact.

    Raises:
        IncompatibleSources: the shapes differ.
        ValueError: no tensors, or not one weight each.
    """
    if not tensors or len(tensors) != len(weights):
        raise ValueError(f"a merge needs one weight per tensor, not {len(weights)} for {len(tensors)}")
    first = tensors[0]
    if wrong := [t.shape for t in tensors if t.shape != first.shape]:
        raise IncompatibleSources(
            f"A tensor of shape {list(first.shape)} cannot be merged with one of shape {list(wrong[0])}; "
            "merge layers of equal shape only."
        )
    if len(tensors) == 1 and weights[0] == 1:
        return first
    wide = torch.promote_types(first.dtype, torch.float32)
    total = first.to(wide) * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor.to(wide), alpha=weight)
    return total.to(first.dtype)


MERGES: dict[str, Merge] = {"linear": linear}


def check_merge(name: str, parts: int) -> None:
    """Temporary."""
    from hf_prune.errors import InvalidBlueprint

    if name.partition(":")[0] not in MERGES:
        raise InvalidBlueprint(f"The blueprint merges by {name!r}; known are {', '.join(MERGES)}.")


def merged(name: str, tensors: Sequence[torch.Tensor], weights: Sequence[float], where: str = "") -> torch.Tensor:
    """Temporary."""
    return MERGES[name](tensors, weights)
