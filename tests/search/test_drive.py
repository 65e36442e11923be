import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.blueprint import Fidelity, Trial
from hf_prune.search import SEARCHERS, Schedule, drive, focus
from hf_prune.search.pareto import non_dominated
from hf_prune.session.journal import Journal
from tests.search.toy import FULL, Landscape, Removals

SPACE = Removals(8, 3)
LAND = Landscape.draw(0, depth=8, size=3)


def key(trial):
    """The model, as if the first layer's bit did not matter: genomes alias."""
    return "".join(map(str, trial.genome[1:])), trial.fidelity


def asking(*batches):
    """A searcher that asks for these genomes and returns all it was told."""
    told = ()
    for batch in batches:
        told += yield tuple(Trial(g, FULL) for g in batch)
    return told


def run(search, evaluate, journal, **options):
    """(events, finalists)"""
    events, loop = [], drive(search, evaluate, journal, key, **options)
    try:
        while True:
            events.append(next(loop))
    except StopIteration as end:
        return events, end.value


class Counted:
    """Values that say which call made them."""

    def __init__(self):
        self.calls = []

    def __call__(self, trials):
        self.calls.append([t.genome for t in trials])
        return [(float(len(self.calls)), float(i)) for i, _ in enumerate(trials)]


def test_aliases_are_scored_once_and_all_are_answered_in_order():
    evaluate, a, alias, b = Counted(), (0, 1), (1, 1), (0, 0)
    events, told = run(asking([a, b, alias, a], [alias, b]), evaluate, Journal.memory())
    assert evaluate.calls == [[a, b]]
    assert [o.trial.genome for o in told] == [a, b, alias, a, alias, b]
    assert [o.values[1] for o in told] == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert [e.cached for e in events] == [2, 2] and [e.done for e in events] == [4, 6]


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12), max_size=4), st.integers(1, 5))
def test_every_key_is_evaluated_once_in_the_order_asked_in_bounded_batches(batches, most):
    evaluate = Counted()
    run(asking(*batches), evaluate, Journal.memory(), batch=most)
    evaluated = [g for call in evaluate.calls for g in call]
    assert evaluated == list({g[1]: g for b in reversed(batches) for g in reversed(b)}[n] for n in dict.fromkeys(
        g[1] for b in batches for g in b))  # fmt: skip
    assert all(0 < len(call) <= most for call in evaluate.calls)
    assert len(evaluate.calls) <= sum(math.ceil(len(b) / most) for b in batches)


def test_nothing_is_reported_before_it_is_recorded(tmp_path):
    journal = Journal.open(tmp_path / "j", {})
    genomes = list(SPACE.enumerate())[:7]
    loop = drive(asking(genomes[:4], genomes[4:]), LAND.evaluate, journal, key, batch=3)
    for event in loop:
        on_disk = (tmp_path / "j").read_text()
        assert all(f'"{key(o.trial)[0]}"' in on_disk for o in event.outcomes)


def test_a_failing_batch_leaves_the_earlier_ones_recorded():
    journal, genomes = Journal.memory(), list(SPACE.enumerate())[:7]

    def evaluate(trials):
        if genomes[6] in [t.genome for t in trials]:
            raise MemoryError
        return LAND.evaluate(trials)

    with pytest.raises(MemoryError):
        run(asking(genomes), evaluate, journal, batch=3)
    assert [row.genome for row in journal.rows()] == genomes[:6]


def test_values_that_are_not_finite_survive_and_nan_is_the_worst():
    answers = [(math.inf, 1.0), (math.nan, 2.0), (0.5, -math.inf)]
    events, told = run(asking([(0, 1), (0, 2), (0, 3)]), lambda _: answers, Journal.memory())
    assert [o.values for o in told] == [(math.inf, 1.0), (math.inf, 2.0), (0.5, -math.inf)]
    assert events[0].best == 0.5


