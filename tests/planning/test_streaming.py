"""What a plan says of a base that is larger than `--memory`."""

from dataclasses import replace

import pytest

from hf_prune.data.bundled import demo_folder
from hf_prune.errors import InvalidRecipe
from hf_prune.planning import DEVICES, Room, plan, rates_of
from hf_prune.report.text import plan_rows
from tests.planning.test_plans import header, recipe

LAYER = 10**6
RATES = rates_of(DEVICES["l4"])


def planned(memory, rates=None, room=None, **changes):
    fields = {"device": "cpu", "dtype": "float32", "time": "none", "data": (str(demo_folder() / "text"),), **changes}
    asked = recipe(**fields).replace(memory=memory)
    return plan(asked, header(layer=LAYER), measure=rates and (lambda *_: rates), room=room)


@pytest.fixture(scope="module")
def tight():
    """GiB in which a few layers fit."""
    whole = planned(None)
    # All layers but ten are left out of it.
    return (whole.memory_bytes - 6 * 4 * LAYER) / 2**30


def test_what_fits_is_not_read(tight):
    whole = planned(None)
    assert whole.streaming is None and "reading" not in plan_rows(whole)
    assert planned(1.01 * whole.memory_bytes / 2**30).streaming is None


def test_memory_is_kept_to_and_the_rest_is_read_in_every_pass(tight):
    found = planned(tight)
    read = found.streaming
    assert found.memory_bytes <= tight * 2**30 and 0 < read.staying < read.depth == found.depth
    assert read.bytes == pytest.approx((read.depth - read.staying) / read.depth * sum(found.layer_parameters)
                                       * found.bytes / found.parameters, rel=1e-3)  # fmt: skip
    assert read.bound is None and "stay in memory" in plan_rows(found)["reading"]
    more = planned(tight, evaluations=1000, offspring=10).streaming
    assert more.passes - planned(tight, evaluations=500, offspring=10).streaming.passes == 50


def test_the_slower_of_reading_and_computing_bounds_the_search(tight):
    slow, fast = (planned(tight, replace(RATES, disk=disk), offspring=16) for disk in (1e-3, 1e-13))
    assert slow.streaming.bound == "reading" and fast.streaming.bound == "computing"
    assert "so reading bounds the search" in plan_rows(slow)["reading"]
    generations = -(-slow.evaluations // 16)
    assert slow.seconds["search"] == pytest.approx(slow.streaming.reading * slow.evaluations / 16, rel=0.2)
    assert slow.streaming.passes > generations
    assert slow.to_dict()["streaming"]["bound"] == "reading"


def test_beside_a_card_only_what_is_set_aside_takes_memory_of_the_host(tight):
    room = Room(10**12, 2 * 10**12, True)
    whole, little = (planned(m, RATES, room, device="cuda") for m in (None, tight))
    assert whole.host_bytes > 1.1 * whole.bytes and little.streaming and little.host_bytes < whole.host_bytes


def test_less_than_a_few_layers_is_refused_with_what_is_needed(tight):
    with pytest.raises(InvalidRecipe, match="memory 0.001 GiB is too little: .* need 0.*; raise --memory"):
        planned(0.001)
