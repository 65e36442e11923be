"""Stages of one name add up, and the total runs on."""

from hf_prune.session import clock
from hf_prune.session.clock import Clock


def test_laps_add_up(monkeypatch):
    now = iter([10.0, 11.5, 12.0, 15.0, 20.0])
    monkeypatch.setattr(clock.time, "monotonic", lambda: next(now))
    watch = Clock()
    for name in ("search", "select", "search"):
        watch.lap(name)
    assert watch.seconds == {"search": 4.5, "select": 0.5, "total": 10.0}
