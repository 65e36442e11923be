"""Tasks from everywhere: the search gets the training side, the report the held-out side, and never the same items."""

import io
import json

import pytest
import torch
from huggingface_hub.errors import HTTPError
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune import hub
from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_sources import check_apart, load_standard, load_tasks
from hf_prune.data.tasks import Item, Task
from hf_prune.errors import InvalidData, InvalidRecipe, UnsafeSource
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.models.inference import family_of
from hf_prune.report import lm_eval
from hf_prune.session.session import open_session
from tests.runs import relatives, stitching

YAML = """
task: cloze
dataset_path: json
dataset_kwargs: {data_files: {train: first.jsonl, test: second.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def rows(first, count):
    return [{"context": f"number {i} is", "choices": ["odd", "even"], "answer": 1 - i % 2} for i in range(first, count)]


def jsonl(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def parquet(lines):
    import pyarrow
    from pyarrow import parquet as format

    out = io.BytesIO()
    format.write_table(pyarrow.Table.from_pylist(lines), out)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    jsonl(tmp_path / "first.jsonl", rows(0, 20))
    jsonl(tmp_path / "second.jsonl", rows(20, 30))
    (tmp_path / "cloze.yaml").write_text(YAML)
    return tmp_path


# lm_eval


def test_a_search_gets_the_training_side_of_a_task_of_lm_eval(folder):
    path = str(folder / "cloze.yaml")
    (searched,), (reported,) = load_tasks([path], "search"), load_tasks([path])
    assert (searched.name, searched.kind, len(searched.items), len(reported.items)) == ("cloze", "choice", 20, 10)
    assert searched.items[1] == Item("number 1 is", ("odd", "even"), 0, " ")
    check_apart([searched], [reported])


def test_a_task_with_a_test_split_alone_is_searched_on_by_force_only(folder):
    path = folder / "cloze.yaml"
    path.write_text(YAML.replace("training_split: train\n", "").replace("train: first.jsonl, ", ""))
    with pytest.raises(InvalidData, match="only the split it is scored on.*--force-test-split"):
        load_tasks([path], "search")
    (forced,) = load_tasks([path], "search", force=True)
    with pytest.raises(InvalidData, match="10 items of the search task cloze are also in the report's cloze"):
        check_apart([forced], load_tasks([path]))


def test_a_validation_split_will_do_where_the_test_split_is_scored(folder):
    path = folder / "cloze.yaml"
    path.write_text(YAML.replace("training_split", "validation_split"))
    assert len(load_tasks([path], "search")[0].items) == 20


def test_generated_answers_and_lists_of_targets_are_exact_matches(folder):
    path = folder / "cloze.yaml"
    path.write_text(
        YAML.replace("multiple_choice", "generate_until").replace("doc_to_choice: choices\n", "")
        .replace("doc_to_target: answer", 'doc_to_target: "{{choices[answer]}}"')
        .replace("metric_list: [{metric: acc}, {metric: acc_norm}]", "metric_list: [{metric: exact_match}]")
    )  # fmt: skip
    (task,) = load_tasks([path], "search")
    assert task.kind == "exact" and task.items[0] == Item("number 0 is", ("even",), 0, " ") and task.chance == 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            ("doc_to_target: answer", "doc_to_target: nothing"),
            InvalidData,
            "does not fit its data",
        ),
        (("multiple_choice", "loglikelihood_rolling"), InvalidRecipe, "neither of multiple choice"),
        (('"{{context}}"', '"{{context.__class__.__mro__}}"'), UnsafeSource, "would run code"),
        (("doc_to_choice: choices", "doc_to_choice: !function code.choices"), UnsafeSource, "runs Python code"),
    ],
)
def test_tasks_that_cannot_be_asked_are_refused(folder, change, error, says):
    path = folder / "cloze.yaml"
    path.write_text(YAML.replace(*change))
    with pytest.raises(error, match=says):
        load_tasks([path], "search")


@pytest.mark.slow
def test_the_sweeps_accuracies_are_those_of_lm_eval(tmp_path):
    lines = (demo_folder() / "tasks" / "wiki_cloze.report.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    (tmp_path / "first.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    (tmp_path / "second.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for extra in ("", 'target_delimiter: ""\n', 'description: "Choose well.\\n\\n"\n'):
        (tmp_path / "cloze.yaml").write_text(YAML + extra)
        tasks = load_tasks([tmp_path / "cloze.yaml"])
        tokenizer = AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")
        model = AutoModelForCausalLM.from_pretrained(demo_folder() / "storymath-16l", dtype=torch.float32).eval()
        dense = Dense(model, family_of(model.config))
        exam = Exam(dense, tasks, tokenizer)
        assert exam.packed
        with torch.inference_mode():
            found = [s.scores(dense, s.hidden[-1]) for s in exam.sheets(0, 60)]
        (ours,) = exam.judged(0, 60, found)
        path = str(tmp_path / "cloze.yaml")
        theirs = lm_eval.scores(model, tokenizer, [path], digest="d", limit=None, cache=None)["cloze"]
        assert ours.accuracy == theirs.metrics["acc"] and ours.accuracy_norm == theirs.metrics["acc_norm"], extra


# datasets

LAYOUTS = {
    "ours": rows(0, 4)[1],
    "arc": {"question": "is 1", "choices": {"text": ["odd", "even"], "label": ["A", "B"]}, "answerKey": "A"},
    "mmlu": {"question": "is 1", "choices": ["odd", "even"], "answer": 0},
    "swag": {"ctx": "number 1 is", "endings": ["odd", "even"], "label": "0"},
    "piqa": {"goal": "is 1", "sol1": "odd", "sol2": "even", "label": 0},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_layouts_of_datasets_are_read(hub_server, layout):
    names = {s: parquet([LAYOUTS[layout]] * n) for s, n in {"train": 5, "validation": 3, "test": 2}.items()}
    files = {f"data/{s}-00000-of-00001.parquet": content for s, content in names.items()}
    hub_server.seed("ns/quiz", files, "dataset")
    (searched,), (reported,) = load_tasks(["ns/quiz"], "search"), load_tasks(["ns/quiz"])
    assert (searched.name, len(searched.items), len(reported.items)) == ("quiz", 5, 3)
    assert searched.items[0].choices == ("odd", "even") and searched.items[0].answer == 0
    assert len(load_tasks(["ns/quiz:default:test"])[0].items) == 2
    with pytest.raises(InvalidData, match="public test split.*--force-test-split"):
        load_tasks(["ns/quiz:default:test"], "search")
    assert load_tasks(["ns/quiz:default:test"], "search", force=True)


def test_standard_tasks_are_read_as_far_as_the_hub_has_them(hub_server, tmp_path, monkeypatch):
    # A folder of that name here is not meant.
    (tmp_path / "ns" / "quiz").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    hub_server.seed("ns/quiz", {"data/test-00000-of-00001.parquet": parquet([LAYOUTS["arc"]] * 3)}, "dataset")
    ((task,), why) = load_standard(["ns/quiz:default"], hub.has_answer)
    assert task.name == "quiz" and len(task.items) == 3 and why is None
    ((task,), why) = load_standard(["ns/none", "ns/quiz:default"], hub.has_answer)
    assert task.name == "quiz" and why.startswith("Not all standard tasks are measured: ns/none left out, since ")


def test_without_a_hub_standard_tasks_are_left_out_at_once_and_said_to_be(monkeypatch):
    def dead(self, repo, timeout):
        asked.append(repo)
        raise HTTPError("no route")

    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dead)
    monkeypatch.setattr("hf_prune.data.task_sources.load_tasks", lambda *a: pytest.fail("nobody is there"))
    found, why = load_standard(["ns/quiz", "ns/other:main"], hub.has_answer)
    assert found == () and asked == ["ns/quiz"]
    assert why == (
        "No task is measured: ns/quiz, ns/other:main left out, since the Hub cannot be reached. Name tasks of your own "
        "with --tasks."
    )


def test_datasets_without_what_is_needed_are_named(hub_server):
    hub_server.seed("ns/odd", {"data/train-00000-of-00001.parquet": parquet([{"text": "a", "label": 1}])}, "dataset")
    with pytest.raises(InvalidData, match="columns text, label, which are no layout"):
        load_tasks(["ns/odd"], "search")
    with pytest.raises(InvalidData, match="has no validation or test split for the report"):
        load_tasks(["ns/odd"])
    hidden = [{"ctx": "a", "endings": ["b", "c"], "label": ""}]
    hub_server.seed("ns/hidden", {"data/train-00000-of-00001.parquet": parquet(hidden)}, "dataset")
    with pytest.raises(InvalidData, match="Row 0 .* no answer among its options"):
        load_tasks(["ns/hidden"], "search")


# the run


def test_a_run_refuses_to_report_items_it_searched_on(tmp_path):
    home = relatives(tmp_path)
    items = jsonl(home / "a.search.jsonl", rows(0, 12))
    again = jsonl(home / "b.report.jsonl", rows(4, 16))
    recipe = stitching(home, search_tasks=(str(items),), tasks=(str(again),), search_items=4, selection_items=4)
    with pytest.raises(InvalidData, match="8 items of the search task a are also in the report's b"):
        open_session(recipe).evaluator  # noqa: B018


@pytest.mark.parametrize(("more", "words"), [({}, "search_items"), ({"tune": 1, "tune_items": 9}, "tune_items")])
def test_a_run_says_which_items_a_task_lacks(tmp_path, more, words):
    home = relatives(tmp_path)
    items = jsonl(home / "a.search.jsonl", rows(0, 12))
    recipe = stitching(home, search_tasks=(str(items),), objective="doubt", search_items=8, selection_items=5, **more)
    need = 14 if more else 13
    with pytest.raises(InvalidData, match=f"task a has 12 items, but {words} and selection_items ask for {need}"):
        open_session(recipe).evaluator  # noqa: B018


def test_two_tasks_of_one_name_are_refused(folder):
    with pytest.raises(InvalidData, match="Two tasks are called 'first'"):
        load_tasks([folder / "first.jsonl", folder / "first.jsonl"])
    check_apart([], [Task("t", (Item("a", ("b",), 0),), "exact")])
