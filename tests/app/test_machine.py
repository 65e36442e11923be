from concurrent.futures import Future

import pytest

from hf_prune.app import machine
from hf_prune.models.variants import peeks
from hf_prune.plan import plan
from hf_prune.recipe import Recipe
from tests.runs import base


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "1 min"), (80, "1 min"), (170, "2 min"), (3000, "60 min"), (4000, "1 h"), (9000, "2 h"), (10**6, "12 days")],
)
def test_an_estimate_is_as_exact_as_it_can_know(seconds, words):
    assert machine.about(seconds) == f"about {words}".replace("60 min", "1 h")


def test_time_follows_the_operations_and_the_measured_machine(tmp_path, monkeypatch):
    recipe = Recipe.of(base=str(base(tmp_path / "base")), ratio=0.3, heal="1M")
    found = plan(recipe, *peeks(recipe.base, recipe.variants, **recipe.trust.arguments))
    assert machine.time_of(found) == ""
    known = Future()
    # So slow that the search takes one hour and the training another.
    known.set_result((found.search_operations / 3600, found.training_operations / 3600))
    monkeypatch.setattr(machine, "_speed", known)
    assert machine.time_of(found) == "about 2 h"


def test_there_is_memory_in_this_machine():
    assert 1e8 < machine.memory() < 1e14
