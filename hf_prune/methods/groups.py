"""Local moves on a row of groups of consecutive layers; each returns a new list, None where it cannot move."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hf_prune.methods.partition import pick


class Group(NamedTuple):
    """Layers start..stop-1 and their rule gene; `kept` is the offset of the kept layer, None for a merge."""

    start: int
    stop: int
    gene: int
    kept: int | None

    @property
    def size(self) -> int:
        """Number of layers."""
        return self.stop - self.start

    @property
    def layer(self) -> int:
        """The layer that stands for the group when layers are swapped: the kept one, the first one of a merge."""
        return self.start + (self.kept or 0)


def keep(start: int, stop: int, layer: int) -> Group:
    """The group that keeps `layer`, or the nearest one it holds."""
    offset = min(max(layer, start), stop - 1) - start
    return Group(start, stop, offset, offset)


def resized(group: Group, start: int, stop: int) -> Group:
    """The same rule over start..stop-1; a kept layer stays kept while it is inside."""
    if group.kept is None and stop - start > 1:
        return Group(start, stop, group.gene, None)
    return keep(start, stop, group.layer)


def put(groups: list[Group], i: int, count: int, *new: Group) -> list[Group]:
    """A copy with `count` groups from i on replaced."""
    return [*groups[:i], *new, *groups[i + count :]]


def absorbed(groups: list[Group], i: int, by: int) -> tuple[list[Group], int]:
    """Group i goes into its neighbour `by`, whose rule stays; also returns where the neighbour is then."""
    first = min(i, by)
    wider = resized(groups[by], groups[first].start, groups[first + 1].stop)
    return put(groups, first, 2, wider), first


def dissolved(groups: list[Group], i: int, rng: np.random.Generator) -> list[Group]:
    """Group i goes into its left or right neighbour; there must be one."""
    return absorbed(groups, i, pick(rng, [j for j in (i - 1, i + 1) if 0 <= j < len(groups)]))[0]


def split(groups: list[Group], i: int, layer: int, rng: np.random.Generator) -> list[Group]:
    """Group i becomes two, and `layer` stands for one of them; the cut is anywhere between it and the present one."""
    g = groups[i]
    low, high = sorted((g.layer, layer))
    cut = int(rng.integers(low + 1, high + 1))
    if g.kept is None:
        return put(groups, i, 1, resized(g, g.start, cut), resized(g, cut, g.stop))
    return put(groups, i, 1, keep(g.start, cut, low), keep(cut, g.stop, high))


def removed_slots(groups: list[Group]) -> list[tuple[int, int]]:
    """(group, layer) for every layer that does not stand for its group."""
    return [(i, layer) for i, g in enumerate(groups) for layer in range(g.start, g.stop) if layer != g.layer]


def swap(groups: list[Group], rng: np.random.Generator) -> list[Group] | None:
    """A removed layer comes back and a kept one goes, all pairs equally likely; None when nothing is removed."""
    slots = removed_slots(groups)
    if not slots:
        return None
    i, layer = pick(rng, slots)
    victim = int(rng.integers(len(groups)))
    if victim == i:
        return put(groups, i, 1, keep(groups[i].start, groups[i].stop, layer))
    return dissolved(split(groups, i, layer, rng), victim + (victim > i), rng)


def grow(groups: list[Group], rng: np.random.Generator) -> list[Group] | None:
    """A removed layer comes back; None when nothing is removed."""
    slots = removed_slots(groups)
    return split(groups, *pick(rng, slots), rng) if slots else None


def shrink(groups: list[Group], rng: np.random.Generator) -> list[Group] | None:
    """One output layer goes; None when it is the only one."""
    return dissolved(groups, int(rng.integers(len(groups))), rng) if len(groups) > 1 else None


def shift(groups: list[Group], rng: np.random.Generator) -> list[Group] | None:
    """The boundary between two groups, one of them merged, moves by one layer; None when no boundary can."""
    moves = [
        (i, cut)
        for i, (a, b) in enumerate(pairwise(groups))
        for cut in (a.stop - 1, a.stop + 1)
        if None in (a.kept, b.kept) and a.start < cut < b.stop
    ]
    if not moves:
        return None
    i, cut = pick(rng, moves)
    a, b = groups[i : i + 2]
    return put(groups, i, 2, resized(a, a.start, cut), resized(b, cut, b.stop))


def cut_between(left: Group, right: Group, rng: np.random.Generator) -> int:
    """Where the child cuts between two kept layers: where a parent did, else anywhere."""
    for cut in (right.start, left.stop):
        if left.layer < cut <= right.layer:
            return cut
    return int(rng.integers(left.layer + 1, right.layer + 1))
