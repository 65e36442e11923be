"""Who proposes, and what that takes: a searcher's row in the registry."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hf_prune.search.schedule import Schedule, Search
from hf_prune.search.space import Space

SCREENING_TOKENS = 1000
"""Screening on less than about so many ends in local optima."""
Rounds = Callable[[int, int, Callable[[], int]], Iterable[tuple[int, int]]]
"""(units of the model, units to remove, models there are) -> candidates of every round, and units they are short of."""


@dataclass(frozen=True, slots=True)
class Searcher:
    """propose: the generator. needs: what it counts on in genes, see `methods.method.Method.genes`.

    stages: windows of full evidence and tokens of a window -> growing numbers of windows. rounds: what it asks however
    many trials it may have; None where it goes on as long as it may. every_size: it looks for a front, and sees
    the number of parameters beside the objective. anytime: all that it asks for is of the size it is to find, so it can
    be ended early.
    """

    propose: Callable[[Space, Schedule, np.random.Generator], Search]
    needs: frozenset[str] = frozenset()
    stages: Callable[[int, int], tuple[int, ...]] = lambda full, length: (full,)
    rounds: Rounds | None = None
    every_size: bool = False
    anytime: bool = True


def screened(full: int, length: int) -> tuple[int, ...]:
    """A quarter of the evidence first, or half of it where a quarter would mislead."""
    first = full // 4 if full // 4 * length >= SCREENING_TOKENS else full // 2
    return tuple(sorted({max(1, first), full}))


def thirds(full: int, length: int) -> tuple[int, ...]:
    """A ninth, a third and all of it, as GPTailor's 111, 333 and 1,000 items (arXiv 2506.20480)."""
    return tuple(sorted({max(1, full // 9), max(1, full // 3), full}))


def single(units: int, remove: int, models: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """A single candidate."""
    yield 1, remove


def one_by_one(units: int, remove: int, models: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """Every unit that is left, round after round."""
    for gone in range(remove):
        yield units - gone, gone + 1


def all_of_them(units: int, remove: int, models: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """Every model there is."""
    yield models(), remove
