"""Attention masks that know their shape: a lower-triangular one is not multiplied out above its diagonal."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 32
"""Queries per call: enough for a fast product, few enough that hardly anything above the diagonal is computed."""


class LowerMask(Tensor):
    """An additive mask [n, 1, T, T] that lets no token see a later one.

    Torch's attention computes all of T x T under a mask. On a CPU, this mask makes it go block by block of queries,
    each over the keys up to its end: about half the work. Everything else that is done with it gives plain tensors.
    Queries before `first` are not asked for: what attention gives them is zero.
    """

    first = 0

    def starting(self, first: int) -> "LowerMask":
        """The same mask where nobody asks for queries before `first`."""
        other = self.as_subclass(Tensor).as_subclass(LowerMask)
        other.first = first
        return other

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Torch asks here before it calls `func`."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            plain = func is not scaled_dot_product_attention or len(args) != 3 or "attn_mask" not in kwargs
            return func(*args, **kwargs) if plain or args[0].device.type != "cpu" else _in_blocks(*args, **kwargs)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: LowerMask, **kwargs: Any) -> Tensor:
    """Attention of [n, heads, T, d] under a lower-triangular mask."""
    n, heads, length, _ = query.shape
    # In memory as torch's own kernel leaves it, so that what follows needs no copy.
    out = query.new_empty(n, length, heads, value.shape[-1]).transpose(1, 2)
    out[:, :, : attn_mask.first] = 0
    for first in range(attn_mask.first, length, BLOCK):
        rows, seen = slice(first, first + BLOCK), slice(0, first + BLOCK)
        out[:, :, rows] = scaled_dot_product_attention(
            query[:, :, rows], key[:, :, seen], value[:, :, seen], attn_mask=attn_mask[:, :, rows, seen], **kwargs
        )
    return out
