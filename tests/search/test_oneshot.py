import numpy as np
import pytest

from hf_prune.errors import InvalidRecipe
from hf_prune.search import SEARCHERS, Schedule, Scores
from tests.search.toy import FULL, Landscape, Removals, play

SPACE = Removals(6, 2)
INFLUENCE = (0.9, 0.2, 0.5, 0.1, 0.2, 0.8)
DISTANCE = ((0.9, 0.9, 0.9, 0.9, 0.9, 0.9), (0.1, 0.5, 0.6, 0.7, 0.8), (0.3, 0.4, 0.5, 0.6), (0.2, 0.1, 0.5),
            (0.3, 0.4), (0.5,))  # fmt: skip


def asked(name, space=SPACE, scores: Scores | None = None):
    plan = Schedule((FULL,), 10, scores=scores or Scores(INFLUENCE, DISTANCE))
    search = SEARCHERS[name].propose(space, plan, np.random.default_rng(0))
    finalists, batches = play(search, Landscape.draw(0, 6, 2).evaluate)
    (batch,) = batches
    assert [o.trial for o in finalists] == list(batch)
    return [SPACE.gone(t.genome) for t in batch]


def test_last_drops_the_end():
    assert asked("last") == [{4, 5}]


def test_shortgpt_drops_the_least_influence_and_the_earlier_of_equals():
    assert asked("shortgpt") == [{1, 3}]


def test_window_drops_the_closest_block_of_that_length():
    assert asked("window") == [{3, 4}]


def test_all_layers_but_one():
    assert asked("window", Removals(6, 5)) == [{1, 2, 3, 4, 5}]


class Halves(Removals):
    """Counts two units per layer."""

    def removed(self, genome):
        return 2 * sum(genome)


@pytest.mark.parametrize(("budget", "layers"), [(4, 2), (5, 2), (6, 3)])
@pytest.mark.parametrize("name", ["last", "shortgpt", "window"])
def test_a_space_that_counts_halves_loses_whole_layers(name, budget, layers):
    assert [len(gone) for gone in asked(name, Halves(6, budget))] == [layers]


@pytest.mark.parametrize("name", ["shortgpt", "window"])
def test_missing_scores_are_refused(name):
    with pytest.raises(InvalidRecipe, match=f"{name} needs the layer scores"):
        next(SEARCHERS[name].propose(SPACE, Schedule((FULL,), 10), np.random.default_rng(0)))


@pytest.mark.parametrize("name", ["last", "shortgpt", "window"])
def test_a_free_size_is_refused(name):
    with pytest.raises(InvalidRecipe, match=f"{name} needs a size"):
        next(SEARCHERS[name].propose(Removals(6), Schedule((FULL,), 10), np.random.default_rng(0)))
