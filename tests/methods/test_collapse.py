from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.collapse import CollapseSpace, rule_spec

DEPTH = 6
ALL = ("keep", "mean", "difference:0.5", "difference:1.0", "laco-released")
norms = st.sampled_from(["follow", "kept"])


def weights(spec: LayerSpec) -> dict[int, float]:
    return {p.layer: p.weight for p in spec.parts}


def removed_set(space: CollapseSpace, genome) -> tuple[int, ...]:
    return tuple(np.flatnonzero(space.features(genome)[: space.depth]).tolist())


@given(st.integers(2, 9), st.integers(0, 9), st.floats(-2, 2), norms)
def test_difference_is_its_formula(size, start, share, policy):
    """theta_b + share * sum(theta_{b+k} - theta_b), on random vectors."""
    theta = np.random.default_rng(0).normal(size=(start + size, 4))
    expected = theta[start] + share * (theta[start + 1 :] - theta[start]).sum(0)
    spec = rule_spec(f"difference:{share}", start, size, policy)
    np.testing.assert_allclose(sum(p.weight * theta[p.layer] for p in spec.parts), expected, atol=1e-9)
    assert sum(p.weight for p in spec.parts) == pytest.approx(1)


@given(norms, st.integers(0, 9))
def test_a_pair_by_the_papers_rule_is_the_deletion_of_its_first_layer(policy, start):
    assert rule_spec("difference:1.0", start, 2, policy) == LayerSpec((Part(0, start + 1),))


@given(norms, st.integers(2, 5))
def test_lambda_zero_is_the_deletion_of_all_but_the_first_layer(policy, size):
    assert rule_spec("difference:0.0", 3, size, policy) == LayerSpec((Part(0, 3),))


def test_rules_by_hand():
    assert weights(rule_spec("difference:1.0", 4, 3, "follow")) == {4: -1, 5: 1, 6: 1}
    assert weights(rule_spec("difference:0.5", 4, 3, "follow")) == {5: 0.5, 6: 0.5}
    assert weights(rule_spec("mean", 4, 4, "follow")) == {4: 0.25, 5: 0.25, 6: 0.25, 7: 0.25}


@pytest.mark.parametrize("rule, anchor", [("mean", 4), ("difference:1.0", 5), ("difference:0.5", 5)])
def test_kept_norms_are_those_of_the_heaviest_layer(rule, anchor):
    assert rule_spec(rule, 4, 3, "follow").norms is None
    assert rule_spec(rule, 4, 3, "kept").norms == Part(0, anchor)


@given(norms)
def test_laco_released_has_the_last_projections_and_the_first_norms(policy):
    assert rule_spec("laco-released", 4, 3, policy, 1) == LayerSpec((Part(1, 6),), norms=Part(1, 4))


def test_a_genome_by_hand():
    space = CollapseSpace(5, None, ALL, "follow")
    # groups 0-1 (keep the second), 2 alone (its gene is dead), 3-4 (mean: the first gene behind the 5 offsets)
    specs = space.decode((0, 1, 1, 0) + (1, 9, 7, 5, 9))
    assert specs == (LayerSpec((Part(0, 1),)), LayerSpec((Part(0, 2),)), LayerSpec((Part(0, 3, 0.5), Part(0, 4, 0.5))))


def test_an_offset_beyond_the_group_keeps_its_last_layer():
    space = CollapseSpace(4)
    assert space.decode((0, 1, 1) + (3, 0, 0, 0)) == space.decode((0, 1, 1) + (1, 0, 0, 0))


@pytest.mark.parametrize("n", range(DEPTH))
def test_enumerate_gives_the_removal_sets_in_order(n):
    space = CollapseSpace(DEPTH, n)
    assert [removed_set(space, g) for g in space.enumerate()] == list(combinations(range(DEPTH), n))
    assert space.count() == comb(DEPTH, n)


def test_enumerate_in_a_free_budget_leaves_out_dense_and_empty():
    space = CollapseSpace(5)
    assert len(list(space.enumerate())) == space.count() == 2**5 - 2


def test_merging_rules_follow_all_deletions():
    space = CollapseSpace(DEPTH, 2, ALL)
    genomes = list(space.enumerate())
    plain = [all(s.plain for s in space.decode(g)) for g in genomes]
    assert plain == [True] * comb(DEPTH, 2) + [False] * (len(genomes) - comb(DEPTH, 2))
    assert len(genomes) > comb(DEPTH, 2)


