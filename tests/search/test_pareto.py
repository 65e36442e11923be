import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.search.pareto import hypervolume, hypervolume_history, knee, non_dominated

GRID = st.integers(0, 6).map(float)
PAIRS = st.lists(st.tuples(GRID, GRID), max_size=12)
TRIPLES = st.lists(st.tuples(GRID, GRID, st.one_of(GRID, st.just(math.inf))), max_size=12)


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(TRIPLES)
def test_non_dominated_is_what_the_definition_says(points):
    expected = [
        i for i, p in enumerate(points) if all(map(math.isfinite, p)) and not any(dominates(q, p) for q in points)
    ]
    assert non_dominated(points) == expected


@given(PAIRS)
@settings(deadline=None)
def test_hypervolume_counts_the_dominated_cells(points):
    cells = itertools.product(range(5), range(5))
    expected = sum(any(p[0] <= x and p[1] <= y for p in points) for x, y in cells)
    assert hypervolume(points, (5.0, 5.0)) == pytest.approx(expected)


def test_hypervolume_ignores_what_is_broken_or_beyond_the_reference():
    assert hypervolume([(1.0, math.inf), (math.nan, 0.0), (9.0, 0.0), (1.0, 1.0)], (2.0, 3.0)) == 2.0
    assert hypervolume([], (1.0, 1.0, 1.0)) == 0.0


@given(st.lists(PAIRS, max_size=5))
@settings(deadline=None)
def test_hypervolume_history_is_that_of_everything_so_far(batches):
    history = hypervolume_history(batches, (5.0, 5.0))
    assert len(history) == len(batches)
    for number, (count, volume) in enumerate(history, 1):
        seen = [p for batch in batches[:number] for p in batch]
        assert count == len(seen) and volume == pytest.approx(hypervolume(seen, (5.0, 5.0)))


def test_knee_is_the_bend():
    front = [(0.0, 10.0), (1.0, 4.0), (2.0, 1.0), (6.0, 0.5), (10.0, 0.0)]
    assert knee(front) == 2


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=3, max_size=8), st.randoms())
def test_knee_does_not_depend_on_units_or_order(points, random):
    front = sorted({points[i] for i in non_dominated(points)})
    shuffled = random.sample(front, len(front))
    scaled = [(8 * x, 0.25 * y) for x, y in front]
    chosen = front[knee(front)]
    assert scaled[knee(scaled)] == (8 * chosen[0], 0.25 * chosen[1])
    distance = gap(front)
    assert distance(shuffled[knee(shuffled)]) == pytest.approx(distance(chosen))


def gap(front):
    """Distance below the chord of the scaled extremes, or minus the distance to the ideal where nothing is below."""
    low, high = np.min(front, 0), np.max(front, 0)
    span = np.where(high > low, high - low, 1)

    def below(p):
        x, y = (np.array(p) - low) / span
        return (1 - x - y) / math.sqrt(2)

    def measure(p):
        return below(p) if max(map(below, front)) > 1e-12 else -float(np.linalg.norm((np.array(p) - low) / span))

    return measure


def test_knee_of_short_and_straight_fronts():
    assert knee([(3.0, 4.0)]) == 0
    assert knee([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]) == 1
    with pytest.raises(ValueError, match="two values"):
        knee([])
    with pytest.raises(ValueError, match="two values"):
        knee([(1.0, 2.0, 3.0)])
