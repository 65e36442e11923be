"""Runs whose time is up, told by a timetable that says so: each stage ends early, and a resumed run where it ended."""

import json

import pytest

from hf_prune.events import Forecasted, Healed, Stage
from hf_prune.pipeline import compress
from hf_prune.report.pace import time_verdict
from hf_prune.report.schema.report import Report
from hf_prune.session.timetable import Timetable
from tests.runs import finished, recipe

GENEROUS = lambda self, stage: 1e9  # noqa: E731
SPENT = lambda self, stage: -1.0  # noqa: E731


def asked(home):
    return recipe(home, time="1h", heal=64 * 32, heal_batch=4, heal_checks=2, repair=True, repair_sequences=4)


def test_every_stage_can_be_ended_and_what_was_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(Timetable, "left", SPENT)
    events = list(compress(asked(tmp_path)))
    report = Report.load(tmp_path / "small" / "report.json")
    assert report.certificate.ok and report.recipe.get("time") is None
    ended = report.time.ended
    assert 0 < ended["search"] < 24 and ended["select"] == 1 and ended["heal"] == 1
    assert "baseline greedy" in ended and "greedy" not in {b.name for b in report.baselines}
    assert next(e for e in events if isinstance(e, Healed)).tokens == 4 * 32
    (said,) = time_verdict(report)
    card = (tmp_path / "small" / "README.md").read_text()
    assert "search ended after" in said and "search ended after" in card and "1 h" in said
    assert next(e for e in events if isinstance(e, Forecasted)).seconds == dict(report.time.forecast)


@pytest.mark.parametrize("stage", ["select", "heal", "report"])
def test_a_resumed_run_ends_its_stages_where_they_ended(tmp_path, monkeypatch, stage):
    monkeypatch.setattr(Timetable, "left", SPENT)
    (tmp_path / "one").mkdir()
    whole = finished(compress(asked(tmp_path / "one"))).report
    (tmp_path / "two").mkdir()
    running = compress(asked(tmp_path / "two"))
    for event in running:
        if isinstance(event, Stage) and event.name == stage:
            break
    running.close()
    kept = json.loads((tmp_path / "two" / "small.run" / "time.json").read_text())
    assert kept["ended"]["search"] == whole["time"]["ended"]["search"]
    if stage == "report":
        # Time there is again, but none for what was ended already.
        monkeypatch.setattr(Timetable, "left", GENEROUS)
    again = finished(compress(asked(tmp_path / "two"))).report
    assert again["digest"] == whole["digest"] and again["time"]["ended"] == whole["time"]["ended"]
    assert again["text"] == whole["text"]


def test_a_run_that_fits_is_that_of_no_time_at_all(tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    one = finished(compress(recipe(tmp_path / "one", time="2h"))).report
    two = finished(compress(recipe(tmp_path / "two", time="none"))).report
    assert one["digest"] == two["digest"] and not one["time"]["left_out"] and not one["time"]["ended"]
    assert one["search_summary"] == two["search_summary"]
