"""The acts of the demo are recipes over what is bundled, and nothing else."""

from pathlib import Path

import pytest

from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_sources import check_apart, load_tasks
from hf_prune.demo import OUTPUTS, demo_recipe
from hf_prune.methods.method import Sizes
from hf_prune.planning import target_of


@pytest.mark.parametrize("act", OUTPUTS)
def test_every_act_needs_only_what_is_bundled(act):
    recipe = demo_recipe(act)
    inside = [Path(p) for p in (recipe.base, *recipe.variants, *recipe.data.text, *recipe.tasks.names)]
    assert all(p.exists() and p.is_relative_to(demo_folder()) for p in inside)
    assert recipe.output == OUTPUTS[act] and demo_recipe(act, "elsewhere").output == "elsewhere"
    assert target_of(recipe, Sizes((200_000,) * 16, 3_400_000)).removed_ratio == pytest.approx(0.25, abs=0.03)


def test_bundled_tasks_for_searching_and_reporting_share_no_item():
    special = demo_folder() / "specialists" / "tasks"
    searched = load_tasks(sorted(special.glob("*.search.jsonl")), "search")
    check_apart(
        searched, load_tasks([*sorted(special.glob("*.report.jsonl")), *sorted((demo_folder() / "tasks").glob("*"))])
    )
