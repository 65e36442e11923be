import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.metrics.median_interval import LEAST, median_interval


@pytest.mark.parametrize(("count", "rank"), [(6, 0), (8, 0), (9, 1), (15, 3), (20, 5), (25, 7)])
def test_ranks_are_those_of_the_sign_test(count, rank):
    middle, ends = median_interval([float(i) for i in reversed(range(count))])
    assert middle == (count - 1) / 2 and ends == (rank, count - 1 - rank)


def test_too_few_values_have_no_interval():
    with pytest.raises(ValueError, match="5 values are too few"):
        median_interval([1.0] * (LEAST - 1))


@given(st.lists(st.floats(-1e6, 1e6), min_size=LEAST, max_size=40))
def test_the_median_lies_within(values):
    middle, (low, high) = median_interval(values)
    assert min(values) <= low <= middle <= high <= max(values)


def test_it_covers_the_true_median_of_a_skewed_law():
    rng = np.random.default_rng(0)
    found = [median_interval(rng.exponential(size=9))[1] for _ in range(2000)]
    covered = np.mean([low <= np.log(2) <= high for low, high in found])
    assert covered > 0.95
