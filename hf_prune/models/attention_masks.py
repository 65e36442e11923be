"""Attention masks that know their blocks: keys that no query of a block sees are left out of its product."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK, LONG = 32, 512
"""Queries per call: enough for a fast product, few enough that hardly anything unseen is computed; twice as many in
rows of more tokens than the second, where every call reads many keys."""
SPARSE = 0.75
"""Share of the keys up to its end that a block has to see less of before they are gathered, which copies them."""


class BlockMask(Tensor):
    """An additive mask [n, 1, T, T] that lets no token see a later one.

    Torch's attention computes all of T x T under a mask. On a CPU, this mask makes it go block by block of queries,
    each over the keys that are seen from there: half the work below a diagonal, less where rows are trees. Everything
    else that is done with it gives plain tensors. Queries in blocks before that of `first` are not asked for: what
    attention gives them is zero.
    """

    first = 0
    blocks: tuple[tuple[slice, slice | Tensor, Tensor], ...] = ()

    @classmethod
    def of(cls, sees: Tensor, dtype: torch.dtype) -> "BlockMask":
        """From what queries see, bool [n, T, T], lower-triangular."""
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
        found = mask.as_subclass(cls)
        length = sees.shape[-1]
        size = BLOCK if length <= LONG else 2 * BLOCK
        found.blocks = tuple(_block(mask, sees, slice(i, i + size)) for i in range(0, length, size))
        return found

    def float(self) -> "BlockMask":
        """The same mask in float32."""
        other = super().float().as_subclass(BlockMask)
        other.first = self.first
        other.blocks = tuple((rows, keys, mask.float()) for rows, keys, mask in self.blocks)
        return other

    def starting(self, first: int) -> "BlockMask":
        """The same mask where nobody asks for queries before `first`."""
        other = self.as_subclass(Tensor).as_subclass(BlockMask)
        other.first, other.blocks = first, self.blocks
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


def _block(mask: Tensor, sees: Tensor, rows: slice) -> tuple[slice, slice | Tensor, Tensor]:
    """Queries, the keys that they see in any row, and the mask of both."""
    keys = sees[:, rows].any(1).any(0).nonzero().squeeze(1)
    end = int(keys[-1]) + 1
    if len(keys) > SPARSE * end:
        return rows, slice(0, end), mask[:, :, rows, :end]
    return rows, keys, mask[:, :, rows, keys]


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: BlockMask, **kwargs: Any) -> Tensor:
    """Attention of [n, heads, T, d]."""
    n, heads, length, _ = query.shape
    # In memory as torch's own kernel leaves it, so that what follows needs no copy.
    out = query.new_empty(n, length, heads, value.shape[-1]).transpose(1, 2)
    out[:, :, : attn_mask.first] = 0
    for rows, keys, mask in attn_mask.blocks:
        if rows.stop <= attn_mask.first:
            continue
        seen = (_taken(states, keys) for states in (key, value))
        out[:, :, rows] = scaled_dot_product_attention(query[:, :, rows], *seen, attn_mask=mask, **kwargs)
    return out


def _taken(states: Tensor, keys: slice | Tensor) -> Tensor:
    if isinstance(keys, slice):
        return states[:, :, keys]
    # Layers make them token by token, and whole tokens are quickly copied.
    return states.transpose(1, 2).index_select(1, keys).transpose(1, 2)
