from math import comb, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import LayerSpec, Part
from hf_prune.methods.partition import fates, mixed, partitions, sizes, subset, ways


@pytest.mark.parametrize("depth, groups", [(1, 1), (5, 1), (5, 3), (5, 5)])
def test_partitions_are_all_the_ways_to_cut(depth, groups):
    found = list(partitions(depth, groups))
    assert len({tuple(p) for p in found}) == len(found) == comb(depth - 1, groups - 1)
    assert found == sorted(found)
    for cut in found:
        assert [i for start, stop in cut for i in range(start, stop)] == list(range(depth))


@given(st.integers(1, 8), st.integers(1, 8), st.lists(st.integers(0, 5), min_size=9, max_size=9))
def test_ways_weighs_the_partitions(depth, groups, per_size):
    expected = sum(prod(per_size[stop - start] for start, stop in cut) for cut in partitions(depth, groups))
    counts = ways(depth, per_size.__getitem__)
    assert len(counts) == depth + 1
    assert counts[groups:] == [] if groups > depth else counts[groups] == expected


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.integers(0, 2**32 - 1), st.data())
def test_mixed_keeps_agreement_and_size(a, b, seed, data):
    size = data.draw(st.integers(len(a & b), len(a | b)))
    child, from_a = mixed(a, b, size, 10, np.random.default_rng(seed))
    assert a & b <= child <= a | b
    assert len(child) == size and from_a.shape == (10,)


def test_mixed_follows_its_mask_when_no_size_is_asked():
    rng = np.random.default_rng(0)
    a, b = {0, 1, 2}, {3, 4}
    for _ in range(50):
        child, from_a = mixed(a, b, None, 5, rng)
        assert child == {i for i in a if from_a[i]} | {i for i in b if not from_a[i]}


def test_subset_draws_without_repetition():
    assert subset(np.random.default_rng(0), range(3, 8), 5) == {3, 4, 5, 6, 7}


def test_a_free_budget_has_every_size_but_none():
    assert list(sizes(4, None, 3)) == [1, 2, 3]
    assert list(sizes(4, 2, 3)) == [2]


def test_fates_by_hand():
    specs = [LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 1, 0.4), Part(0, 2, 0.6)))]
    assert fates(specs, 4).tolist() == [0, 1, 0, 1, 0, 1, 1, 0]
