"""How far a run is and how long it still takes, from its events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.events import Advanced, Forecasted, Scored, Stage
from hf_prune.report.pace import Pace, roughly, stages_told

SECONDS = {"check": 10.0, "search": 100.0, "report": 40.0}


class At:
    now = 0.0

    def __call__(self):
        return self.now


def heard(*steps):
    """A pace that heard events at these seconds."""
    clock = At()
    pace = Pace(clock)
    for now, event in steps:
        clock.now = now
        pace.hear(event)
    return pace, clock


def test_before_anything_is_forecast_nothing_is_promised():
    pace, _ = heard((0, Stage("pull")))
    assert pace.left is None and pace.line().endswith("pull")


def test_time_left_is_the_forecast_until_a_stage_knows_better():
    begin = [(0, Forecasted(SECONDS)), (0, Stage("check")), (10, Stage("search"))]
    pace, clock = heard(*begin)
    assert pace.left == pytest.approx(140)
    clock.now = 20
    assert pace.left == pytest.approx(130)
    pace.hear(Scored((), 1, 2, 1.5))
    assert pace.left == pytest.approx(10 + 40), "half is done in ten seconds"
    assert pace.line() == "[20 s] search: 1 of 2 (50%), best 1.5, about 50 s left"


def test_what_is_to_come_is_as_slow_as_what_is_done():
    pace, _ = heard((0, Forecasted(SECONDS)), (0, Stage("check")), (20, Stage("search")), (20, Advanced("s", 0, 9)))
    assert pace.left == pytest.approx(100 + 2 * 40)


def test_a_stage_that_takes_longer_than_forecast_is_not_owed_time():
    pace, clock = heard((0, Forecasted(SECONDS)), (0, Stage("check")), (10, Stage("search")), (10, Stage("report")))
    clock.now = 500
    assert pace.left == 0 and "10 s" in pace.remaining


@given(st.floats(1, 1e6))
def test_a_rough_time_is_near(seconds):
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    words = roughly(seconds).split()
    told = sum(float(n) * units[u] for n, u in zip(words[::2], words[1::2], strict=True))
    assert abs(told - seconds) <= max(31, 0.21 * seconds)


def test_stages_are_told_the_longest_first():
    assert stages_told(SECONDS) == "about 2 min (search 2 min, report 40 s, check 10 s)"
    assert stages_told({"check": 1.0}) == "about 10 s"
