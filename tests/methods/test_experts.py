"""The space of experts: what its genomes mean, and that every operator keeps to its budget and to groups."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import InvalidRecipe
from hf_prune.methods.expert_merges import MergingSpace
from hf_prune.methods.expert_space import ExpertSpace
from hf_prune.methods.experts import BASELINES, Experts
from hf_prune.methods.method import Facts, Sizes
from hf_prune.models.mixtures import ROUTINGS, Mixture
from hf_prune.planning.counts import evaluations
from hf_prune.recipe import Recipe


def mixture(groups=1, experts=6, layers=(1, 2), chosen=2):
    routing = ROUTINGS["deepseek_v3" if groups > 1 else "mixtral"]
    return Mixture(layers, experts, chosen, groups, max(1, groups // 2), 2 * groups if groups > 1 else 1, 100, routing)


WORTH = ((5.0, 1.0, 4.0, 2.0, 3.0, 6.0), (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
SPACES = [
    ExpertSpace(4, mixture(), 2),
    ExpertSpace(4, mixture(), 5, WORTH),
    ExpertSpace(4, mixture(), None, WORTH),
    ExpertSpace(3, mixture(2), 2),
    ExpertSpace(3, mixture(2), None),
    ExpertSpace(4, mixture(), 3, WORTH, per_layer=True),
    ExpertSpace(4, mixture(chosen=3), 4, WORTH, per_layer=True),
    ExpertSpace(3, mixture(2), 2, per_layer=True),
    ExpertSpace(4, mixture(), None, WORTH, per_layer=True),
]
spaces = st.sampled_from(SPACES)
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def counts(space, genome):
    """Experts gone by layer and group."""
    m = space.mixture
    return np.array(genome).reshape(len(m.layers), m.groups, -1).sum(2)


def within(space, genome):
    gone = counts(space, genome)
    if space.per_layer:
        met = space.budget in (None, int(gone.sum())) and {int(n) for n in gone.sum(1)} <= set(space.counts)
        return met and gone.any() and bool((gone == gone[:, :1]).all())
    return len(set(gone.ravel().tolist())) == 1 and int(gone[0].sum()) in space.counts


@given(spaces, rngs)
def test_operators_take_as_many_from_every_layer_and_group(space, rng):
    a, b = space.random(rng), space.random(rng)
    for genome in (a, b, space.mutate(a, rng), space.crossover(a, b, rng)):
        assert within(space, genome) and all(type(gene) is int for gene in genome)
        assert space.removed(genome) == sum(map(int, space.features(genome)))
    assert space.each is None or space.mutate(a, rng) != a


@given(spaces, rngs)
def test_a_swap_changes_one_expert_of_one_layer_for_one_of_its_group(space, rng):
    a = space.random(rng)
    b = space.mutate(a, rng)
    if sum(a) == sum(b) and not space.per_layer:
        assert sum(x != y for x, y in zip(a, b, strict=True)) == 2
        assert (counts(space, a) == counts(space, b)).all()


def test_a_genome_names_the_experts_that_stay():
    space = SPACES[0]
    specs = space.decode((1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    assert len(specs) == 4 and specs[0].blends is None and specs[3].blends is None and specs[2].blends is None
    assert [blend[0][0] for blend in specs[1].blends] == [1, 2, 3, 4]
    assert all(spec.plain for spec in space.decode(space.dense()))
    with pytest.raises(InvalidRecipe, match="takes experts out of layers, and no layer"):
        space.from_removed([1])


def test_everything_is_listed_once_and_counted():
    assert SPACES[0].count() == comb(6, 2) ** 2 == len(set(SPACES[0].enumerate()))
    assert SPACES[3].count() == 3**4 == len(set(SPACES[3].enumerate()))
    assert all(within(SPACES[3], genome) for genome in SPACES[3].enumerate())


def test_the_least_worth_goes_and_comes_back_last():
    space = SPACES[1]
    assert space.least(WORTH, 2) == (0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0)
    grouped = ExpertSpace(3, mixture(2), 2)
    assert grouped.least(WORTH) == (0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0)


def test_numbers_that_differ_are_listed_once_and_no_token_goes_to_fewer_experts():
    space = ExpertSpace(4, mixture(experts=4), 1, per_layer=True)
    assert space.counts == (0, 1, 2) and space.count() == 4 * 4 + 2 * comb(4, 2) == len(set(space.enumerate()))
    assert all(within(space, genome) for genome in space.enumerate())
    assert ExpertSpace(4, mixture(experts=4, chosen=3), 2, per_layer=True).counts == (0, 1, 2)
    grouped = ExpertSpace(3, mixture(2), 2, per_layer=True)
    assert grouped.counts == (0, 2) and grouped.count() == 3**4 == len(set(grouped.enumerate()))
    free = ExpertSpace(4, mixture(experts=3), None, per_layer=True)
    assert free.count() == 7 * 7 - 1 == len(set(free.enumerate()))


def test_the_least_worth_of_all_layers_goes_where_numbers_may_differ():
    worth = ((0.1, 0.1, 0.1, 0.3, 0.3, 0.1), (0.2, 0.2, 0.2, 0.15, 0.15, 0.1))
    space = ExpertSpace(4, mixture(), 2, per_layer=True)
    assert space.cheapest(worth) == (1, 1, 1, 0, 0, 1, *(0,) * 6) and space.counts[-1] == 4
    assert counts(space, ExpertSpace(4, mixture(), 3, per_layer=True).cheapest(worth)).tolist() == [[4], [2]]


def test_single_removals_are_offered_until_the_budget_is_met():
    space = SPACES[0]
    first = space.removals(space.dense())
    assert len(first) == 12 and all(sum(genome) == 1 for genome in first)
    assert space.removals(space.least(WORTH)) == []
    # Of every group one goes, all but one of them the least.
    grouped = ExpertSpace(3, mixture(2), 2, WORTH)
    first = grouped.removals(grouped.dense())
    assert len(first) == 2 * (3 + 3 - 1) and all(counts(grouped, g).sum(0).tolist() == [1, 1] for g in first)
    assert Experts().pieces(Facts(4, 2, mixture=mixture())) == (12, 4)
    assert Experts().pieces(Facts(3, 2, mixture=mixture(2))) == (12, 2)


def wanted(**changes):
    return Recipe.of(**{"base": "m", "method": "experts", **changes})


def test_a_ratio_is_the_nearest_number_of_experts_of_every_layer():
    sizes = Sizes((700,) * 4, 3000, mixture())
    target = Experts().target(wanted(ratio=0.2), sizes)
    # An expert of both layers is 200 of 3000 parameters.
    assert (target.remove, round(target.removed_ratio, 6), target.whole) == (3, 0.2, False)
    assert target.goal == "remove 3 of 6 experts of 2 layers" and abs(target.miss) < 1e-9
    low = Experts().target(wanted(ratio=0.33), sizes)
    assert low.goal.endswith("2 layers (a token then goes to 1 experts, not 2: no more are left)")
    assert Experts().target(wanted(ratio=0.2), Sizes((700,) * 4, 3000, mixture(2))).remove == 2
    with pytest.raises(InvalidRecipe, match="ratio 0.9 means 13.5 of the 6 experts of 2 layers, and 1 to 5 can go"):
        Experts().target(wanted(ratio=0.9), sizes)
    with pytest.raises(InvalidRecipe, match="no experts; choose --method collapse"):
        Experts().target(wanted(ratio=0.2), Sizes((700,) * 4, 3000))


DISTANCES = (tuple(np.abs(np.subtract.outer(range(6), (0, 1, 2, 3, 4, 5.1))).ravel().tolist()),) * 2
FREQUENCY = ((0.1, 0.2, 0.3, 0.1, 0.2, 0.1), (0.1, 0.2, 0.3, 0.1, 0.2, 0.0))
MERGING = [MergingSpace(space, DISTANCES, FREQUENCY) for space in SPACES]


@given(st.sampled_from(MERGING), rngs)
def test_merging_changes_what_layers_are_made_of_and_not_their_size(space, rng):
    a, b = space.random(rng), space.random(rng)
    for genome in (a, b, space.mutate(a, rng), space.crossover(a, b, rng)):
        assert within(space.plain, genome[:-2]) and all(type(gene) is int for gene in genome)
        specs, plain = space.decode(genome), space.plain.decode(genome[:-2])
        assert [s.blends and [blend[0][0] for blend in s.blends] for s in specs] == [
            s.blends and [blend[0][0] for blend in s.blends] for s in plain
        ]
        for layer, merges in zip(space.plain.mixture.layers, genome[-2:], strict=True):
            members = sorted(e for blend in specs[layer].blends or () for e, _ in blend)
            if specs[layer].blends:
                assert (members == list(range(6))) == bool(merges) and specs[layer] == specs[layer].canonical()
                assert all(sum(w for _, w in blend) == pytest.approx(1) for blend in specs[layer].blends)
    assert space.mutate(a, rng) != a or space.plain.each is None


def test_what_goes_is_merged_into_the_nearest_of_its_group_by_how_often_each_was_chosen():
    space = MERGING[0]
    specs = space.decode((0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0))
    assert [[e for e, _ in blend] for blend in specs[1].blends] == [[0, 1], [2], [3], [4, 5]]
    assert [w for _, w in specs[1].blends[0]] == pytest.approx([1 / 3, 2 / 3])
    assert specs[2].blends == tuple(((e, 1.0),) for e in (0, 1, 2, 5))
    grouped = MergingSpace(ExpertSpace(3, mixture(2), 2), DISTANCES, FREQUENCY)
    left = grouped.decode((0, 0, 1, 1, 0, 0) * 2 + (1, 1))[1].blends
    assert [[e for e, _ in blend] for blend in left] == [[0], [1, 2], [4, 3], [5]]
    assert len(set(grouped.enumerate())) == grouped.count()


@pytest.mark.parametrize("space", [s for s in SPACES if s.each])
def test_greedy_ends_after_as_many_rounds_as_the_plan_counts(space):
    facts = Facts(space.depth, space.each, mixture=space.mixture)
    asked = wanted(search="greedy", per_layer=space.per_layer)
    genome, rounds = space.dense(), []
    while found := space.removals(genome):
        rounds.append(len(found))
        genome = found[len(found) // 2]
    assert len(rounds) == Experts().pieces(facts)[1] and within(space, genome)
    assert sum(rounds) <= evaluations(asked, facts) == sum(12 - n for n in range(len(rounds)))


def test_a_reach_that_would_do_nothing_is_refused():
    wanted(ratio=0.2, repair=True)
    for reach in ("map", "gap"):
        with pytest.raises(InvalidRecipe, match=f"reach {reach} refits .* leaves all of them; write --reach all"):
            wanted(ratio=0.2, repair=True, reach=reach)


@pytest.mark.parametrize("size", [{"keep_layers": 3}, {"drop_layers": 1}, {"latency": 0.5}, {"drop": ["1"]}])
def test_sizes_in_layers_or_time_are_refused(size):
    with pytest.raises(InvalidRecipe, match="takes out experts|removes experts"):
        wanted(**size)


def test_it_is_compared_with_every_score_and_starts_from_them():
    tables = {name: WORTH for name in BASELINES if name != "random_experts"}
    tables["frequency"] = tuple(tuple(reversed(row)) for row in WORTH)
    facts = Facts(4, 2, mixture=mixture(), scores=tables)
    method, recipe = Experts(), wanted(ratio=0.2)
    space = method.space(recipe, facts)
    played = {c.name: c.layers({}) for c in method.comparisons(recipe, facts)}
    assert set(played) == set(BASELINES) and played["reap"] == space.decode(space.least(WORTH))
    assert method.starts(space, facts, ()) == (space.least(WORTH), space.least(tables["frequency"]))
    guess = method.guess(space, facts)
    assert guess(space.dense()) < guess(space.least(WORTH)) < guess((1,) * 12)
    assert method.comparisons(recipe, Facts(4, 0, front=True, mixture=mixture())) == ()
