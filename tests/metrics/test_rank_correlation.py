"""Spearman's rank correlation against its formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.metrics.rank_correlation import spearman


@given(st.permutations(range(8)))
def test_rank_correlation_is_that_of_the_ranks(order):
    distance = sum((i - x) ** 2 for i, x in enumerate(order))
    expected = 1 - 6 * distance / (8 * 63)
    assert spearman([math.exp(i) for i in range(8)], list(order)) == pytest.approx(expected)


def test_ties_share_their_rank_and_too_little_says_nothing():
    assert spearman([1, 1, 2, 3], [1, 1, 2, 3]) == pytest.approx(1)
    assert math.isnan(spearman([1, 2], [1, 2])) and math.isnan(spearman([1, 1, 1], [1, 2, 3]))
