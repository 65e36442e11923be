"""Advice: the changes with which a run fits into a machine are true, few and mild."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_prune.errors import InvalidRecipe
from hf_prune.models.devices import device_of
from hf_prune.planning import Room, plan
from hf_prune.planning.advice import LEVERS, Need, advise
from hf_prune.planning.memory import SHARE
from hf_prune.recipe import OPTIONS, Recipe
from hf_prune.report.text import plan_rows
from tests.planning.test_plans import header

LARGE = {"depth": 12, "layer": 10**6, "outside": 4 * 10**6, "hidden_size": 256, "vocab_size": 2000}
WISHES = ({}, {"heal": "1M"}, {"heal": "1M", "heal_method": "full"}, {"repair": True}, {"dtype": "float32"})


def planned(room, **fields):
    return plan(Recipe.of(base="ns/m", data=("self",), **fields), header(**LARGE), room=room)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WISHES), st.floats(0.05, 1.2), st.booleans())
def test_what_is_advised_fits_and_not_one_change_of_it_is_spare(wishes, share, bfloat16):
    unbounded = planned(Room(10**12, 10**12, bfloat16), **wishes)
    size = round(share * unbounded.device_bytes / SHARE)
    room = Room(size, size, bfloat16)
    found = planned(room, **wishes)
    assert found.fits is (unbounded.device_bytes <= SHARE * size) and (found.advice is None or not found.fits)
    assume(found.advice and found.advice.fits)
    changes = dict(found.advice.changes)
    assert 1 <= len(changes) <= 3 and planned(room, **{**wishes, **changes}).fits
    assert not any(
        planned(room, **{**wishes, **{n: v for n, v in changes.items() if n != name}}).fits for name in changes
    )


def test_where_nothing_is_enough_it_is_said_how_much_is():
    found = planned(Room(10**6, 10**6))
    assert found.fits is False and not found.advice.fits
    words = plan_rows(found)["to fit"]
    assert words.startswith("a machine with more memory: even with --dtype bfloat16 ") and words.endswith("MB")


def test_the_words_are_flags_that_can_be_typed():
    found = planned(Room(240_000_000, 240_000_000), heal="1M")
    assert found.advice.fits and plan_rows(found)["to fit"].startswith("--dtype bfloat16 ")
    assert "too much: this machine has 240 MB, of which a run can have 192 MB" in plan_rows(found)["memory"]


def test_two_peaks_are_told_where_there_is_an_accelerator():
    words = plan_rows(planned(Room(10**10, 10**11)))["memory"]
    assert "on the device" in words and "beside it; it fits: this device has 10.0 GB, and the machine 100 GB" in words
    assert "too much" in plan_rows(planned(Room(10**10, 10**6)))["memory"], "weights pass through the machine's memory"


def test_sixteen_bits_count_where_the_device_computes_in_them():
    wide, narrow = (planned(Room(10**12, 10**12, known)).memory_bytes for known in (False, True))
    assert 1.5 < wide / narrow < 2


def test_every_lever_is_an_option_and_no_default():
    for name, values in LEVERS.items():
        assert values and all(Recipe.of(base="m").replace(**{name: v}) for v in values if name != "tune")
        assert name in OPTIONS


def test_no_change_is_advised_that_saves_nothing():
    recipe = Recipe.of(base="m")
    assert advise(recipe, lambda _: Need((100,), 100), Room(10, 10)) is None


@pytest.mark.parametrize("name", ["cuda:93", "xpu", "hpu", "mps:7"])
def test_a_device_that_is_not_here_is_a_sentence(name):
    with pytest.raises(InvalidRecipe, match=f"no device {name} that torch"):
        device_of(name)
