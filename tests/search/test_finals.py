"""finals: half of the candidates go on, one trial at a time, and a journal resumes it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import Fidelity
from hf_prune.search import drive, finals
from hf_prune.session.journal import Journal
from tests.search.toy import play

STAGES = [Fidelity(4, heal_tokens=t) for t in (10, 20, 40)]
GENOMES = [(i,) for i in range(8)]


def value(trial):
    """The order is turned round by the second stage."""
    return float(trial.genome[0] if trial.fidelity.heal_tokens == 10 else -trial.genome[0])


def test_the_better_half_goes_on_and_the_last_stage_ranks():
    told, batches = play(finals(GENOMES, STAGES), lambda trials: [(value(t),) for t in trials])
    asked = [t for batch in batches for t in batch]
    assert {len(batch) for batch in batches} == {1}
    assert [t.fidelity for t in asked] == [STAGES[0]] * 8 + [STAGES[1]] * 4 + [STAGES[2]] * 2
    assert [t.genome for t in asked[:8]] == GENOMES
    assert {t.genome for t in asked[8:12]} == {(0,), (1,), (2,), (3,)}
    assert [o.trial.genome for o in told] == [(3,), (2,)]


@given(st.lists(st.one_of(st.floats(0, 9), st.just(math.inf)), min_size=1, max_size=12), st.integers(1, 4))
def test_whatever_they_are_worth_half_rounded_up_goes_on_and_none_is_better_than_who_does(worth, rounds):
    stages = [Fidelity(1, heal_tokens=i) for i in range(rounds)]
    told, batches = play(finals([(i,) for i in range(len(worth))], stages), lambda ts: [(worth[ts[0].genome[0]],)])
    sizes = [sum(batch[0].fidelity == s for batch in batches) for s in stages]
    assert sizes == [math.ceil(len(worth) / 2**i) for i in range(rounds)]
    kept = [worth[o.trial.genome[0]] for o in told]
    assert kept == sorted(worth)[: len(kept)] and {o.trial.fidelity for o in told} == {stages[-1]}


def test_one_candidate_is_asked_for_once_a_stage():
    told, batches = play(finals(GENOMES[:1], STAGES), lambda trials: [(1.0,)])
    assert len(batches) == 3 and [o.trial.genome for o in told] == [(0,)]


class Killed(BaseException):
    pass


def driven(journal, scored, most=math.inf):
    """Through `drive`; dies before more than `most` trials were scored."""

    def evaluate(trials):
        if len(scored) + len(trials) > most:
            raise Killed
        scored.extend(trials)
        return [(value(t),) for t in trials]

    driving = drive(finals(GENOMES, STAGES), evaluate, journal, lambda t: (str(t.genome), t.fidelity), batch=1)
    while True:
        try:
            next(driving)
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("after", [0, 1, 7, 8, 9, 12, 13])
def test_killed_anywhere_it_goes_on_and_asks_for_nothing_twice(tmp_path, after):
    whole, scored = [], []
    result = driven(Journal.memory(), whole)
    with Journal.open(tmp_path / "j", {}) as journal, pytest.raises(Killed):
        driven(journal, scored, after)
    assert len(scored) == after
    with Journal.open(tmp_path / "j", {}) as journal:
        assert driven(journal, scored) == result and scored == whole and len(whole) == 14
    with Journal.open(tmp_path / "j", {}) as journal:
        assert driven(journal, scored) == result and len(scored) == 14
