import itertools

import pytest

from hf_prune.blueprint import Fidelity, Outcome, Trial
from hf_prune.search import Schedule
from hf_prune.search.archive import Archive, ranked
from tests.search.toy import Removals, play

SCREEN, FULL = Fidelity(2), Fidelity(8)
SPACE = Removals(2)
A, B, C = (0, 1), (1, 0), (1, 1)


def values(trials):
    return [(float(sum(t.genome)),) for t in trials]


def test_nothing_is_asked_twice_at_a_stage_and_the_answer_is_complete():
    archive = Archive(SPACE, Schedule((SCREEN, FULL), 10))

    def search():
        first = yield from archive.ask([A, B, A])
        again = yield from archive.ask([C, A])
        screened = yield from archive.ask([A], SCREEN)
        return tuple([o.trial.genome for o in told] for told in (first, again, screened))

    told, asked = play(search(), values)
    assert told == ([A, B], [C, A], [A])
    assert asked == [(Trial(A, FULL), Trial(B, FULL)), (Trial(C, FULL),), (Trial(A, SCREEN),)]
    assert archive.asked == 4 and archive.left == 6 and all(map(archive.met, (A, B, C)))


def test_the_cap_cuts_the_batch():
    archive = Archive(SPACE, Schedule((FULL,), 2))
    told, asked = play(archive.ask([A, B, C]), values)
    assert [o.trial.genome for o in told] == [A, B] and list(map(len, asked)) == [2]
    assert play(archive.ask([C]), values) == ([], [])


@pytest.mark.parametrize("order", [(A, B, C), (C, B, A)])
def test_ties_are_ranked_by_genome(order):
    outcomes = [Outcome(Trial(g, FULL), (1.0 if g != C else 0.5,)) for g in order]
    assert [o.trial.genome for o in ranked(outcomes)] == [C, A, B]


class Aliased(Removals):
    """The last gene means nothing."""

    def decode(self, genome):
        return super().decode(genome[:-1])


def test_genomes_of_one_model_are_one():
    archive = Archive(Aliased(3), Schedule((SCREEN, FULL), 10))
    told, asked = play(archive.ask([(0, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0)]), values)
    assert [t.genome for t in asked[0]] == [o.trial.genome for o in told] == [(0, 1, 0), (1, 0, 1)]
    assert play(archive.ask([(1, 0, 0)]), values) == ([told[1]], [])
    assert archive.met((1, 0, 0)) and not archive.met((0, 0, 1))


def test_fresh_draws_are_new_and_drawing_ends():
    archive = Archive(Aliased(3), Schedule((SCREEN, FULL), 10))
    play(archive.ask([(0, 1, 0)], SCREEN), values)
    draws = itertools.cycle([(0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)])
    assert archive.fresh(lambda: next(draws), 2) == [(1, 0, 0), (1, 1, 0)]
    assert archive.fresh(lambda: next(draws), 3) == [(1, 0, 0), (1, 1, 0)]
