"""Evidence in pieces: what goes through the layers as one batch, and how many of those at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_prune.blueprint import Fidelity
from hf_prune.evaluation.comparison import Reference
from hf_prune.evaluation.dense import Call
from hf_prune.evaluation.packed_tasks import Sheet
from hf_prune.limits import STATE_BYTES


@dataclass(frozen=True, eq=False)
class Piece:
    """Windows of text, or a sheet of tasks; `hidden` gives the dense model's state [n, T, d] at a layer boundary, None
    where it was not kept. `bridged`: gaps are crossed by linear maps."""

    hidden: Callable[[int], Tensor | None]
    calls: Sequence[Call]
    window: slice | None = None
    sheet: Sheet | None = None
    bridged: bool = False


def batches(own: Reference, sheets: Iterable[Sheet], fidelity: Fidelity, alive: int) -> Iterator[list[Piece]]:
    """The evidence in pieces, as many at a time as there may be states when so many are alive; one piece at least."""
    each, most = own.hidden[0][0].nbytes, STATE_BYTES // alive
    chunk, stop = max(1, most // each), fidelity.start + fidelity.sequences
    batch, room = [], 0
    for first in range(fidelity.start, stop, chunk):
        if batch:
            yield batch
        window = slice(first, min(stop, first + chunk))
        batch = [Piece(lambda depth, w=window: own.state(depth, w), own.calls, window, bridged=fidelity.bridged)]
        room = most - (window.stop - first) * each
    for sheet in sheets:
        room -= sheet.hidden[0].nbytes
        if room < 0 and batch:
            yield batch
            batch, room = [], most - sheet.hidden[0].nbytes
        batch.append(Piece(sheet.state, sheet.calls, sheet=sheet, bridged=fidelity.bridged))
    yield batch
