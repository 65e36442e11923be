"""Evidence in pieces: chunks, by content, and how many of those go through the layers at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_prune.blueprint import Fidelity
from hf_prune.evaluation.comparison import Reference
from hf_prune.evaluation.dense import Call
from hf_prune.evaluation.packed_tasks import Sheet
from hf_prune.limits import STATE_BYTES


@dataclass(frozen=True, slots=True)
class Chunk:
    """Windows `first` to `stop` of text, or the sheet `first` of a fidelity's tasks: the least that a worker takes."""

    first: int
    stop: int
    sheet: bool = False


@dataclass(frozen=True, eq=False)
class Piece:
    """Windows of text, or a sheet of tasks; `hidden` gives the dense model's state [n, T, d] at a layer boundary, None
    where it was not kept. `blocks`: rows that go into one call, a chunk's. `bridged`: gaps are crossed by linear maps.
    `number`: of the sheet."""

    hidden: Callable[[int], Tensor | None]
    calls: Sequence[Call]
    blocks: tuple[slice, ...]
    window: slice | None = None
    sheet: Sheet | None = None
    bridged: bool = False
    number: int = 0


def chunks(own: Reference, sheets: int, fidelity: Fidelity, alive: int, tokens: int) -> tuple[Chunk, ...]:
    """The evidence cut by content.

    Args:
        own: the dense model's run.
        sheets: of the fidelity's tasks.
        fidelity: says which windows.
        alive: states that there may be at a time.
        tokens: most of a chunk, unless a window has more.
    """
    rows = min(max(1, tokens // own.tokens.shape[1]), _most_windows(own, alive))
    stop = fidelity.start + fidelity.sequences
    text = [Chunk(first, min(stop, first + rows)) for first in range(fidelity.start, stop, rows)]
    return *text, *(Chunk(n, n + 1, sheet=True) for n in range(sheets))


def batches(
    own: Reference, sheets: Sequence[Sheet], chosen: Sequence[Chunk], bridged: bool, alive: int
) -> Iterator[list[Piece]]:
    """Chunks in pieces, as many at a time as there may be states when so many are alive; one piece at least."""
    each, most = own.hidden[0][0].nbytes, STATE_BYTES // alive
    batch: list[Piece] = []
    room = most
    for run in _runs([c for c in chosen if not c.sheet], _most_windows(own, alive)):
        if batch:
            yield batch
        window = slice(run[0].first, run[-1].stop)
        blocks = tuple(slice(c.first - window.start, c.stop - window.start) for c in run)
        batch = [Piece(lambda depth, w=window: own.state(depth, w), own.calls, blocks, window, bridged=bridged)]
        room = most - (window.stop - window.start) * each
    for number in (c.first for c in chosen if c.sheet):
        sheet = sheets[number]
        room -= sheet.hidden[0].nbytes
        if room < 0 and batch:
            yield batch
            batch, room = [], most - sheet.hidden[0].nbytes
        rows = (slice(0, len(sheet.tokens)),)
        batch.append(Piece(sheet.state, sheet.calls, rows, sheet=sheet, bridged=bridged, number=number))
    if batch:
        yield batch


def _most_windows(own: Reference, alive: int) -> int:
    return max(1, STATE_BYTES // alive // own.hidden[0][0].nbytes)


def _runs(text: Sequence[Chunk], most: int) -> Iterator[list[Chunk]]:
    """Neighbouring chunks of together at most so many windows; one at least."""
    run: list[Chunk] = []
    for chunk in text:
        if run and (chunk.stop - run[0].first > most or chunk.first != run[-1].stop):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run
