import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.intervals import IntervalSpace, nestings

DEPTH = 7
genomes = st.lists(st.integers(0, DEPTH - 1), min_size=3 * DEPTH, max_size=3 * DEPTH).map(tuple)


def by_matrices(genome, depth: int) -> np.ndarray:
    """The affine rows by brute force: each interval is a matrix applied to the current rows, through a layer map."""
    rows, place = np.eye(depth), np.arange(depth)
    for begin, end, active in np.reshape(genome, (-1, 3)):
        if active % 2 and begin < end and place[begin] < place[end]:
            first, last = place[begin], place[end]
            step = np.zeros((len(rows) - (last - first), len(rows)))
            for new in range(len(step)):
                step[new, new if new <= first else new + last - first] = 1
            step[first, first] = 1 - (last - first)
            step[first, first + 1 : last + 1] = 1
            rows = step @ rows
            place = np.where(place > last, place - (last - first), np.minimum(place, first))
    return rows


@given(genomes)
def test_overlapping_intervals_are_their_affine_rows(genome):
    space = IntervalSpace(DEPTH)
    found = np.zeros((len(specs := space.decode(genome)), DEPTH))
    for row, spec in zip(found, specs, strict=True):
        row[[p.layer for p in spec.parts]] = [p.weight for p in spec.parts]
    np.testing.assert_array_equal(found, by_matrices(genome, DEPTH))
    assert (found.sum(1) == 1).all()


def test_intervals_by_hand():
    space = IntervalSpace(5)
    layers = space.decode(space.genome([(0, 2, True), (2, 3, True), (4, 3, True), (3, 4, False)]))
    # 0-2 is -t0 + t1 + t2; the pair with 3 is then layer 3 alone; a backward and an inactive triple do nothing.
    assert layers == (LayerSpec((Part(0, 3),)), LayerSpec((Part(0, 4),)))
    layers = space.decode(space.genome([(2, 3, True), (0, 2, True)]))
    assert [(p.layer, p.weight) for p in layers[0].parts] == [(0, -1), (1, 1), (3, 1)]


def test_kept_norms_come_from_the_heaviest_layer():
    space = IntervalSpace(3, norms="kept")
    assert space.decode(space.genome([(0, 2, True)]))[0].norms == Part(0, 1)
    assert space.decode(space.genome([(0, 1, True)]))[0] == LayerSpec((Part(0, 1),))


def test_random_genomes_remove_most_layers():
    """The paper's finding: 83 % on average, and 0.25 % of random genomes remove at most a quarter."""
    rng = np.random.default_rng(0)
    shares = {depth: [_share(IntervalSpace(depth), rng) for _ in range(1500)] for depth in (28, 32)}
    assert np.mean(shares[28]) == pytest.approx(0.83, abs=0.015)
    assert np.mean(shares[32]) == pytest.approx(0.85, abs=0.015)
    assert np.mean(np.array(shares[32]) <= 0.25) < 0.01


def _share(space: IntervalSpace, rng: np.random.Generator) -> float:
    return space.removed(space.random(rng)) / space.depth


def test_the_last_layer_cannot_be_deleted():
    with pytest.raises(InvalidRecipe, match="cannot delete the last layer"):
        IntervalSpace(4).from_removed([3])


def test_nestings_of_three_layers():
    # ((0 1) 2) and (0 (1 2)) are both layer 2.
    assert {row for row, _ in nestings(3)} == {(0, 0, 1), (-1, 1, 1)}


@given(genomes)
def test_every_model_of_a_genome_is_a_nesting(genome):
    for _, row in IntervalSpace(DEPTH).rows(genome):
        assert row in {r for r, _ in nestings(len(row))}


@given(genomes, st.integers(0, DEPTH - 1), st.integers(0, 9))
def test_repair_keeps_a_genome_that_is_within_the_budget(genome, budget, seed):
    space, rng = IntervalSpace(DEPTH, budget), np.random.default_rng(seed)
    repaired = space.repair(genome, rng)
    assert space.removed(repaired) == budget
    assert space.repair(repaired, rng) == repaired


def test_mutation_changes_at_most_one_number():
    space, rng = IntervalSpace(DEPTH), np.random.default_rng(0)
    genome = space.random(rng)
    for _ in range(100):
        new = space.mutate(genome, rng)
        assert np.not_equal(new, genome).sum() <= 1
        genome = new
