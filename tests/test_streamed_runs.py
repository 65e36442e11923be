"""Whole runs of a base that is larger than `--memory`: the same models and figures as where it fits."""

import json

import pytest

from hf_prune import hub
from hf_prune.errors import InvalidRecipe
from hf_prune.pipeline import run
from hf_prune.planning import Demand, plan
from hf_prune.recipe import Recipe
from hf_prune.session.session import open_session
from tests.runs import TASKS, base, command, recipe, relatives, stitching, text

LARGE = {"hidden_size": 64, "intermediate_size": 192}
WIDTH = {"method": "width", "ratio": 0.3, "levels": 6, "multiple_of": 8, "library_sequences": 12,
         "baselines": ("uniform", "errors")}  # fmt: skip


def need(wanted: Recipe) -> Demand:
    return open_session(wanted.replace(memory=None)).need


def tight(wanted: Recipe) -> Recipe:
    """In hardly more memory than the least."""
    return wanted.replace(memory=(need(wanted).least + 1000) / 2**30)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("streamed")
    base(home / "base", **LARGE)
    text(home / "text.txt")
    return home


def asked(home, name, **changes):
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "keep_layers": 4}
    return recipe(home, **{**given, "output": str(home / name), **changes})


def figures(folder):
    """All that was measured, by its section; no times and no facts of this machine."""
    report = json.loads((folder / "report.json").read_text())
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    names = (
        "digest",
        "size",
        "layers",
        "text",
        "baselines",
        "tasks",
        "repair",
        "selection",
        "search_summary",
        "merging",
    )
    return {"journal": rows[1:], **{n: report.get(n) for n in names}}


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": TASKS[1:], "search_tasks": TASKS[:1], "objective": "doubt", "search_items": 4, "selection_items": 4},
        {"repair": True, "repair_sequences": 8},
        {"method": "halves"},
    ],
    ids=["collapse", "repair", "halves"],
)
def test_a_run_that_reads_its_layers_finds_and_writes_the_same(home, changes, request):
    name = request.node.callspec.id
    whole = asked(home, f"{name}-whole", **changes)
    little = tight(asked(home, f"{name}-little", **changes))
    assert open_session(little).streams and not open_session(whole).streams
    one, other = run(whole), run(little)
    assert figures(one.folder) == figures(other.folder)
    weights = [(r.folder / "model.safetensors").read_bytes() for r in (one, other)]
    assert weights[0] == weights[1]
    certificate, check = other.report["certificate"], other.report["base_check"]["parents"][0]
    assert certificate["ok"] and certificate["max_logit_difference"] < 1e-3
    assert check["read"] == "layer by layer" and check["max_logit_difference"] < 1e-3
    said = (other.folder / "README.md").read_text()
    assert "a fresh process that runs it layer by layer" in said and "Speed and continued text are not told" in said


def test_widths_are_cut_the_same(home):
    fields = {"keep_layers": None, **WIDTH}
    whole = asked(home, "width-whole", library=str(home / "one"), **fields)
    little = tight(asked(home, "width-little", library=str(home / "other"), **fields))
    one, other = run(whole), run(little)
    found = [figures(r.folder) for r in (one, other)]
    assert found[0]["text"] == found[1]["text"] and found[0]["size"] == found[1]["size"]


def test_parents_are_stitched_the_same(tmp_path):
    relatives(tmp_path)
    fields = {"variants": (str(tmp_path / "tuned"),), "evaluations": 12}
    one = run(stitching(tmp_path, "whole", **fields))
    other = run(tight(stitching(tmp_path, "little", **fields)))
    assert figures(one.folder)["text"] == figures(other.folder)["text"]


@pytest.mark.parametrize(
    "changes",
    [{"heal": 1000}, {"lm_eval": ("arc_easy",)}, {"data": ()}, {"data": ("self",)}],
    ids=["heal", "lm_eval", "default data", "self"],
)
def test_what_needs_the_whole_model_is_refused_before_anything_is_read(home, changes):
    least = need(asked(home, "plain")).least
    little = asked(home, "refused", memory=(least + 1000) / 2**30, **changes)
    with pytest.raises(InvalidRecipe, match="raise --memory"):
        plan(little, hub.peek(str(home / "base")))
    if little.data.text:
        with pytest.raises(InvalidRecipe, match="raise --memory"):
            run(little)


def test_one_window_is_enough(home):
    assert run(tight(asked(home, "single", sequences=1, evaluations=4))).report["certificate"]["ok"]


def test_too_little_memory_is_one_sentence(home):
    done = command("compress", home / "base", "--output", home / "x", "--memory", "0.0001", "--data", home / "text.txt",
                   "--keep-layers", "4", "--length", "32", "--sequences", "4")  # fmt: skip
    assert done.returncode and "memory 0.0001 GiB is too little" in done.stderr and "raise --memory" in done.stderr
