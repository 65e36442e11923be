from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.methods.groups import Group, absorbed, cut_between, grow, keep, resized, shift, shrink, split, swap

MERGE = 99
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def rows(draw) -> list[Group]:
    """Groups over up to 12 layers, kept or merged."""
    groups, start = [], 0
    for size in draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)):
        merge = size > 1 and draw(st.booleans())
        kept = keep(start, start + size, start + draw(st.integers(0, size - 1)))
        groups.append(Group(start, start + size, MERGE, None) if merge else kept)
        start += size
    return groups


def whole(groups: list[Group], depth: int) -> bool:
    return groups[0].start == 0 and groups[-1].stop == depth and all(a.stop == b.start for a, b in pairwise(groups))


@given(rows(), rngs)
def test_moves_keep_every_layer_in_one_group_and_change_the_number_as_they_say(groups, rng):
    depth, before = groups[-1].stop, list(groups)
    for move, change in ((swap, 0), (shift, 0), (grow, 1), (shrink, -1)):
        new = move(groups, rng)
        assert groups == before
        if new is not None:
            assert whole(new, depth) and len(new) == len(groups) + change
            assert all(g.kept is None or g.start <= g.layer < g.stop for g in new)


@given(rows(), rngs)
def test_moves_are_found_where_there_is_one(groups, rng):
    depth = groups[-1].stop
    assert (swap(groups, rng) is None) == (grow(groups, rng) is None) == (len(groups) == depth)
    assert (shrink(groups, rng) is None) == (len(groups) == 1)


@given(rows(), rngs)
def test_swap_among_deletions_trades_one_layer(groups, rng):
    groups = [keep(g.start, g.stop, g.layer) for g in groups]
    if new := swap(groups, rng):
        assert len({g.layer for g in new} - {g.layer for g in groups}) == 1


def test_split_keeps_both_layers():
    new = split([keep(0, 4, 1)], 0, 3, np.random.default_rng(0))
    assert [g.layer for g in new] == [1, 3]


def test_absorbing_keeps_the_neighbours_layer():
    groups = [keep(0, 2, 1), keep(2, 3, 2), keep(3, 6, 4)]
    assert absorbed(groups, 1, 2) == ([keep(0, 2, 1), keep(2, 6, 4)], 1)
    assert absorbed(groups, 1, 0) == ([keep(0, 3, 1), keep(3, 6, 4)], 0)


def test_a_merge_of_one_layer_is_that_layer():
    assert resized(Group(2, 5, MERGE, None), 2, 3) == keep(2, 3, 2)


def test_the_cut_is_where_a_parent_cut():
    rng = np.random.default_rng(0)
    assert cut_between(keep(0, 3, 0), keep(2, 6, 5), rng) == 2
    assert cut_between(keep(0, 3, 0), keep(0, 6, 5), rng) == 3
    assert {cut_between(keep(0, 6, 2), keep(0, 6, 4), rng) for _ in range(30)} == {3, 4}