def test_best_is_that_of_the_fullest_evidence():
    def search():
        for n, items in ((2, 0), (8, 0), (2, 0), (8, 4)):
            yield (Trial((n, items), Fidelity(n, items=items)), Trial((n + 1, items), Fidelity(n, items=items)))
        return ()

    values = {(2, 0): 0.1, (3, 0): 0.2, (8, 0): 0.9, (9, 0): 0.7, (8, 4): 1.9, (9, 4): 2.5}
    loop = drive(
        search(), lambda ts: [(values[t.genome],) for t in ts], Journal.memory(), lambda t: (str(t), FULL), total=9
    )
    events = list(loop)
    assert [e.best for e in events] == [0.1, 0.7, 0.7, 1.9] and {e.total for e in events} == {9}


def test_a_wrong_number_of_values_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        run(asking([(0, 1), (0, 2)]), lambda _: [(1.0,)], Journal.memory())


@pytest.mark.parametrize("name", ["staged", "nsga2", "genetic", "greedy"])
def test_a_replayed_search_asks_for_nothing_and_ends_the_same(name):
    def search():
        plan = Schedule((Fidelity(2), FULL), 60, 6, 8)
        space = Removals(8) if name == "nsga2" else SPACE
        return SEARCHERS[name].propose(space, plan, np.random.default_rng(0))

    journal, evaluate = Journal.memory(), LAND.evaluate
    events, finalists = run(search(), evaluate, journal)
    again, same = run(search(), lambda _: pytest.fail("evaluated again"), journal)
    assert same == finalists and [e.outcomes for e in again] == [e.outcomes for e in events]


class Batches:
    """A limit of so many batches; `trials` as a journaled one keeps it."""

    def __init__(self, batches=0, trials=None):
        self.left, self.trials, self.ended = batches, trials, None

    def over(self):
        self.left -= 1
        return self.left < 0

    def end(self, trials):
        self.ended = trials


def searching(name):
    space = Removals(8) if name == "nsga2" else SPACE
    columns = (0, 1) if name == "nsga2" else (0,)
    plan = Schedule((Fidelity(2), FULL), 60, 6, 8)
    return focus(SEARCHERS[name].propose(space, plan, np.random.default_rng(0)), columns)


@pytest.mark.parametrize("batch", [3, 64])
@pytest.mark.parametrize("name", ["staged", "nsga2", "genetic", "random"])
def test_a_search_whose_time_is_up_returns_its_best_so_far_and_a_resumed_one_the_same(name, batch):
    journal, limit = Journal.memory(), Batches(3)

    def evaluate(trials):
        return [(v[0], float(sum(t.genome))) for t, v in zip(trials, LAND.evaluate(trials), strict=True)]

    events, found = run(searching(name), evaluate, journal, batch=batch, limit=limit)
    assert 0 < limit.ended == events[-1].done < 60
    told = [o for e in events for o in e.outcomes]
    fullest = [o for o in told if o.trial.fidelity == max((o.trial.fidelity for o in told), key=lambda f: f.sequences)]
    if name == "nsga2":
        assert {o.values for o in found} == {fullest[i].values for i in non_dominated([o.values for o in fullest])}
    else:
        assert found[0].values[0] == min(o.values[0] for o in fullest)
        assert [o.values[0] for o in found] == sorted(o.values[0] for o in found)
    again = Batches(10**6, trials=limit.ended)
    events, same = run(searching(name), lambda _: pytest.fail("evaluated again"), journal, batch=batch, limit=again)
    assert same == found and again.ended == limit.ended == events[-1].done


def test_without_any_time_one_batch_is_evaluated_all_the_same():
    _, found = run(searching("staged"), LAND.evaluate, Journal.memory(), batch=2, limit=Batches(0))
    assert len(found) == 2


def test_a_search_that_would_end_by_itself_is_not_said_to_have_been_ended():
    limit = Batches(10**6)
    _, found = run(searching("staged"), LAND.evaluate, Journal.memory(), limit=limit)
    assert limit.ended is None and found == run(searching("staged"), LAND.evaluate, Journal.memory())[1]
