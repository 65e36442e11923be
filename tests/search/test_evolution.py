from itertools import chain

import numpy as np
import pytest

from hf_prune.blueprint import Fidelity
from hf_prune.search import SEARCHERS, Schedule
from tests.search.toy import FULL, Landscape, Removals, layer_passes, play

SPACE = Removals(16, 4)
SCREEN = Fidelity(2)


def schedule(evaluations=280, stages=(SCREEN, FULL), **changes):
    return Schedule(stages, evaluations, **changes)


def proposed(name, space, plan, seed=0):
    return SEARCHERS[name].propose(space, plan, np.random.default_rng(seed))


def cost(asked):
    """Layer passes, in units of full evidence, when the candidates of a batch share equal beginnings."""
    return sum(layer_passes(t.genome for t in batch) * batch[0].fidelity.sequences / FULL.sequences for batch in asked)


def found(name, land_seed, seed, space=SPACE, plan=None):
    """Whether the optimum of full evidence came back first, and the cost as a share of the shared enumeration's."""
    land = Landscape.draw(land_seed, depth=16, size=space.budget)
    every = list(space.enumerate())
    finalists, asked = play(proposed(name, space, plan or schedule(), seed), land.evaluate)
    return finalists[0].trial.genome == min(every, key=land.value), cost(asked) / layer_passes(every)


def test_staged_finds_the_optimum_of_1820_for_a_fifth_of_the_enumeration():
    hits, costs = zip(*(found("staged", n, 10 + n) for n in range(3)), strict=True)
    assert all(hits) and max(costs) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("land", [0, 1])
def test_staged_finds_the_optimum_in_nine_of_ten_seeds(land):
    hits, costs = zip(*(found("staged", land, seed) for seed in range(10)), strict=True)
    assert sum(hits) >= 9 and max(costs) < 0.2


@pytest.mark.slow
def test_staged_finds_the_optimum_of_8008():
    plan = schedule(600)
    hits, costs = zip(*(found("staged", n, n, Removals(16, 6), plan) for n in range(4)), strict=True)
    assert sum(hits) >= 3 and max(costs) < 0.2


@pytest.mark.slow
def test_staged_beats_evopress_and_random_at_the_cost_of_each():
    budgets = {"staged": schedule(), "evopress": schedule(380), "random": schedule(150)}
    hits, costs = {}, {}
    for name, plan in budgets.items():
        runs = [found(name, n % 3, n, plan=plan) for n in range(10)]
        hits[name], costs[name] = sum(r[0] for r in runs), max(r[1] for r in runs)
    assert hits["staged"] > hits["evopress"] > hits["random"]
    assert costs["staged"] <= min(costs.values()) * 1.1


def test_the_best_that_wait_at_a_stage_get_more_evidence():
    stages = (Fidelity(2), Fidelity(4), FULL)
    land = Landscape.draw(0)
    _, asked = play(proposed("staged", SPACE, schedule(200, stages)), land.evaluate)
    first, survey, *generations = asked
    assert {t.fidelity for t in first} == {FULL} and {SPACE.removed(t.genome) for t in survey} == {1}
    waiting, entered = {stage: set() for stage in stages}, {t.genome for t in first}
    for batch in generations:
        stage, genomes = batch[0].fidelity, {t.genome for t in batch}
        if stage != stages[0] and genomes & waiting[stages[stages.index(stage) - 1]]:
            before = stages[stages.index(stage) - 1]
            assert genomes == set(sorted(waiting[before], key=lambda g: land.value(g, before))[: len(batch)])  # noqa: B023
            waiting[before] -= genomes
        waiting[stage] |= genomes - entered


def test_what_cannot_win_gets_no_more_evidence():
    """A fixed half would be a third of all trials."""
    land = Landscape.draw(1, noise=0.0)
    _, asked = play(proposed("staged", SPACE, schedule(200)), land.evaluate)
    full = [t for batch in asked for t in batch if t.fidelity == FULL]
    assert len(full) < 0.3 * sum(map(len, asked))


def test_what_single_removals_cost_foretells_where_to_begin():
    """The dear layers at both ends are in no genome of the first generation."""
    land = Landscape.draw(2)
    _, asked = play(proposed("staged", SPACE, schedule(200)), land.evaluate)
    assert not any({0} & SPACE.gone(t.genome) for t in asked[2])


def test_a_screen_never_sees_a_genome_again():
    _, asked = play(proposed("staged", SPACE, schedule()), Landscape.draw(0).evaluate)
    screened = [t.genome for t in chain(*asked) if t.fidelity == SCREEN]
    assert len(set(screened)) == len(screened) > 100


def test_offspring_are_within_three_swaps_of_a_parent_that_was_scored_in_full():
    plan = schedule(120, stages=(FULL,), population=4, offspring=16)
    _, asked = play(proposed("evopress", SPACE, plan), Landscape.draw(0).evaluate)
    for number, batch in enumerate(asked[1:], 1):
        best = min((t.genome for t in chain(*asked[:number])), key=Landscape.draw(0).value)
        assert all(len(SPACE.gone(t.genome) - SPACE.gone(best)) <= 3 for t in batch)


def test_stagnation_restarts_from_random_genomes():
    """On a flat landscape nothing ever improves, so the proposals must leave the neighbourhood of the first parents."""
    drawn = []

    class Watched(Removals):
        def random(self, rng):
            drawn.append(genome := super().random(rng))
            return genome

    plan = schedule(300, stages=(FULL,), population=4, offspring=16)
    play(
        proposed("staged", Watched(16, 4), plan),
        lambda trials: [(1.0,)] * len(trials),
    )
    assert len(drawn) >= 16 + 3 * 4


def test_good_seeds_are_never_lost():
    land = Landscape.draw(0)
    best = min(SPACE.enumerate(), key=land.value)
    plan = schedule(64, seeds=(best,))
    finalists, _ = play(proposed("staged", SPACE, plan), land.evaluate)
    assert finalists[0].trial.genome == best
