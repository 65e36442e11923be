"""The time of a run: budgets decided once, what is left of it, and where it ran out, through interruptions."""

import json

import pytest

from hf_prune.planning import Budget, Forecast
from hf_prune.recipe import Recipe
from hf_prune.session.clock import Clock
from hf_prune.session.timetable import PATIENCE, SPARE, Timetable

SECONDS = {"check": 10.0, "search": 100.0, "repair": 20.0, "report": 30.0}


class Watch(Clock):
    """A clock that a test sets."""

    def __init__(self):
        super().__init__()
        self.begun = self.started

    def set(self, seconds):
        self.started = self.begun - seconds


def decided(asked, changes=()):
    changes = dict(changes)
    recipe = asked.replace(time=None, **changes)
    return Budget(recipe, asked.machine.time or None, Forecast(SECONDS), changes, ("less",) if changes else ())


def table(tmp_path, time=None, changes=(), fresh=True):
    asked = Recipe.of(base="m", time=time)
    decide = (lambda: decided(asked, changes)) if fresh else (lambda: pytest.fail("decided again"))
    return Timetable.open(asked, tmp_path / "run" / "time.json", Watch(), decide)


def test_a_stage_has_what_the_later_ones_leave_it(tmp_path):
    found = table(tmp_path, "200s")
    found.clock.set(50)
    assert found.left("search") == pytest.approx(200 - 50 - 50, abs=1)
    assert found.left("report") == pytest.approx(150, abs=1)
    found.clock.laps["check"] = 20.0
    assert found.left("search") == pytest.approx(200 - 50 - 2 * 50, abs=1), "all that follows takes twice as long, too"


def test_without_a_time_a_run_may_take_longer_than_forecast_and_with_none_for_ever(tmp_path):
    assert table(tmp_path).end == PATIENCE * 160 + SPARE
    assert table(tmp_path, "none").limit("search", "search").over() is False


def test_a_resumed_run_takes_the_rest_of_the_time_with_the_same_budgets(tmp_path):
    found = table(tmp_path, "2m", {"evaluations": 77, "baselines": ["last"]})
    found.clock.set(30)
    found.limit("search", "search").end(64)
    again = table(tmp_path, "2m", fresh=False)
    assert again.now == pytest.approx(30, abs=1) and again.limit("search", "search").trials == 64
    assert again.budget.recipe == found.budget.recipe and again.budget.recipe.search.evaluations == 77
    assert again.budget.left_out == ("less",) and again.summary() == found.summary()
    assert again.limit("heal", "heal").trials is None


def test_another_recipe_decides_anew(tmp_path):
    table(tmp_path, "2m").save()
    assert table(tmp_path, "3m", {"evaluations": 9}).budget.recipe.search.evaluations == 9


def test_how_much_is_spent_is_noted_on_the_way(tmp_path):
    found = table(tmp_path, "2m")
    found.clock.set(12)
    assert not found.limit("search", "search").over()
    assert json.loads(found.path.read_text())["spent"] == pytest.approx(12, abs=1)
