"""What cannot end well fails before the first long stage, and a corrected command trains nothing again."""

import json
from contextlib import closing

import pytest

from hf_prune.errors import HfPruneError
from hf_prune.events import Advanced, Healed, Stage, Started
from hf_prune.pipeline import compress
from hf_prune.recipe import Recipe
from tests.hub.samples import model
from tests.runs import DEPTH, finished, recipe

TRAINED = {"heal": "2k", "heal_batch": 4, "heal_rank": 4, "drop": ("1", "3"), "baselines": ()}


@pytest.fixture
def home(tmp_path):
    (tmp_path / "no-answer.jsonl").write_text(json.dumps({"context": "a", "choices": ["b", "c"], "answer": 7}) + "\n")
    (tmp_path / "text-alone.yaml").write_text(
        f"task: alone\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'no-answer.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{missing}}'\ndoc_to_choice: choices\n"
        "doc_to_target: answer\n"
    )
    return tmp_path


WRONG = {
    "a mistyped task": {"tasks": ("arc_esay",)},
    "a file of tasks that is not there": {"tasks": ("gone.jsonl",)},
    "a task without answers": {"tasks": ("{home}/no-answer.jsonl",)},
    "a mistyped task of lm_eval": {"lm_eval": ("hellaswagg",)},
    "a task of lm_eval that does not fit its data": {"lm_eval": ("{home}/text-alone.yaml",)},
    "a file of text that is not there": {"data": ("gone.txt",)},
    "a repo of others": {"push_to": "others/small"},
    "a name that is none": {"push_to": "ns/a b"},
}


@pytest.mark.parametrize("case", WRONG)
def test_it_is_told_before_the_base_is_measured(home, hub_server, case):
    wrong = {k: tuple(e.format(home=home) for e in v) if isinstance(v, tuple) else v for k, v in WRONG[case].items()}
    told = []
    with pytest.raises(HfPruneError), closing(compress(recipe(home, **TRAINED, **wrong))) as events:
        told += events
    assert [e for e in told if isinstance(e, Started | Advanced)] == [], told
    assert not (home / "small").exists() and not (home / "small.run").exists()


@pytest.mark.parametrize("token", ["", "hf_nobody_knows"])
def test_a_login_that_may_not_write_is_told_first(home, hub_server, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    hub_server.seed("ns/base", model(num_hidden_layers=DEPTH))
    with pytest.raises(HfPruneError, match="does not accept the login"):
        list(compress(recipe(home, base="ns/base", push_to="ns/small", **TRAINED)))


@pytest.mark.parametrize("after", [{"tasks": ("{home}/other.jsonl",)}, {"report_sequences": 3, "task_items": 2}])
def test_a_corrected_report_trains_nothing_again(home, after):
    (home / "other.jsonl").write_text(
        "".join(json.dumps({"context": f"{i} is", "choices": ["a", "b"], "answer": i % 2}) + "\n" for i in range(8))
    )
    wanted = recipe(home, **TRAINED)
    with closing(compress(wanted)) as events:
        assert next(e for e in events if isinstance(e, Healed))
    corrected = {k: tuple(e.format(home=home) for e in v) if isinstance(v, tuple) else v for k, v in after.items()}
    told = list(compress(wanted.replace(**corrected)))
    steps = [e.done for e in told if isinstance(e, Advanced) and e.stage == "heal" and e.total]
    assert len([s for s in steps if s]) <= 1, steps
    assert finished(told).report["healing"] and [e.name for e in told if isinstance(e, Stage)][-1] == "report"


def test_what_is_trained_decides_the_digest_of_a_training():
    one = Recipe.of(base="ns/x", ratio=0.25, heal="1M")
    same = {"tasks": ("a.jsonl",), "task_items": 3, "lm_eval": ("arc_easy",), "report_sequences": 4, "output": "x"}
    assert one.replace(**same).training_digest == one.training_digest
    for other in ({"heal": "2M"}, {"heal_lr": 0.1}, {"seed": 1}, {"data": ("ns/d",)}, {"ratio": 0.3}, {"length": 64}):
        assert one.replace(**other).training_digest != one.training_digest, other
