"""Fronts of several minimised values: who is on it, how much it covers, where its knee is."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from hf_prune.blueprint import Outcome

Points = Sequence[Sequence[float]]


def non_dominated(values: Points) -> list[int]:
    """Indices, ascending, of the points that no other point dominates (nowhere worse and somewhere better).

    Points with a value that is not finite never belong to the front. Of equal points all belong to it.
    """
    points = np.asarray(values, float)
    if not len(points):
        return []
    finite = np.flatnonzero(np.isfinite(points).all(1))
    kept = points[finite]
    unique, which = np.unique(kept, axis=0, return_inverse=True)
    optimal = np.array([not ((unique <= p).all(1) & (unique < p).any(1)).any() for p in unique], bool)
    return finite[optimal[which.ravel()]].tolist() if len(finite) else []


def hypervolume(front: Points, reference: Sequence[float]) -> float:
    """Volume between the points and the reference point that bounds them from above (Zitzler & Thiele 1999).

    Points that are not below the reference everywhere, or not finite, add nothing.
    """
    from pymoo.indicators.hv import Hypervolume

    bound = np.asarray(reference, float)
    points = np.asarray(front, float).reshape(-1, len(bound))
    inside = points[np.isfinite(points).all(1) & (points < bound).all(1)]
    return float(Hypervolume(ref_point=bound)(inside)) if len(inside) else 0.0


def hypervolume_history(batches: Sequence[Points], reference: Sequence[float]) -> list[tuple[int, float]]:
    """(points so far, hypervolume of all of them) after every batch."""
    history, front = [], []
    for count, batch in zip(accumulate(map(len, batches)), batches, strict=True):
        points = [*front, *(tuple(map(float, p)) for p in batch)]
        front = sorted({points[i] for i in non_dominated(points)})
        history.append((count, hypervolume(front, reference)))
    return history


def knee(points: Points) -> int:
    """Index of the point of a front with the best trade-off between two values.

    Both values are scaled to 0..1 over the front; the knee is the point farthest below the straight line between the
    two extremes (Das, On characterizing the "knee" of the Pareto curve based on normal-boundary intersection, 1999). On
    a front without such a point (fewer than three, or none below the line) it is the one nearest to the ideal corner.

    Raises:
        ValueError: no points, or not two values each.
    """
    p = np.asarray(points, float)
    if p.ndim != 2 or p.shape[1] != 2 or not len(p):
        raise ValueError("knee needs at least one point of two values")
    span = np.ptp(p, axis=0)
    scaled = (p - p.min(0)) / np.where(span > 0, span, 1.0)
    first, last = scaled[np.lexsort(scaled.T[::-1])[[0, -1]]]
    along = last - first
    below = along[1] * (scaled[:, 0] - first[0]) - along[0] * (scaled[:, 1] - first[1])
    if below.max() > 1e-12:
        return int(np.argmax(below))
    return int(np.argmin((scaled**2).sum(1)))


def front(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """The non-dominated ones, distinct values, ordered by the first value."""
    ordered = sorted(outcomes, key=lambda o: (o.values, o.trial.genome))
    found = [ordered[i] for i in non_dominated([o.values for o in ordered])]
    return tuple({o.values: o for o in reversed(found)}.values())[::-1]
