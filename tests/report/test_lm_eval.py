import importlib.metadata
import json
import logging
import os
import random
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_scores import score
from hf_prune.data.task_sources import load_tasks
from hf_prune.errors import InvalidData, InvalidRecipe, SourceError, UnsafeSource
from hf_prune.report import lm_eval
from hf_prune.report.lm_eval import HarnessScores, scores
from tests.families import tiny

DATA = """
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
doc_to_text: "{{context}}"
"""
CLOZE = f"""{DATA}
task: cloze
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}, {{metric: acc_norm}}]
metadata: {{version: 1.5}}
"""
SAID = f"""{DATA}
task: said
output_type: generate_until
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{max_gen_toks: 6, do_sample: false, until: ["."]}}
metric_list: [{{metric: exact_match}}, {{metric: bleu}}]
filter_list:
  - {{name: first, filter: [{{function: regex, regex_pattern: "(he)"}}, {{function: take_first}}]}}
  - {{name: whole, filter: [{{function: take_first}}]}}
"""
ROWS = st.lists(st.floats(), max_size=4)
NAMES = st.sampled_from(["acc", "acc_norm", "exact_match,strict", "perplexity"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local task beside its data."""
    lines = (demo_folder() / "tasks" / "stories_cloze.report.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "cloze.yaml").write_text(CLOZE)
    return tmp_path


@pytest.fixture
def runs(monkeypatch) -> list[list[str]]:
    """Names of the tasks of every run; nothing is measured, and lm_eval need not be there."""
    seen: list[list[str]] = []

    def run(model, tokenizer, requests, limit, batch_size, allow_code):
        seen.append([r.task for r in requests])
        for r in requests:
            yield r, found(r.task, float(len(seen)))

    monkeypatch.setattr(lm_eval, "_run", run)
    monkeypatch.setattr(lm_eval, "installed", lambda: "9.9")
    return seen


def anything() -> torch.nn.Module:
    """What `scores` itself asks of a model."""
    made = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    made.device = torch.device("cpu")
    return made


def found(task: str, value: float = 0.5) -> HarnessScores:
    return HarnessScores(task, {"acc": value}, {"acc": True}, {"acc": np.array([0.0, value])}, "lm_eval 9.9, task 1")


def ask(*names: object, model: object = None, cache: Path | None = None, **how: object) -> dict[str, HarnessScores]:
    how = {"digest": "d", "limit": None, "cache": cache, **how}
    return scores(model or anything(), None, [str(n) for n in names], **how)


def same(ours: HarnessScores, theirs: HarnessScores) -> bool:
    np.testing.assert_equal(ours.items, theirs.items)
    np.testing.assert_equal(ours.metrics, theirs.metrics)
    return (ours.task, ours.higher_is_better, ours.version) == (theirs.task, theirs.higher_is_better, theirs.version)


def test_a_second_call_reads_what_the_first_found(folder, runs):
    cache = folder / "deep" / "cache"
    first, second = ask(folder / "cloze.yaml", "piqa", cache=cache), ask("piqa", folder / "cloze.yaml", cache=cache)
    assert runs == [["cloze", "piqa"]]
    assert list(first) == ["cloze", "piqa"] and list(second) == ["piqa", "cloze"]
    assert all(same(first[name], second[name]) and second[name].items["acc"].dtype == np.float64 for name in first)
    files = sorted(p.name for p in cache.iterdir())
    assert len(files) == 2 and files[0].startswith("cloze-") and all(f.endswith(".json") for f in files)
    ask("piqa", "arc_easy", cache=cache)
    ask("piqa")
    assert runs[1:] == [["arc_easy"], ["piqa"]], "without a cache every call runs"


@pytest.mark.parametrize("change", "digest limit version cloze.yaml base.yaml items.jsonl torn other".split())
def test_whatever_decides_the_scores_is_part_of_the_key(folder, runs, monkeypatch, change):
    (folder / "base.yaml").write_text(CLOZE)
    path, cache = folder / "cloze.yaml", folder / "cache"
    path.write_text("include: base.yaml\ntask: cloze\n")
    ask(path, cache=cache)
    (written,) = cache.iterdir()
    how = {"digest": {"digest": "e"}, "limit": {"limit": 3}}.get(change, {})
    if change == "version":
        monkeypatch.setattr(lm_eval, "installed", lambda: "9.10")
    elif change == "torn":
        written.write_text(written.read_text()[:40])
    elif change == "other":
        written.write_text(json.dumps({**json.loads(written.read_text()), "key": "another"}))
    elif "." in change:
        (folder / change).write_text((folder / change).read_text() + "\n")
    again = ask(path, cache=cache, **how)
    assert len(runs) == 2 and again["cloze"].metrics["acc"] == 2.0
    ask(path, cache=cache, **how)
    assert len(runs) == 2


@given(st.dictionaries(NAMES, st.floats()), st.dictionaries(NAMES, st.booleans()), st.dictionaries(NAMES, ROWS))
def test_scores_survive_the_file(tmp_path_factory, values, better, items):
    cache, key = tmp_path_factory.mktemp("cache"), json.dumps({"task": "a/b c"})
    written = HarnessScores("a/b c", values, better, {n: np.array(r) for n, r in items.items()}, "lm_eval 1, task 2")
    lm_eval._write(cache, key, written)
    assert same(lm_eval._read(cache, key), written)
    assert [p.name.split("-")[0] for p in cache.iterdir()] == ["a_b_c"]


def test_a_task_that_fails_leaves_those_before_it_in_the_cache(folder, runs, monkeypatch):
    def run(model, tokenizer, requests, *rest):
        yield requests[0], found("piqa")
        raise SourceError("gone")

    monkeypatch.setattr(lm_eval, "_run", run)
    with pytest.raises(SourceError):
        ask("piqa", "arc_easy", cache=folder / "cache")
    assert [p.name.split("-")[0] for p in (folder / "cache").iterdir()] == ["piqa"]


def test_the_model_and_the_generators_are_left_as_they_were(runs, monkeypatch):
    def run(model, *rest):
        model.eval()
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        yield from ()
        raise SourceError("gone")

    monkeypatch.setattr(lm_eval, "_run", run)
    model = anything()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(SourceError):
        ask("piqa", model=model)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize("debug", ["0", "1"])
def test_only_debugging_lets_lm_eval_speak_and_never_on_stdout(runs, monkeypatch, capsys, debug):
    # Made before the call, as transformers and datasets make theirs.
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [logging.StreamHandler()])

    def run(model, tokenizer, requests, *rest):
        print("printed")
        sys.stderr.write("a bar")
        logging.getLogger("lm_eval").warning("logged")
        yield requests[0], found("piqa")

    monkeypatch.setattr(lm_eval, "_run", run)
    monkeypatch.setenv("HF_PRUNE_DEBUG", debug)
    ask("piqa")
    out, err = capsys.readouterr()
    assert out == "" and all((word in err) == (debug == "1") for word in ("printed", "a bar", "logged"))
    logging.getLogger("lm_eval").warning("afterwards")
    assert "afterwards" in capsys.readouterr().err


def test_a_missing_lm_eval_is_named_with_its_cure(monkeypatch):
    missing = importlib.metadata.PackageNotFoundError("lm_eval")
    monkeypatch.setattr(importlib.metadata, "version", Mock(side_effect=missing))
    with pytest.raises(InvalidRecipe, match=r"pip install 'hf-prune\[eval\]'"):
        ask("piqa")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "Cannot read the task file .*a.yaml"),
        ("- task", "is no table of settings"),
        ("dataset_path: json", "does not describe one task"),
        ("group: g\ntask: [a, b]", "does not describe one task"),
        ("task: a\ninclude: a.yaml", "includes itself"),
        ("task: a\ninclude: [none.yaml]", "Cannot read the task file .*none.yaml"),
        ("task: !!python/name:os.system", "Cannot read the task file"),
    ],
)
def test_malformed_task_files_are_named(folder, runs, text, message):
    (folder / "a.yaml").write_text(text)
    with pytest.raises(InvalidData, match=message) as caught:
        ask(folder / "a.yaml")
    assert "\n" not in str(caught.value) and not runs


@pytest.mark.parametrize(
    "code", ["doc_to_text: !function steal.run", "x: [{metric: !function steal.run}]", "include: below.yaml"]
)
def test_task_files_with_code_are_refused_unless_allowed(folder, runs, code):
    (folder / "below.yaml").write_text("process_docs: !function steal.run\n")
    (folder / "steal.py").write_text(f"open({str(folder / 'stolen')!r}, 'w')\n")
    (folder / "a.yaml").write_text(f"task: a\n{code}\n")
    with pytest.raises(UnsafeSource, match=r"a\.yaml runs Python code \(steal\.run\)"):
        ask(folder / "a.yaml")
    with pytest.raises(UnsafeSource):
        ask("a", include=[folder])
    assert not runs and not (folder / "stolen").exists()
    ask(folder / "a.yaml", allow_code=True, cache=folder / "cache")
    (folder / "steal.py").write_text("# another\n")
    ask(folder / "a.yaml", allow_code=True, cache=folder / "cache")
    assert runs == [["a"]] * 2, "the code a task runs decides its scores"


def test_included_folders_are_searched_for_the_name(folder, runs):
    sub = folder / "sub"
    sub.mkdir()
    for name, text in {"a": "task: [", "b": "dataset_path: json", "mine": "task: piqa\ninclude: b.yaml"}.items():
        (sub / f"{name}.yaml").write_text(text)
    local = lm_eval.request_of("piqa", [folder], False)
    assert (local.path, local.config) == (sub / "mine.yaml", {"task": "piqa", "dataset_path": "json"})
    assert lm_eval.request_of("hellaswag", [folder], False) == lm_eval.Request("hellaswag")


def test_data_beside_the_file_is_found_from_anywhere(folder, runs, monkeypatch):
    monkeypatch.chdir("/")
    (folder / "a.yaml").write_text("task: a\ndataset_kwargs: {data_files: {test: [items.jsonl, none-*.jsonl]}, x: 1}\n")
    config = lm_eval.request_of(os.path.relpath(folder / "a.yaml"), [], False).config
    assert config["dataset_kwargs"] == {"data_files": {"test": [str(folder / "items.jsonl"), "none-*.jsonl"]}, "x": 1}


def test_requests_that_make_no_sense_are_refused(folder, runs):
    (folder / "again.yaml").write_text(CLOZE)
    with pytest.raises(InvalidRecipe, match="'cloze' is asked for twice"):
        ask(folder / "cloze.yaml", folder / "again.yaml")
    with pytest.raises(InvalidRecipe, match="limit is 0"):
        ask("piqa", limit=0)
    assert not runs and ask() == {}


def row(doc: int, kind: str = "none", **values: object) -> dict[str, object]:
    return {"doc_id": doc, "filter": kind, "metrics": list(values), **values}


def collected(metrics: dict[str, object], rows: list[dict[str, object]], **better: bool | None) -> HarnessScores:
    parts = {"results": {"alias": "t", **metrics}, "samples": rows, "higher_is_better": better, "versions": 2.0}
    return lm_eval._collected("t", "t", {name: {"t": part} for name, part in parts.items()})


def test_one_filter_loses_its_name_and_items_come_in_order(runs):
    rows = [row(2, acc=1, f1=0.5, bleu=("a", "b")), row(0, acc=True, bleu=("a", "b")), row(1, acc=np.float32(0), f1=1)]
    metrics = {"acc,none": 2 / 3, "acc_stderr,none": "N/A", "f1,none": 1, "bleu,none": 3.0}
    scored = collected(metrics, rows, acc=True, f1=None)
    assert scored.metrics == {"acc": 2 / 3, "f1": 1.0, "bleu": 3.0}
    assert scored.higher_is_better == {"acc": True}
    np.testing.assert_equal(scored.items, {"acc": np.array([1.0, 0, 1]), "f1": np.array([np.nan, 1, 0.5])})
    assert scored.version == "lm_eval 9.9, task 2.0"


def test_several_filters_keep_their_names(runs):
    rows = [row(1, "loose", em=1), row(0, "loose", em=1), row(0, "strict", em=0), row(1, "strict", em=1)]
    scored = collected({"em,loose": 1.0, "em_stderr,loose": "N/A", "em,strict": 0.5}, rows, em=True)
    assert scored.metrics == {"em,loose": 1.0, "em,strict": 0.5}
    assert scored.higher_is_better == {"em,loose": True, "em,strict": True}
    np.testing.assert_equal(scored.items, {"em,loose": np.array([1.0, 1]), "em,strict": np.array([0.0, 1])})


@pytest.fixture(scope="module", params=["stories260K", "storymath-16l"])
def pair(request):
    home = demo_folder() / request.param
    return AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32), AutoTokenizer.from_pretrained(home)


@pytest.fixture
def offline(monkeypatch):
    """No look at the Hub, the stand-in's neither, and be it one whose failure is passed over."""
    tried = []
    monkeypatch.setattr("socket.socket.connect", lambda _, address: tried.append(address) or 1 / 0)
    yield
    assert not tried


@pytest.mark.slow
def test_lm_eval_and_our_tasks_agree_item_by_item(pair, folder, offline, capfd, monkeypatch):
    model, tokenizer = pair
    monkeypatch.chdir(folder)
    ours = score(model.eval(), tokenizer, load_tasks([folder / "items.jsonl"])[0])
    padding = tokenizer.pad_token, tokenizer.padding_side
    model.train()
    capfd.readouterr()
    theirs = scores(model, tokenizer, ["cloze.yaml"], digest="d", limit=None, cache=folder / "cache")["cloze"]
    assert capfd.readouterr() == ("", "")
    assert theirs.metrics == {"acc": ours.accuracy, "acc_norm": ours.accuracy_norm}
    np.testing.assert_array_equal(theirs.items["acc"], ours.correct)
    np.testing.assert_array_equal(theirs.items["acc_norm"], ours.correct_norm)
    assert theirs.higher_is_better == {"acc": True, "acc_norm": True}
    assert theirs.version == f"lm_eval {importlib.metadata.version('lm_eval')}, task 1.5"
    assert all(m.training for m in model.modules()) and (tokenizer.pad_token, tokenizer.padding_side) == padding
    assert {p.name for p in folder.iterdir()} == {"items.jsonl", "cloze.yaml", "cache"}
    again = scores(None, None, [str(folder / "cloze.yaml")], digest="d", limit=None, cache=folder / "cache")
    assert same(again["cloze"], theirs)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("pair", ["stories260K"], indirect=True)
def test_other_families_agree_too(pair, folder, offline, family):
    # Longer than every context: where one is cut, lm_eval keeps a token more than we do.
    places = {"n_positions" if family == "gpt2" else "max_position_embeddings": 300}
    model = tiny(family, vocab_size=len(pair[1]), **places)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters(remove_duplicate=False)}
    ours = score(model, pair[1], load_tasks([folder / "items.jsonl"])[0])
    theirs = scores(model, pair[1], [str(folder / "cloze.yaml")], digest="d", limit=None, cache=None)["cloze"]
    np.testing.assert_array_equal(theirs.items["acc"], ours.correct)
    np.testing.assert_array_equal(theirs.items["acc_norm"], ours.correct_norm)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[n].data_ptr() == place and torch.equal(after[n], value) for n, (place, value) in before.items())


