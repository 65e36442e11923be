"""The front: who is meant by knee, by a share, by a number; what the report shows of it."""

import json

import pytest

from hf_prune.blueprint import Blueprint, Source
from hf_prune.errors import InvalidBlueprint
from hf_prune.session.front import pick_member, public


def member(removed, knee=False):
    blueprint = Blueprint.identity(Source("m", "r"), 10 - round(10 * removed))
    return {"removed_ratio": removed, "knee": knee, "digest": blueprint.digest,
            "blueprint": json.loads(blueprint.to_json())}  # fmt: skip


FRONT = [member(0.0), member(0.2), member(0.3, knee=True), member(0.6)]


@pytest.mark.parametrize(
    ("pick", "index"), [("knee", 2), ("0.25", 1), ("0.26", 2), ("0.9", 3), ("0", 0), ("#0", 0), ("#3", 3)]
)
def test_a_pick_names_one_member(pick, index):
    blueprint, found = pick_member(FRONT, pick)
    assert found == FRONT[index] and blueprint.digest == found["digest"]


@pytest.mark.parametrize("pick", ["#4", "#x", "small", "", "nan%"])
def test_a_pick_that_names_nobody_says_what_does(pick):
    with pytest.raises(InvalidBlueprint, match="use knee, a share such as 0.25, or #0 to #3"):
        pick_member(FRONT, pick)


def test_a_front_that_is_damaged_is_refused():
    with pytest.raises(InvalidBlueprint):
        pick_member([{"removed_ratio": 0.1}], "knee")


def test_the_report_shows_members_without_their_blueprints():
    assert public(FRONT[1]) == {k: v for k, v in FRONT[1].items() if k != "blueprint"}
