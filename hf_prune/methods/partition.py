"""Cutting a row of layers into consecutive groups: drawn, listed, counted; and what became of every source layer."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np

from hf_prune.blueprint import LayerSpec
from hf_prune.errors import InvalidRecipe

T = TypeVar("T")


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of `items`, all equally likely."""
    return items[int(rng.integers(len(items)))]


def subset(rng: np.random.Generator, items: Sequence[int], size: int) -> set[int]:
    """`size` different ones of `items`, every subset equally likely."""
    return {items[i] for i in rng.permutation(len(items))[:size]}


def mixed(
    a: Collection[int], b: Collection[int], size: int | None, positions: int, rng: np.random.Generator
) -> tuple[set[int], np.ndarray]:
    """Crossover of two sets over 0..positions-1: uniform or one-point (a coin decides), repaired to `size` members.

    What both hold stays in, what neither holds stays out; the repair only touches positions where they differ.
    None leaves the size as it falls.

    Returns:
        The set, and bool [positions]: True where `a` was asked.
    """
    from_a = rng.random(positions) < 0.5
    if rng.random() < 0.5:
        from_a = np.arange(positions) < rng.integers(1, max(positions, 2))
    child = {i for i in range(positions) if i in (a if from_a[i] else b)}
    if size is not None:
        differ = set(a) ^ set(b)
        child -= subset(rng, sorted(child & differ), len(child) - size) if len(child) > size else set()
        child |= subset(rng, sorted(differ - child), size - len(child)) if len(child) < size else set()
    return child, from_a


def partitions(depth: int, groups: int) -> Iterator[list[tuple[int, int]]]:
    """All ways to cut layers 0..depth-1 into that many groups (start, stop), lexicographic in the cuts."""
    for cuts in combinations(range(1, depth), groups - 1):
        yield list(zip((0, *cuts), (*cuts, depth), strict=True))


def ways(depth: int, choices: Callable[[int], int]) -> list[int]:
    """For 0..depth groups: partitions into that many, each counted product of `choices(size)` over its groups times."""
    per_size = [0] + [choices(size) for size in range(1, depth + 1)]
    row = [1] + [0] * depth
    found = [row[depth]]
    for _ in range(depth):
        row = [sum(row[end - size] * per_size[size] for size in range(1, end + 1)) for end in range(depth + 1)]
        found.append(row[depth])
    return found


def sizes(depth: int, budget: int | None, most: int) -> range:
    """The numbers of removed units within the budget; a free budget leaves the dense model out."""
    return range(1, min(most, depth) + 1) if budget is None else range(budget, budget + 1)


def checked(depth: int, budget: int | None, most: int) -> None:
    """Refuse a budget that leaves nothing.

    Raises:
        InvalidRecipe: fewer than one layer, or a budget outside 0..most.
    """
    if depth < 1:
        raise InvalidRecipe(f"A model of {depth} layers cannot be pruned; it needs at least one.")
    if budget is not None and not 0 <= budget <= most:
        raise InvalidRecipe(f"Removing {budget} is not possible with {depth} layers; remove between 0 and {most}.")


def kept_of(depth: int, removed: Iterable[int]) -> list[int]:
    """The other layers, ascending.

    Raises:
        InvalidRecipe: a layer that does not exist, or no layer left.
    """
    gone = set(removed)
    if beyond := sorted(gone - set(range(depth))):
        raise InvalidRecipe(f"Layer {beyond[0]} cannot be removed: the model's layers are 0 to {depth - 1}.")
    if len(gone) == depth:
        raise InvalidRecipe(f"All {depth} layers cannot be removed; leave at least one.")
    return [i for i in range(depth) if i not in gone]


def fates(specs: Iterable[LayerSpec], depth: int) -> np.ndarray:
    """What a surrogate sees of a model.

    Returns:
        float64 [2 * depth]: 1 where a source layer is the anchor of no output layer, then 1 where its weights are part
        of an output layer of several parts.
    """
    seen = np.zeros((2, depth))
    seen[0] = 1.0
    for spec in specs:
        seen[0, spec.anchor.layer] = 0.0
        if len(spec.parts) > 1:
            seen[1, [p.layer for p in spec.parts]] = 1.0
    return seen.ravel()
