"""blocks, and what any listed space does: against all blocks written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import InvalidRecipe
from hf_prune.methods.blocks import BlockSpace

depths = st.integers(2, 9)
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def blocks(depth, size):
    return [set(range(first, first + size)) for first in range(depth - size + 1)]


@given(depths, st.data())
def test_every_block_of_the_budget_is_listed_once(depth, data):
    size = data.draw(st.integers(1, depth - 1))
    space = BlockSpace(depth, size)
    assert [space.gone(g) for g in space.enumerate()] == blocks(depth, size)
    assert space.count() == depth - size + 1 == len({space.decode(g) for g in space.enumerate()})
    assert [space.gone(g) for g in BlockSpace(depth).enumerate()] == [
        b for n in range(1, depth) for b in blocks(depth, n)
    ]


@given(depths, st.data(), rngs)
def test_moves_stay_among_the_blocks_and_are_the_nearest(depth, data, rng):
    size = data.draw(st.integers(1, depth - 1))
    space = BlockSpace(depth, size)
    a, b = space.random(rng), space.random(rng)
    for genome in (a, b, space.mutate(a, rng), space.crossover(a, b, rng)):
        assert space.gone(genome) in blocks(depth, size) and space.removed(genome) == size
    if space.count() > 1:
        assert len(space.gone(a) ^ space.gone(space.mutate(a, rng))) == 2
    between = space.crossover(a, b, rng)
    assert min(a[0], b[0]) <= between[0] <= max(a[0], b[0])


@given(depths, st.lists(st.integers(-50, 50), min_size=2, max_size=2).map(tuple))
def test_any_two_integers_are_a_model(depth, genome):
    assert 0 < len(BlockSpace(depth).decode(genome)) <= depth


@given(depths, st.data())
def test_greedy_steps_grow_a_block_by_one_layer(depth, data):
    space = BlockSpace(depth)
    genome = data.draw(st.sampled_from([space.dense(), *space.enumerate()]))
    grown = [space.gone(g) for g in space.removals(genome)]
    wanted = (
        [b for b in blocks(depth, space.removed(genome) + 1) if space.gone(genome) < b]
        if len(space.gone(genome)) < depth - 1
        else []
    )
    assert grown == wanted


def test_a_cut_that_is_no_block_is_refused():
    space = BlockSpace(6, 2)
    assert space.gone(space.from_removed((3, 2))) == {2, 3} and space.from_removed(()) == space.dense()
    with pytest.raises(InvalidRecipe, match=r"Layers \[1, 3\] are no cut of this method; use collapse"):
        space.from_removed((1, 3))
    with pytest.raises(InvalidRecipe, match="Layer 6 cannot be removed"):
        space.from_removed((6,))


def test_features_tell_models_apart():
    space = BlockSpace(6, 2)
    rows = np.stack([space.features(g) for g in space.enumerate()])
    assert len(np.unique(rows, axis=0)) == space.count() and rows.sum(1).tolist() == [2.0] * space.count()
