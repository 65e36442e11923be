"""finals: half of the candidates go on, one trial at a time, and a journal resumes it."""

from hf_prune.blueprint import Fidelity, Outcome
from hf_prune.journal import Journal
from hf_prune.search import drive, finals

STAGES = [Fidelity(4, heal_tokens=t) for t in (10, 20, 40)]
GENOMES = [(i,) for i in range(8)]


def value(trial):
    """The order is turned round by the second stage."""
    return float(trial.genome[0] if trial.fidelity.heal_tokens == 10 else -trial.genome[0])


def test_the_better_half_goes_on_and_the_last_stage_ranks():
    search, asked = finals(GENOMES, STAGES), []
    trials = next(search)
    try:
        while True:
            assert len(trials) == 1
            asked.append(trials[0])
            trials = search.send(tuple(Outcome(t, (value(t),)) for t in trials))
    except StopIteration as stop:
        told = stop.value
    assert [sum(t.fidelity == s for t in asked) for s in STAGES] == [8, 4, 2]
    assert {t.genome for t in asked[8:12]} == {(0,), (1,), (2,), (3,)}
    assert [o.trial.genome for o in told] == [(3,), (2,)]


def test_a_journal_answers_for_what_was_asked_before():
    journal, scored = Journal.memory(), []

    def evaluate(trials):
        scored.extend(trials)
        return [(value(t),) for t in trials]

    def key(trial):
        return str(trial.genome), trial.fidelity

    results = []
    for _ in range(2):
        driving = drive(finals(GENOMES, STAGES), evaluate, journal, key)
        try:
            while True:
                next(driving)
        except StopIteration as stop:
            results.append(stop.value)
    assert results[0] == results[1] and len(scored) == 14
