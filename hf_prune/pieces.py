"""Evidence in pieces: what goes through the layers as one batch, and how many of those at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_prune.blueprint import Fidelity
from hf_prune.exam import Sheet
from hf_prune.reference import Call, Reference

STATE_BYTES = 1 << 30
"""Most bytes of hidden states the sweep keeps alive at once."""
CACHED_STATE_BYTES, CACHED_STATE_LAYERS = 1 << 26, 64
"""On a CPU it keeps no more than this, or than so many layers take: states come back while they are in cache, and
reading or merging a layer again for the next pieces costs little beside its work."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Windows of text, or a sheet of tasks; `hidden` gives the dense model's state [n, T, d] at a layer boundary."""

    hidden: Callable[[int], Tensor]
    calls: Sequence[Call]
    window: slice | None = None
    sheet: Sheet | None = None


def most_bytes(device: torch.device, layer: int) -> int:
    """Bytes of states to keep alive at once, for a model whose layers have so many bytes."""
    if device.type != "cpu":
        return STATE_BYTES
    return min(STATE_BYTES, max(CACHED_STATE_BYTES, CACHED_STATE_LAYERS * layer))


def batches(own: Reference, sheets: Iterable[Sheet], fidelity: Fidelity, most: int) -> Iterator[list[Piece]]:
    """The evidence in pieces whose states have at most so many bytes together; one piece at least."""
    each = own.hidden[0][0].nbytes
    chunk, stop = max(1, most // each), fidelity.start + fidelity.sequences
    batch, room = [], 0
    for first in range(fidelity.start, stop, chunk):
        if batch:
            yield batch
        window = slice(first, min(stop, first + chunk))
        batch = [Piece(lambda depth, w=window: own.hidden[depth][w], own.calls, window)]
        room = most - (window.stop - first) * each
    for sheet in sheets:
        room -= sheet.hidden[0].nbytes
        if room < 0 and batch:
            yield batch
            batch, room = [], most - sheet.hidden[0].nbytes
        batch.append(Piece(lambda depth, s=sheet: s.hidden[depth], sheet.calls, sheet=sheet))
    yield batch
