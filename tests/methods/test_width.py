"""Widths: every operator keeps the budget, leaves no room, and never takes the first layer's attention."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import GONE, Blueprint, Source
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.width import WidthSpace

ATTENTION, MLP = (40.0, 20.0, 0.0), (90.0, 60.0, 35.0, 10.0, 0.0)


def space(depth=3, share=0.5, depth_too=False):
    costs = (ATTENTION,) * depth + (MLP,) * depth
    return WidthSpace(costs, share and share * depth * 130.0, "lib", depth_too)


spaces = st.builds(space, st.integers(2, 5), st.sampled_from([0.17, 0.3, 0.5, 0.8]), st.booleans())
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def fits(made, genome):
    """Every promise of a genome."""
    assert made.cost(genome) <= made.limit and not made._wider(list(genome))
    layers = made.decode(genome)
    assert layers[0].anchor.layer > 0 or layers[0].attn_level != GONE
    assert genome[0] < len(ATTENTION) - 1
    assert made.depth_too or len(layers) == made.depth
    Blueprint((Source("m", "0"),), layers).check()
    return True


@given(spaces, rngs)
def test_every_operator_stays_in_the_budget_and_fills_it(made, rng):
    a, b = made.random(rng), made.random(rng)
    assert fits(made, a) and fits(made, b) and fits(made, made.crossover(a, b, rng))
    assert made.cost(made.uniform()) <= made.limit
    for _ in range(6):
        a = made.mutate(a, rng)
        assert fits(made, a)


@given(spaces, st.integers(0, 2**32 - 1))
def test_any_levels_are_repaired_and_nothing_is_repaired_twice(made, seed):
    rng = np.random.default_rng(seed)
    fixed = made.repair(tuple(int(rng.integers(len(c))) for c in made.costs), rng)
    assert fits(made, fixed) and made.repair(fixed, np.random.default_rng(1)) == fixed


@given(rngs)
def test_the_cheapest_is_that_of_enumeration(rng):
    made = space(2, 0.55)
    losses = [np.sort(np.r_[0.0, rng.random(len(c) - 1)]).tolist() for c in made.costs]
    whole = itertools.product(*(range(len(c)) for c in made.costs))
    allowed = [g for g in whole if made.cost(g) <= made.limit and all(g[h] <= made._deepest(h, g) for h in range(4))]

    def total(genome):
        return sum(mine[g] for mine, g in zip(losses, genome, strict=True))

    # Counting the budget in parts rounds costs up, so the last bit of room may stay unused.
    tight = [g for g in allowed if made.cost(g) <= 0.999 * made.limit]
    assert total(made.cheapest(losses)) <= min(map(total, tight)) + 1e-9 and fits(made, made.cheapest(losses))


@given(rngs)
def test_a_move_trades_between_halves(rng):
    made = space(4, 0.6)
    genome = made.random(rng)
    moved = made.mutate(genome, rng)
    assert moved == genome or any(b > a for a, b in zip(genome, moved, strict=True))


def test_enumeration_lists_what_the_operators_reach():
    made, rng = space(2, 0.5), np.random.default_rng(0)
    every = set(made.enumerate())
    assert all(fits(made, g) for g in every) and {made.random(rng) for _ in range(3000)} <= every
    assert made.count() >= len(every)


def test_a_free_size_reaches_all_sizes_and_decodes_alike():
    made, rng = space(3, None), np.random.default_rng(0)
    genome, costs = made.dense(), set()
    for _ in range(400):
        genome = made.mutate(genome, rng)
        costs.add(made.cost(genome))
    assert min(costs) < 0.3 * made.cost(made.dense()) and len(costs) > 30
    assert [s.library for s in made.decode(made.dense())] == [None] * 3, "a dense layer names no library"


def test_too_little_is_refused():
    with pytest.raises(InvalidRecipe, match="narrowest model still has"):
        space(3, 0.01)


def test_removals_go_down_one_level_until_the_budget_is_met():
    made = space(2, 0.9)
    (first, *_), dense = made.removals(made.dense()), made.dense()
    assert sum(first) == 1 and made.cost(first) < made.cost(dense) and made.removals(made.narrowest()) == []
