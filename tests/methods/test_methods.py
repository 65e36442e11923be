"""What every space promises a searcher, whatever its integers mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.blueprint import GONE, Blueprint, Source
from hf_prune.errors import InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.methods.blocks import BlockSpace
from hf_prune.methods.collapse import CollapseSpace
from hf_prune.methods.experts import ExpertSpace
from hf_prune.methods.halves import HalvesSpace
from hf_prune.methods.intervals import IntervalSpace
from hf_prune.methods.method import Facts
from hf_prune.methods.stitch import StitchSpace
from hf_prune.methods.width import WidthSpace
from hf_prune.recipe import Recipe

RULES = ("keep", "mean", "difference:0.5", "difference:1.0", "laco-released")
SPACES = [
    CollapseSpace(6, 2),
    CollapseSpace(6, 3, RULES),
    CollapseSpace(6, 3, RULES, "follow"),
    CollapseSpace(6, None, RULES),
    CollapseSpace(6, 2, ("keep-first", "keep-last")),
    CollapseSpace(6, 3, ("mean",)),
    CollapseSpace(6, 0),
    CollapseSpace(6, 5),
    CollapseSpace(1),
    HalvesSpace(5, 4),
    HalvesSpace(5, 5),
    HalvesSpace(5, 8),
    HalvesSpace(5, 3, balanced=False),
    HalvesSpace(4, 7, balanced=False),
    HalvesSpace(4),
    IntervalSpace(6, 3),
    IntervalSpace(6),
    IntervalSpace(6, 2, norms="kept"),
]
ENUMERATED = {space: {space.decode(g) for g in space.enumerate()} for space in SPACES}
DENSE = {space: space.decode(space.dense()) for space in SPACES}

spaces = st.sampled_from(SPACES)
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@st.composite
def space_and_integers(draw):
    space = draw(spaces)
    integers = st.integers(-3, 3 * space.depth)
    return space, tuple(draw(st.lists(integers, min_size=(n := len(space.dense())), max_size=n)))


def within_budget(space, genome) -> bool:
    """The budget is met, by its own count and by what is decoded."""
    specs = space.decode(genome)
    if isinstance(space, HalvesSpace):
        left = sum((s.attn_level != GONE) + (s.mlp_level != GONE) for s in specs)
        removed = 2 * space.depth - left
    else:
        removed = space.depth - len(specs)
    return space.removed(genome) == removed and (space.budget is None or removed == space.budget) and len(specs) > 0


def test_every_method_is_tested():
    # These have files of their own: StitchSpace decodes to a stack of several parents, WidthSpace has a budget of cost,
    # ExpertSpace of experts, and BlockSpace needs no repair.
    used = {type(method.space(Recipe.of(base="m"), Facts(6, 2))) for method in METHODS.values()}
    assert {type(space) for space in SPACES} | {StitchSpace, WidthSpace, BlockSpace, ExpertSpace} == used


@given(space_and_integers())
def test_every_genome_decodes_to_layers_that_exist_in_order(case):
    space, genome = case
    specs = space.decode(genome)
    assert all(spec == spec.canonical() for spec in specs)
    first = [min(p.layer for p in spec.parts) for spec in specs]
    assert first == sorted(set(first)) and len(specs) >= 1
    assert max(p.layer for spec in specs for p in spec.parts) < space.depth
    Blueprint((Source("ns/base", "0"),), specs).check()


@given(space_and_integers())
def test_the_coefficients_of_every_layer_add_up_to_one(case):
    space, genome = case
    for spec in space.decode(genome):
        assert sum(p.weight for p in spec.parts) == pytest.approx(1, abs=1e-9)
        assert spec.norms is None or spec.norms.weight == 1


@given(space_and_integers(), st.integers(1, 3))
def test_source_moves_every_part_and_nothing_else(case, source):
    space, genome = case
    moved = Blueprint((Source("a", "0"),) * 4, space.decode(genome, source))
    assert moved.canonical().layers == Blueprint((Source("a", "0"),), space.decode(genome)).canonical().layers
    assert {p.source for spec in moved.layers for p in spec.parts} == {source}


@given(space_and_integers(), rngs)
def test_repair_keeps_the_budget_and_does_nothing_twice(case, rng):
    space, genome = case
    repaired = space.repair(genome, rng)
    assert within_budget(space, repaired)
    assert space.decode(space.repair(repaired, rng)) == space.decode(repaired)


@given(spaces, rngs)
def test_random_mutate_and_crossover_stay_among_the_models_of_the_budget(space, rng):
    a, b = space.random(rng), space.random(rng)
    for genome in (a, b, space.mutate(a, rng), space.crossover(a, b, rng), space.mutate(space.dense(), rng)):
        assert all(type(gene) is int for gene in genome) and len(genome) == len(a)
    for genome in (a, b, space.mutate(a, rng), space.crossover(a, b, rng)):
        assert within_budget(space, genome)
        assert space.decode(genome) in ENUMERATED[space] | {DENSE[space]}


@given(space_and_integers(), st.integers(0, 99))
def test_operators_are_functions_of_their_generator(case, seed):
    space, genome = case

    def run():
        rng = np.random.default_rng(seed)
        a = space.random(rng)
        return a, space.mutate(a, rng), space.crossover(a, genome, rng), space.repair(genome, rng)

    assert run() == run()


@given(spaces, rngs)
def test_crossover_of_a_genome_with_itself_is_itself(space, rng):
    genome = space.random(rng)
    assert space.decode(space.crossover(genome, genome, rng)) == space.decode(genome)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_enumerate_lists_every_model_once(space):
    genomes = list(space.enumerate())
    assert len(ENUMERATED[space]) == len(genomes) <= space.count()
    assert all(within_budget(space, g) for g in genomes)
    exact = isinstance(space, HalvesSpace) or (isinstance(space, CollapseSpace) and space.rules == ("keep",))
    assert len(genomes) == space.count() or not exact


@pytest.mark.parametrize("space", [s for s in SPACES if s.budget is not None], ids=str)
def test_random_and_mutate_reach_every_model(space):
    """Deletions all; models of several merges are rare on purpose, so of those nearly all."""
    rng, every = np.random.default_rng(0), ENUMERATED[space]
    plain = {specs for specs in every if all(len(s.parts) == 1 and s.norms is None for s in specs)}
    drawn, walked, genome = set(), set(), space.random(rng)
    for _ in range(50 * len(every)):
        drawn.add(space.decode(space.random(rng)))
        walked.add(space.decode(genome))
        genome = space.mutate(genome, rng)
    for reached in (drawn, walked):
        assert plain <= reached <= every
        assert len(reached) > 0.9 * len(every)


@pytest.mark.parametrize("space", [s for s in SPACES if s.budget is None and s.depth > 1], ids=str)
def test_a_free_budget_visits_every_size(space):
    rng = np.random.default_rng(0)
    genome, walked, drawn = space.dense(), set(), set()
    for _ in range(1500):
        genome = space.mutate(genome, rng)
        walked.add(space.removed(genome))
        drawn.add(space.removed(space.random(rng)))
    every = {space.removed(g) for g in space.enumerate()}
    assert drawn >= every - {min(every)} and walked >= every


@given(spaces, rngs)
def test_removals_take_one_unit_more_until_the_budget_is_met(space, rng):
    genome = space.dense()
    assert space.removed(genome) == 0
    while options := space.removals(genome):
        assert len({space.decode(g) for g in options}) == len(options)
        assert {space.removed(g) for g in options} == {space.removed(genome) + 1}
        genome = options[int(rng.integers(len(options)))]
    if space.budget is not None:
        assert within_budget(space, genome)
    else:
        assert not set(map(space.removed, space.enumerate())) - set(range(space.removed(genome) + 1))


@given(spaces, st.data())
def test_from_removed_decodes_to_exactly_the_other_layers(space, data):
    last = isinstance(space, IntervalSpace) or space.depth == 1
    layers = data.draw(st.sets(st.integers(0, max(space.depth - 1 - last, 0)), max_size=space.depth - 1))
    specs = space.decode(space.from_removed(layers))
    assert all(spec.plain for spec in specs)
    assert [spec.parts[0].layer for spec in specs] == [i for i in range(space.depth) if i not in layers]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_removing_everything_or_what_is_not_there_is_refused(space):
    with pytest.raises(InvalidRecipe, match="leave at least one"):
        space.from_removed(range(space.depth))
    with pytest.raises(InvalidRecipe, match=f"Layer {space.depth} "):
        space.from_removed([space.depth])


@pytest.mark.parametrize("kind", sorted({type(s) for s in SPACES} | {StitchSpace, BlockSpace}, key=str))
@pytest.mark.parametrize("depth, budget", [(0, None), (4, -1), (4, 8)])
def test_a_budget_that_leaves_nothing_is_refused(kind, depth, budget):
    with pytest.raises(InvalidRecipe):
        kind(depth, budget)


@given(spaces, rngs)
@settings(max_examples=50)
def test_features_are_equal_for_equal_models_and_zero_for_the_dense_one(space, rng):
    genome = space.random(rng)
    again = next((g for g in space.enumerate() if space.decode(g) == space.decode(genome)), genome)
    features = space.features(genome)
    assert features.shape == (2 * space.depth,) and set(features) <= {0.0, 1.0}
    assert features.tolist() == space.features(again).tolist()
    assert not space.features(space.dense()).any()
