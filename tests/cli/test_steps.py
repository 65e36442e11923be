"""What a run chose, and the commands that come after it."""

import json
import shlex

import pytest
from typer.main import get_command

from hf_prune.cli.main import app
from hf_prune.cli.steps import announced, chosen, next_commands
from hf_prune.events import Finished, Stage, Started
from hf_prune.recipe import Recipe
from hf_prune.report.schema.report import Report
from tests.hub.samples import CONFIG

SIZES = {"parameters": 4, "bytes": 8, "layers": 4, "kv_bytes_per_token": 4}
RAW = {"size": {"dense": SIZES, "pruned": SIZES}, "layers": []}
LOCAL = {"repo": "base", "revision": "sha256-" + "0" * 56}


def commands(folder, url=None, parent="my base", **more):
    found = [
        shlex.split(line, comments=True)
        for line in next_commands(folder, Report.from_dict(RAW | more, "x"), parent, url)
    ]
    for words in found:
        # What is recommended can be typed.
        get_command(app).commands[words[1]].make_context(words[1], words[2:])
    return {words[1]: words for words in found}


def test_they_are_those_that_make_sense(tmp_path):
    folder = tmp_path / "a model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    found = commands(folder, sources=[LOCAL])
    assert list(found) == ["chat", "heal", "export", "push"] and found["export"][4] == "gguf"
    assert found["chat"][2:5] == [str(folder), "--base", "my base"]
    healed = {"method": "lora", "tokens": 1, "before": 1, "after": 1, "kept": True}
    assert list(commands(folder, "https://hub/x", healing=healed)) == ["chat", "export"]
    assert "--base" not in commands(folder, sources=[{"repo": "ns/m", "revision": "a" * 40}])["chat"]
    assert list(commands(tmp_path / "gone")) == ["chat", "heal", "push"]


@pytest.mark.parametrize("asked", [{"ratio": 0.25}, {"drop": ("3",)}, {"search": "nsga2"}, {"keep_layers": 3}])
def test_who_names_a_size_is_told_nothing(asked):
    assert chosen(Recipe.of(base="m", **asked)) is None


def test_who_names_none_is_told_what_was_chosen_and_the_flags_that_choose():
    said = chosen(Recipe.of(base="m"))
    assert all(word in said for word in ("0.25", "--ratio", "--method", "--data", "wikitext", "--time", "--repair"))
    assert "--data" not in chosen(Recipe.of(base="m", data="x.txt", time="1h", repair=True))


def test_it_is_told_when_the_run_begins_and_not_before():
    begun, done = Started(None, "m", 4, "remove 1", 9), Finished("small", {})
    told = list(announced([Stage("pull"), begun, done], Recipe.of(base="m")))
    assert [type(e) for e in told] == [Stage, Started, Stage, Finished] and "--ratio" in told[2].detail
    assert list(announced([begun, done], Recipe.of(base="m", ratio=0.5))) == [begun, done]
