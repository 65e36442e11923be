from hf_prune.app import machine
from hf_prune.app.plans import html, planned
from hf_prune.planning import Rates, host_memory
from hf_prune.recipe import Recipe
from tests.runs import base


def test_a_plan_says_how_long_it_takes_on_this_machine(tmp_path, monkeypatch):
    asked = []

    def rates(*how):
        asked.append(how)
        # So slow that hours go by.
        return Rates(*(1e-6 * n for n in (1, 3, 10, 10, 1, 1)))

    monkeypatch.setattr("hf_prune.app.plans.rates", rates)
    found = planned(Recipe.of(base=str(base(tmp_path / "base")), ratio=0.3, heal="1M", time="none"), strangers=False)
    shape, length, device, _ = asked[0]
    assert shape.depth == found.plan.depth == 6 and shape.parameters == found.plan.parameters
    assert (length, device) == (256, "auto") and found.plan.seconds["heal"] > 3600
    assert " h" in html(found) and "on this machine" in html(found)


def test_the_machine_is_measured_once_for_a_shape(monkeypatch):
    calls = []
    monkeypatch.setattr(machine, "ask", lambda *what: calls.append(what) or 7)
    machine._asked.cache_clear()
    assert machine.rates("shape", 256, "cpu", "auto") == machine.rates("shape", 256, "cpu", "auto") == 7
    assert len(calls) == 1
    machine._asked.cache_clear()


def test_there_is_memory_in_this_machine():
    assert 1e8 < host_memory() < 1e14