@pytest.mark.slow
def test_batches_limits_and_company_do_not_change_a_task(pair, folder, offline):
    (folder / "said.yaml").write_text(SAID)
    both = scores(*pair, [f"{folder}/said.yaml", f"{folder}/cloze.yaml"], digest="d", limit=6, cache=None, batch_size=1)
    alone = scores(*pair, ["cloze"], digest="d", limit=None, cache=None, include=[folder])
    np.testing.assert_array_equal(both["cloze"].items["acc"], alone["cloze"].items["acc"][:6])
    assert set(both["said"].metrics) == {f"{m},{f}" for m in ("exact_match", "bleu") for f in ("first", "whole")}
    assert set(both["said"].items) == {"exact_match,first", "exact_match,whole"}


@pytest.mark.slow
def test_code_runs_only_where_it_is_allowed(pair, folder, offline):
    (folder / "text.py").write_text("def context(doc):\n    return doc['context']\n")
    (folder / "coded.yaml").write_text(CLOZE.replace('"{{context}}"', "!function text.context"))
    (folder / "sly.yaml").write_text(CLOZE.replace("{{context}}", "{{context.__class__.__mro__}}"))
    (folder / "hub.yaml").write_text(CLOZE.replace("metric: acc,", "metric: someone/metric,"))
    how = {"digest": "d", "limit": 4, "cache": None}
    plain = scores(*pair, [str(folder / "cloze.yaml")], **how)["cloze"]
    coded = scores(*pair, [str(folder / "coded.yaml")], allow_code=True, **how)["cloze"]
    assert same(plain, coded)
    with pytest.raises(UnsafeSource, match="template of the task 'cloze' would run code"):
        scores(*pair, [str(folder / "sly.yaml")], **how)
    with pytest.raises(UnsafeSource, match="metric 'someone/metric' from a script"):
        scores(*pair, [str(folder / "hub.yaml")], **how)
    assert same(scores(*pair, [str(folder / "cloze.yaml")], **how)["cloze"], plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("items.jsonl", "none.jsonl", "cannot load the task 'cloze' .*none.jsonl"),
        ("{{context}}", "{{nothing}}", "'nothing' is undefined"),
        ("multiple_choice", "guessing", "cannot load the task 'cloze'"),
        ("{{context}}", "{{choices[answer + 1]}}", "cannot score the task 'cloze' .*every document has the fields"),
        ("task: cloze", f"task: cloze\ntarget_delimiter: {'word ' * 999}", "cannot score .*longer than the model's"),
    ],
)
@pytest.mark.parametrize("pair", ["stories260K"], indirect=True)
def test_tasks_that_do_not_fit_their_data_are_named(pair, folder, offline, old, new, message):
    (folder / "cloze.yaml").write_text(CLOZE.replace(old, new))
    with pytest.raises(InvalidData, match=message):
        scores(*pair, [str(folder / "cloze.yaml")], digest="d", limit=None, cache=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hellaswagg", InvalidRecipe, "has no task 'hellaswagg'; did you mean hellaswag,"),
        ("mmlu", InvalidRecipe, "'mmlu' is a group of tasks in lm_eval; name members, such as mmlu_humanities"),
        ("humaneval", UnsafeSource, "'humaneval' runs code that the model writes"),
        ("hellaswag", SourceError, "cannot load the task 'hellaswag' .*check the connection"),
    ],
)
@pytest.mark.parametrize("pair", ["stories260K"], indirect=True)
def test_names_lm_eval_does_not_know_or_cannot_load(pair, monkeypatch, name, error, message):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message):
        scores(*pair, [name], digest="d", limit=2, cache=None)
