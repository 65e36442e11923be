"""stitch: sets of layers and convex mixes, and moves that stay among them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.assembly.merge import check_merge
from hf_prune.blueprint import Blueprint, LayerSpec, Mix, Part, Source
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.stitch import StitchSpace

EVERY = ("linear", "task-arithmetic:2", "slerp", "ties:0.5", "dare:0.5:3", "dare-ties:0.25", "passthrough:0.8")
SPACES = [
    StitchSpace(6, 2, 3),
    StitchSpace(6, 2, 3, EVERY, steps=4),
    StitchSpace(5, 2, 2, ("linear",), halves=True),
    StitchSpace(6, 3, 4, ("linear",), blend=False),
    StitchSpace(5, None, 3, EVERY, embed_of=(0, 0, 2), head_of=(0, 1, 2)),
    StitchSpace(4, 0, 2),
    StitchSpace(4, 1, 2, steps=2),
]
spaces = st.sampled_from(SPACES)
rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def fits(space, genome):
    """Every promise of a genome, from what it decodes to."""
    stack = space.decode(genome)
    layers = [s.anchor.layer for s in stack.layers]
    assert layers == sorted(set(layers)) and layers and space.removed(genome) == space.depth - len(layers)
    assert space.budget is None or space.removed(genome) == space.budget
    assert stack.embed in space.embeds and stack.head in space.heads
    assert space.read(space.coded(genome)) == genome
    assert all(0 <= g < n for g, n in zip(space.coded(genome), space.cardinalities, strict=True))
    assert all(sum(mix[1:]) == space.steps for gene in space.genes(genome) for mix in gene.mixes)
    for spec in stack.layers:
        assert spec == spec.canonical()
        for mix in (Mix(spec.parts, spec.merge), *([spec.mlp] if spec.mlp else [])):
            check_merge(mix.merge, len(mix.parts))
            assert {p.layer for p in mix.parts} == {spec.anchor.layer}
            if mix.merge == "linear":
                assert sum(p.weight for p in mix.parts) == pytest.approx(1)
            if not space.blend:
                assert len(mix.parts) == 1
    sources = tuple(Source(f"m{k}", "0") for k in range(space.parents))
    Blueprint(sources, *stack).check()
    return True


@given(spaces, rngs)
def test_every_operator_stays_in_the_space(space, rng):
    a, b = space.random(rng), space.random(rng)
    assert fits(space, a) and fits(space, b) and fits(space, space.crossover(a, b, rng))
    for _ in range(5):
        a = space.mutate(a, rng)
        assert fits(space, a)


@given(spaces, rngs)
def test_a_move_changes_one_layer_or_swaps_two_or_does_the_same_to_all(space, rng):
    genome = space.random(rng)
    moved = space.mutate(genome, rng)
    assert moved == genome or space.decode(moved) != space.decode(genome)
    before, after = ({s.anchor.layer: s for s in space.decode(g).layers} for g in (genome, moved))
    changed = [i for i in range(space.depth) if before.get(i) != after.get(i)]
    if len(changed) <= 2:
        return
    pairs = list(zip(*(space.genes(g) for g in (genome, moved)), strict=True))
    assert all(old.kept == new.kept for old, new in pairs)
    mixes = [pair for old, new in pairs if new.kept for pair in zip(old.mixes, new.mixes, strict=True)]
    shifts = [np.subtract(new, old) for old, new in mixes]
    leaned = {(shift.argmin(), shift.argmax()) for shift in shifts if shift.any()}
    lost = {shift.min() for (old, _), shift in zip(mixes, shifts, strict=True) if old[shift.argmin()] + shift.min()}
    spread = len({new.mixes for _, new in pairs if new.kept}) == 1
    assert spread or len(leaned) == 1 and len(lost - {0}) <= 1 and all(abs(s).sum() == -2 * s.min() for s in shifts)


@given(spaces, st.integers(0, 2**32 - 1))
def test_any_code_is_a_genome_and_a_genomes_code_is_read_back(space, seed):
    rng = np.random.default_rng(seed)
    code = tuple(int(rng.integers(n)) for n in space.cardinalities)
    genome = space.read(code)
    if space.removed(genome):
        assert fits(space, genome)
    assert space.read(space.coded(genome)) == genome


@given(spaces, rngs)
def test_a_child_has_every_layer_from_one_of_its_parents(space, rng):
    a, b = space.random(rng), space.random(rng)
    child = space.crossover(a, b, rng)
    for mine, first, second in zip(*(space.genes(g) for g in (child, a, b)), strict=True):
        assert mine.mixes in (first.mixes, second.mixes)


@pytest.mark.parametrize(
    ("merge", "steps", "mix"),
    [
        ("linear", (4, 0, 0), Mix((Part(0, 3),))),
        ("linear", (1, 1, 2), Mix((Part(0, 3, 0.25), Part(1, 3, 0.25), Part(2, 3, 0.5)))),
        ("task-arithmetic:2", (2, 1, 1), Mix((Part(0, 3, 0.0), Part(1, 3, 0.5), Part(2, 3, 0.5)))),
        ("task-arithmetic:2", (0, 4, 0), Mix((Part(1, 3),))),
        ("slerp", (1, 3, 0), Mix((Part(0, 3, 0.25), Part(1, 3, 0.75)), "slerp")),
        ("slerp", (1, 1, 2), Mix((Part(0, 3, 0.25), Part(1, 3, 0.25), Part(2, 3, 0.5)))),
        ("ties:0.5", (0, 1, 3), Mix((Part(0, 3), Part(1, 3, 0.25), Part(2, 3, 0.75)), "ties:0.5")),
        ("passthrough:0.8", (0, 4, 0), Mix((Part(1, 3, 0.8),), "passthrough")),
        ("passthrough:0.8", (2, 2, 0), Mix((Part(0, 3, 0.5), Part(1, 3, 0.5)))),
    ],
)
def test_what_a_mix_means(merge, steps, mix):
    space = StitchSpace(6, 2, 3, EVERY, steps=4)
    assert space._mixed(3, (EVERY.index(merge), *steps)) == mix


def test_attention_and_mlp_may_differ_and_equal_ones_are_one():
    space = StitchSpace(3, 1, 2, ("linear",), halves=True, steps=4)
    genes = space.genes(space.of((1,), [1, 0]))
    assert space.decode(space.genome(genes)).layers == (LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 2),)))
    genome = list(space.genome(genes))
    genome[4:7] = [0, 0, 4]
    (first, _) = space.decode(tuple(genome)).layers
    assert first == LayerSpec((Part(0, 0),), mlp=Mix((Part(1, 0),)))


@pytest.mark.parametrize(("shares", "steps"), [([1, 1, 1], (2, 1, 1)), ([0, 1, 1], (0, 2, 2)), ([0, 0, 5], (0, 0, 4))])
def test_shares_are_rounded_to_steps_that_add_up(shares, steps):
    space = StitchSpace(6, 2, 3, steps=4)
    assert {g.mixes[0][1:] for g in space.genes(space.of((1, 2), shares))} == {steps}
    assert [s.anchor.layer for s in space.decode(space.of((1, 2), shares)).layers] == [0, 3, 4, 5]


def test_one_parent_everywhere_has_its_own_ends_and_a_blend_those_of_its_first():
    space = StitchSpace(6, 2, 3, embed_of=(0, 0, 2), head_of=(0, 1, 1))
    assert space.embeds == (0, 2) and space.heads == (0, 1)
    ends = [space.decode(space.of((1, 2), shares))[1:] for shares in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1])]
    assert ends == [(0, 0), (0, 1), (2, 1), (0, 1)]


@pytest.mark.parametrize(
    "space", [StitchSpace(3, 1, 2), StitchSpace(3, None, 2, ("linear",), blend=False, head_of=(0, 1))]
)
def test_enumeration_lists_every_genome_once(space):
    listed = list(space.enumerate())
    assert len(listed) == len(set(listed)) == space.count()
    assert all(fits(space, g) for g in itertools.islice(listed, 200))


def test_removals_go_one_layer_at_a_time_and_stop_at_the_budget():
    space = StitchSpace(5, 2, 3)
    first = space.removals(space.dense())
    assert [space.removed(g) for g in first] == [1] * 5
    assert space.removals(space.of((0, 1), [1, 0, 0])) == []


@given(spaces, rngs)
def test_features_tell_models_apart(space, rng):
    a, b = space.random(rng), space.random(rng)
    assert space.features(a).shape == space.features(b).shape
    if space.decode(a) != space.decode(b):
        assert (space.features(a) != space.features(b)).any()


@pytest.mark.parametrize(("depth", "budget"), [(0, None), (4, -1), (4, 4)])
def test_a_budget_that_leaves_nothing_is_refused(depth, budget):
    with pytest.raises(InvalidRecipe):
        StitchSpace(depth, budget, 2)
