"""Budgets: what is lowered until a run fits into its time, and what is left alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.planning import DEVICES, Rates, Shape, budget_of, evaluations, facts_of, forecast, rates_of
from hf_prune.planning.budget import AIM, MARGIN
from hf_prune.recipe import Recipe

SMALL = Shape(30, 3_540_000, 28_300_000, 576, 1536, 9, 3, 64, 49152, 269_000_000)
"""SmolLM2-135M."""
LLAMA = Shape(32, 218_000_000, 1_050_000_000, 4096, 14336, 32, 8, 128, 128256, 16_060_000_000)
"""Llama-3.1-8B."""
TWO_CORES = Rates(5e-12, 1.5e-11, 1e-10, 3e-9, 7e-12, 3e-11)
"""Two cores of a server that multiplies in bfloat16, measured while it did nothing else."""


def slowed(times: float) -> Rates:
    """The same, this many times slower."""
    return Rates(*(times * getattr(TWO_CORES, f) for f in ("layer", "trained", "step", "head", "product", "factor")))


TIMES = ("2m", "10m", "30m", "2h")


def budget(shape, rates, remove, **fields):
    recipe = Recipe.of(base="m", **fields)
    return budget_of(recipe, facts_of(recipe, shape.depth, remove), shape, rates)


def test_a_small_model_on_two_cores_is_repaired_within_a_quarter_of_an_hour_by_default():
    found = budget(SMALL, TWO_CORES, 9, ratio=0.25, repair=True)
    assert 0.7 * AIM < found.forecast.total <= AIM and found.left_out
    recipe = found.recipe
    assert recipe.search.evaluations >= 150 and recipe.repair.finalists >= 1 and recipe.report.sequences >= 20


def test_a_model_of_eight_billion_on_an_h200_takes_ten_minutes_at_most():
    found = budget(LLAMA, rates_of(DEVICES["h200"]), 9, ratio=0.25, repair=True)
    assert found.forecast.total <= AIM == 600 and found.recipe.search.evaluations is None, "all of its evaluations"


@settings(max_examples=40)
@given(st.sampled_from(TIMES), st.booleans(), st.sampled_from([0, 100_000, 2_000_000]), st.floats(0.3, 10))
def test_what_fits_is_done_and_what_is_done_fits(time, repair, heal, slow):
    rates = slowed(slow)
    found = budget(SMALL, rates, 9, ratio=0.25, repair=repair, heal=heal, time=time)
    whole = budget(SMALL, rates, 9, ratio=0.25, repair=repair, heal=heal, time="none")
    goal = MARGIN * found.seconds
    if whole.forecast.total <= goal:
        assert not found.changes and not found.left_out and found.recipe == whole.recipe
    else:
        assert found.changes and len(found.left_out) >= 1
        least = found.recipe.search.evaluations == 32 and found.recipe.report.sequences == 8
        assert found.forecast.total <= goal or least
    assert found.recipe.machine.time is None


@given(st.integers(0, 2), st.floats(0.3, 4))
@settings(max_examples=20)
def test_more_time_never_buys_a_shorter_run(i, slow):
    rates = slowed(slow)
    one, two = (budget(SMALL, rates, 9, repair=True, heal="1M", time=t) for t in TIMES[i : i + 2])
    assert one.forecast.total <= two.forecast.total + 1


def test_what_is_asked_for_by_itself_is_left_alone_where_no_time_is_asked():
    asked = {"evaluations": 961, "heal": 500_000, "repair_finalists": 3, "baselines": ("greedy", "last")}
    found = budget(SMALL, TWO_CORES, 9, repair=True, **asked)
    assert not {"evaluations", "heal", "repair_finalists", "baselines"} & set(found.changes)
    assert found.recipe.search.evaluations == 961 and found.recipe.heal.tokens == 500_000
    in_time = budget(SMALL, TWO_CORES, 9, repair=True, time="20m", **asked)
    assert in_time.recipe.search.evaluations < 961 and in_time.recipe.heal.tokens < 500_000


def test_what_is_left_out_is_said():
    found = budget(SMALL, TWO_CORES, 9, repair=True, heal="2M", time="15m")
    words = "; ".join(found.left_out)
    trials = evaluations(Recipe.of(base="m"), facts_of(Recipe.of(base="m"), 30, 9))
    assert f"of {trials:,} evaluations of the search" in words and "of 2,000,000 tokens of healing" in words
    assert "without the baselines" in words and "greedy" in words


def test_the_cheapest_baselines_stay():
    found = budget(SMALL, TWO_CORES, 9, repair=True, time="10m")
    assert set(found.recipe.search.baselines) <= {"last", "shortgpt", "window", "random"}


def test_a_search_that_takes_as_many_as_it_takes_keeps_them():
    found = budget(SMALL, TWO_CORES, 9, search="greedy", time="5m")
    assert "evaluations" not in found.changes


@pytest.mark.parametrize("fields", [{"method": "width"}, {"search": "nsga2"}, {"drop": ("3-5",)},
                                    {"method": "stitch", "variants": ("a", "b")}])  # fmt: skip
def test_every_kind_of_run_is_forecast_and_fits(fields):
    recipe = Recipe.of(base="m", **fields)
    facts = facts_of(recipe, 30, 0 if recipe.every_size else 3)
    seconds = forecast(recipe, facts, SMALL, TWO_CORES).seconds
    assert all(s > 0 for s in seconds.values()) and {"pull", "check", "calibrate", "assemble", "report"} <= set(seconds)
    assert ("select" in seconds) is not bool(recipe.size.drop or recipe.every_size)
    assert ("library" in seconds) is (recipe.method == "width")
    found = budget_of(recipe.replace(time="10m"), facts, SMALL, TWO_CORES)
    assert found.forecast.total < sum(seconds.values()) or not found.changes