def test_random_removal_sets_are_uniform():
    space, rng, draws = CollapseSpace(DEPTH, 2), np.random.default_rng(1), 6000
    seen = Counter(removed_set(space, space.random(rng)) for _ in range(draws))
    expected = draws / comb(DEPTH, 2)
    assert sum((seen[c] - expected) ** 2 / expected for c in combinations(range(DEPTH), 2)) < 40  # chi2, 14 d.o.f.


def test_random_models_are_mostly_deletions():
    space, rng = CollapseSpace(DEPTH, 2, ALL), np.random.default_rng(1)
    plain = [all(s.plain for s in space.decode(space.random(rng))) for _ in range(1000)]
    assert 0.5 < np.mean(plain) < 0.9


@pytest.mark.parametrize("n", range(1, DEPTH))
def test_one_mutation_reaches_exactly_the_sets_one_swap_away(n):
    space, rng = CollapseSpace(DEPTH, n), np.random.default_rng(0)
    start = set(range(n))
    reached = {removed_set(space, space.mutate(space.from_removed(start), rng)) for _ in range(600)}
    assert reached == {c for c in combinations(range(DEPTH), n) if len(start - set(c)) == 1}


@given(st.integers(0, 2**32 - 1))
def test_crossover_keeps_what_both_parents_keep(seed):
    space, rng = CollapseSpace(10, 4), np.random.default_rng(seed)
    a, b = space.random(rng), space.random(rng)
    child = set(removed_set(space, space.crossover(a, b, rng)))
    of_a, of_b = set(removed_set(space, a)), set(removed_set(space, b))
    assert of_a & of_b <= child <= of_a | of_b


def test_crossover_passes_rules_on():
    space = CollapseSpace(8, 2, ("keep", "mean"), "follow")
    rng = np.random.default_rng(0)
    a = (0, 1, 1, 1, 1, 1, 0) + (8, 0, 0, 0, 0, 0, 8, 0)  # 0-1 and 6-7 merged
    b = space.from_removed([3, 4])
    kinds = Counter(sum(len(s.parts) > 1 for s in space.decode(space.crossover(a, b, rng))) for _ in range(300))
    assert kinds[0] and kinds[1] and kinds[2]


@pytest.mark.parametrize("rules", [("keep-first",), ("keep-last",), ("mean",), ("keep-first", "mean")])
def test_operators_propose_only_the_rules_asked_for(rules):
    space = CollapseSpace(DEPTH, 3, rules, "follow")
    allowed = {space.decode(g) for g in space.enumerate()}
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = space.random(rng), space.mutate(space.from_removed(range(3)), rng)
        assert {space.decode(g) for g in (a, b, space.crossover(a, b, rng))} <= allowed


def test_greedy_over_one_rule_keeps_that_rule():
    space = CollapseSpace(4, 1, ("keep-last",))
    assert [removed_set(space, g) for g in space.removals(space.dense())] == [(0,), (1,), (2,)]
    space = CollapseSpace(4, 1, ("mean",), "follow")
    assert [len(space.decode(g)[i].parts) for i, g in enumerate(space.removals(space.dense()))] == [2, 2, 2]


def test_greedy_with_merging_rules_deletes_every_layer_once():
    space = CollapseSpace(DEPTH, 2, ALL)
    assert [removed_set(space, g) for g in space.removals(space.from_removed([2]))] == [
        (0, 2), (1, 2), (2, 3), (2, 4), (2, 5)
    ]  # fmt: skip


@given(st.lists(st.integers(0, 1), min_size=DEPTH, max_size=DEPTH), st.integers(0, 2**32 - 1))
def test_layers_of_two_kinds_are_never_merged_and_the_rest_is_as_it_was(kinds, seed):
    space, free = (CollapseSpace(DEPTH, 3, ALL, "follow", k) for k in (tuple(kinds), ()))
    genome = free.random(np.random.default_rng(seed))
    for own, other, group in zip(space.decode(genome), free.decode(genome), space.groups(genome), strict=True):
        mixed = len(set(kinds[group.start : group.stop])) > 1
        assert len({kinds[p.layer] for p in own.parts}) == 1
        assert own == (LayerSpec((Part(0, group.layer),)) if mixed else other)


def test_no_rules_is_refused():
    with pytest.raises(InvalidRecipe, match="rules is empty"):
        CollapseSpace(4, 1, ())


def test_features_tell_removed_from_merged():
    space = CollapseSpace(4, 2, ("keep", "mean"))
    assert space.features((0, 0, 1) + (4, 0, 0, 0)).tolist() == [0, 1, 1, 0, 1, 1, 1, 0]
