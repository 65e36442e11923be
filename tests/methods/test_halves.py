from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import DENSE, GONE, LayerSpec, Part
from hf_prune.methods.halves import HalvesSpace


def test_a_genome_by_hand():
    specs = HalvesSpace(4).decode((0, 1, 0, 1) + (0, 1, 1, 0))
    assert specs == (
        LayerSpec((Part(0, 0),)),
        LayerSpec((Part(0, 2),), mlp_level=GONE),
        LayerSpec((Part(0, 3),), attn_level=GONE),
    )


@given(st.lists(st.integers(0, 1), min_size=10, max_size=10), st.integers(0, 9))
def test_the_first_remaining_layer_has_its_attention(bits, seed):
    space, rng = HalvesSpace(5, 6), np.random.default_rng(seed)
    for genome in (tuple(bits), space.random(rng), space.repair(tuple(bits), rng), space.mutate(tuple(bits), rng)):
        assert space.decode(genome)[0].attn_level == DENSE


def test_layer_zero_loses_its_attention_only_with_its_mlp():
    space = HalvesSpace(3)
    assert space.decode((1, 0, 0, 0, 0, 0)) == space.decode(space.dense())
    assert space.decode((1, 0, 0, 1, 0, 0)) == space.decode(space.from_removed([0]))
    assert space.removed((1, 0, 0, 0, 0, 0)) == 0


@pytest.mark.parametrize("budget, split", [(4, (2, 2)), (5, (2, 3)), (0, (0, 0))])
def test_a_balanced_budget_takes_as_many_of_each(budget, split):
    space, rng = HalvesSpace(6, budget), np.random.default_rng(0)
    genome = space.random(rng)
    for _ in range(200):
        assert tuple(map(len, space.gone(genome))) == split
        genome = space.mutate(space.crossover(genome, space.random(rng), rng), rng)


def test_an_unbalanced_budget_trades_attention_for_mlp():
    space, rng = HalvesSpace(6, 4, balanced=False), np.random.default_rng(0)
    genome = space.random(rng)
    seen = {len(space.gone(genome := space.mutate(genome, rng))[0]) for _ in range(500)}
    assert seen == {0, 1, 2, 3, 4}


def test_one_balanced_mutation_swaps_one_half():
    space, rng = HalvesSpace(6, 4), np.random.default_rng(0)
    genome = space.random(rng)
    for _ in range(200):
        new = space.mutate(genome, rng)
        assert np.abs(np.subtract(new, genome)).sum() == 2
        genome = new


def test_enumerate_is_lexicographic():
    space = HalvesSpace(4, 4)
    gone = [tuple(map(sorted, space.gone(g))) for g in space.enumerate()]
    assert gone == sorted(gone)
    # All pairs of pairs but those where layer 0 loses its attention alone, or layers 0 and then 1 do.
    invalid = [(a, m) for a in combinations(range(4), 2) for m in combinations(range(4), 2) if 0 in a
               and (0 not in m or (1 in a and 1 not in m))]  # fmt: skip
    assert len(gone) == comb(4, 2) ** 2 - len(invalid) == space.count()


def test_a_genome_without_neighbours_stays():
    space = HalvesSpace(4, 0)
    assert space.mutate(space.dense(), np.random.default_rng(0)) == space.dense()
