"""The pipeline in one process: every search and method ends with a model that loads; nothing is left half-done."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import compress, run
from hf_prune.blueprint import Blueprint
from hf_prune.errors import InvalidRecipe, ReloadMismatch
from hf_prune.events import Advanced, Assembled, Finished, Forecasted, Pushed, Reported, Scored, Stage, Started
from hf_prune.recipe import Recipe
from hf_prune.search import SEARCHERS
from tests.data.test_task_sources import parquet
from tests.runs import DEPTH, leftovers, recipe, searched, text


def removed(folder):
    layers = json.loads((Path(folder) / "report.json").read_text())["layers"]
    return [x["source"] for x in layers if x["fate"] == "removed"]


def strict(path):
    """JSON as the standard has it: no NaN, no Infinity."""
    return json.loads(Path(path).read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def done(home):
    """One finished run that several tests look at, with its events."""
    events = list(compress(recipe(home, ratio=0.3)))
    return home / "small", events


def test_events_come_in_order_and_end_with_the_final_name(done):
    folder, events = done
    kinds = [type(e) for e in events if not isinstance(e, Scored | Advanced)]
    stages = [e.name for e in events if isinstance(e, Stage)]
    assert stages == ["pull", "check", "calibrate", "baselines", "search", "select", "assemble", "report"]
    assert (
        kinds[:3] == [Stage, Forecasted, Started] and kinds[-3:] == [Stage, Reported, Finished] and Assembled in kinds
    )
    started = next(e for e in events if isinstance(e, Started))
    assert started.depth == DEPTH and started.target == f"remove 2 of {DEPTH} layers" and started.evaluations == 24
    scored = [e for e in events if isinstance(e, Scored)]
    assert all(o.values for e in scored for o in e.outcomes) and events[-1].folder == str(folder)


def test_the_folder_is_complete_and_the_run_is_cleared_away(done, home):
    folder, _ = done
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "report.json", "blueprint.json",
            "recipe.yaml", "journal.jsonl"} <= {p.name for p in folder.iterdir()}  # fmt: skip
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "layers.png",
        "search.png",
        "comparison.png",
        "capabilities.png",
    }
    assert leftovers(home) == []
    report = strict(folder / "report.json")
    blueprint = Blueprint.from_json((folder / "blueprint.json").read_text())
    assert report["digest"] == blueprint.digest and len(blueprint.layers) == 4


def test_figures_are_taken_on_text_that_the_search_has_not_seen(done):
    report = strict(done[0] / "report.json")
    splits = report["splits"]
    assert [splits[s]["windows"] for s in ("search", "selection", "report")] == [4, 4, 6]
    both = report["text"]["all"]
    assert both["tokens"] == 6 * 31 and both["dense"]["perplexity"] > 1 and both["kl"] > 0
    assert {b["name"] for b in report["baselines"]} == {"hf_prune", "random", "last", "shortgpt", "window", "greedy"}
    assert all(b["layers"] == 4 for b in report["baselines"])
    low, high = both["dense"]["ci"]
    assert low < both["dense"]["perplexity"] < high and report["certificate"]["ok"]


def test_the_miss_of_the_asked_ratio_is_in_report_and_card(done):
    size = strict(done[0] / "report.json")["size"]
    assert size["miss"] == pytest.approx(size["removed_ratio"] - 0.3) and abs(size["miss"]) > 1e-3
    assert "Whole units rarely add up" in (done[0] / "README.md").read_text()


def test_no_local_path_and_no_login_in_what_is_published(done, home):
    for path in done[0].rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(home).encode() not in content and b"hf_ns_secret" not in content, path.name


def test_the_same_call_again_changes_nothing(done, home):
    before = {p: p.stat().st_mtime_ns for p in done[0].rglob("*")}
    events = list(compress(recipe(home, ratio=0.3)))
    assert [type(e) for e in events] == [Stage, Finished] and events[1].report == strict(done[0] / "report.json")
    assert {p: p.stat().st_mtime_ns for p in done[0].rglob("*")} == before


def test_another_recipe_does_not_touch_a_finished_folder_unless_told(done, home, tmp_path):
    before = (done[0] / "model.safetensors").read_bytes()
    with pytest.raises(InvalidRecipe, match="--overwrite"):
        run(recipe(home, ratio=0.5))
    assert (done[0] / "model.safetensors").read_bytes() == before
    shutil.copytree(done[0], tmp_path / "small")
    run(recipe(tmp_path, drop=("2",), baselines=(), overwrite=True))
    assert removed(tmp_path / "small") == [2] and leftovers(tmp_path) == []


def test_a_folder_whose_report_is_broken_is_no_result(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small/report.json").write_text('{"version": 1, "size": ')
    with pytest.raises(InvalidRecipe, match="--overwrite"):
        run(recipe(tmp_path, ratio=0.3))


def test_the_result_in_python(done, home, hub_server, tmp_path):
    result = run(recipe(home, ratio=0.3))
    assert result.model.config.num_hidden_layers == 4 and result.front is None
    assert result.report["text"]["all"]["dense"]["perplexity"] > 1
    copy = result.save_pretrained(tmp_path / "copy")
    assert (copy / "model.safetensors").read_bytes() == (done[0] / "model.safetensors").read_bytes()
    with pytest.raises(InvalidRecipe, match="exists"):
        result.save_pretrained(copy)
    url = result.push_to_hub("ns/small", private=True, commit_message="Smaller")
    made = hub_server.repo("ns/small")
    assert url.endswith("/ns/small") and made.private and made.commits[made.head].title == "Smaller"
    result.push_to_hub("ns/small", create_pr=True)
    assert len(made.pulls) == 0 and len(made.commits) == 2


def test_a_run_publishes_when_asked(done, home, hub_server):
    wanted = recipe(home, ratio=0.3, push_to="ns/small")
    first, second = ([e for e in compress(wanted) if isinstance(e, Pushed)][0] for _ in range(2))
    assert first.changed and not second.changed and first.commit == second.commit


@pytest.mark.slow
@pytest.mark.parametrize("search", [s for s in SEARCHERS if s not in ("nsga2", "smac")])
def test_every_search_comes_to_a_model_of_the_size_asked(tmp_path, search):
    assert searched(recipe(tmp_path, keep_layers=4, search=search, baselines=())) == "4 layers"


@pytest.mark.slow
def test_the_last_layers_are_the_last(tmp_path):
    result = run(recipe(tmp_path, keep_layers=4, search="last", baselines=()))
    assert removed(result.folder) == [4, 5] and result.report["search"] == "last"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "search"), [("halves", "staged"), ("intervals", "staged"), ("collapse", "nsga2"), ("halves", "nsga2")]
)
def test_every_method_ends_with_a_model(tmp_path, method, search):
    size = {} if search == "nsga2" else {"keep_layers": 4}
    result = run(recipe(tmp_path, method=method, search=search, baselines=("last",), **size))
    model = AutoModelForCausalLM.from_pretrained(result.folder)
    assert torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all()
    assert 0 < result.report["size"]["removed_ratio"] < 1 or search == "nsga2"
    if search == "nsga2":
        front = strict(result.folder / "front.json")["front"]
        assert result.report["front"] == [{k: v for k, v in m.items() if k != "blueprint"} for m in front]
        pairs = [(m["removed_ratio"], m["kl"]) for m in front]
        assert pairs == sorted(pairs) and all(a[1] <= b[1] for a, b in itertools.pairwise(pairs))
        assert sum(m["knee"] for m in front) == 1 and (result.folder / "figures/front.png").is_file()
        volumes = [v for _, v in result.report["hypervolume"]]
        assert volumes == sorted(volumes) and volumes[-1] > 0


@pytest.mark.parametrize(("drop", "gone"), [(("1-2",), [1, 2]), (("0,2", "5"), [0, 2, 5])])
def test_layers_dropped_by_hand_are_those_and_no_others(tmp_path, drop, gone):
    result = run(recipe(tmp_path, drop=drop, baselines=()))
    assert removed(result.folder) == gone and result.report["search"] == "by hand"
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (result.folder, tmp_path / "base"))
    kept = [i for i in range(DEPTH) if i not in gone]
    for i, source in enumerate(kept):
        key = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(ours[key.format(i)], theirs[key.format(source)])


def test_a_result_that_does_not_reload_leaves_nothing_but_the_journal(tmp_path, monkeypatch):
    import hf_prune.pipeline as pipeline

    write = pipeline.write

    def damaged(blueprint, parents, folder, *patches):
        stored = write(blueprint, parents, folder, *patches)
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-4000:] = bytes(4000)
        (folder / "model.safetensors").write_bytes(content)
        return stored

    monkeypatch.setattr(pipeline, "write", damaged)
    with pytest.raises(ReloadMismatch, match="reloads as another model"):
        run(recipe(tmp_path, drop=("1",), baselines=()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "small.run", "text.txt"]


def test_a_target_out_of_reach_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InvalidRecipe, match="ask for between"):
        run(recipe(tmp_path, ratio=0.99))
    with pytest.raises(InvalidRecipe, match="layers are 0 to 5"):
        run(recipe(tmp_path, drop=("9",)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "text.txt"]


def test_a_recipe_file_and_its_folder_make_the_same_run(done, home):
    again = Recipe.load(done[0] / "recipe.yaml", base=str(home / "base"), data=(str(text(home / "text.txt")),),
                        output=str(home / "small"), tasks=recipe(home).tasks.names)  # fmt: skip
    assert again.digest == recipe(home, ratio=0.3).digest


def test_without_named_tasks_the_standard_ones_are_asked_and_what_is_missing_is_said(hub_server, tmp_path):
    question = {"question": "the cat sat", "choices": {"text": ["on", "dog"], "label": ["A", "B"]}, "answerKey": "A"}
    files = {"ARC-Easy/test-00000-of-00001.parquet": parquet([question] * 4), "README.md": b"""---
configs:
- config_name: ARC-Easy
  data_files:
  - split: test
    path: ARC-Easy/test-*
---
"""}  # fmt: skip
    hub_server.seed("allenai/ai2_arc", files, "dataset")
    events = list(compress(recipe(tmp_path, tasks=(), drop=("2",), baselines=())))
    (said,) = [e.detail for e in events if isinstance(e, Stage) and e.name == "tasks"]
    report, card = events[-1].report, (tmp_path / "small/README.md").read_text()
    assert "allenai/openbookqa:main, baber/piqa left out" in said and report["left_out"] == said
    assert list(report["tasks"]) == ["ARC-Easy"] and "ARC-Easy accuracy (4 items" in card
    assert "Not all standard tasks are measured" in card and "cloze" not in card
