"""Whole runs of width: from a command to a certified model of several widths, published, resumed, trained."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from hf_prune.blueprint import Blueprint
from hf_prune.errors import InvalidBlueprint, InvalidRecipe
from hf_prune.pipeline import compress, run
from hf_prune.recovery.levels import Levels
from hf_prune.report.schema.report import Report
from hf_prune.report.text import report_lines
from hf_prune.report.verdicts import percent
from hf_prune.results import assemble_blueprint, heal_folder, report_folder
from tests.runs import TASKS, base, command, finished, recipe, searched, text

WIDTH = {"method": "width", "ratio": 0.3, "levels": 6, "multiple_of": 8, "library_sequences": 12,
         "baselines": ("uniform", "errors", "wanda", "magnitude")}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("width")
    base(home / "base")
    text(home / "text.txt")
    return home


def asked(home, name="out", **changes):
    fixed = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "library": str(home / "levels"), **WIDTH}
    return recipe(home, **{**fixed, "output": str(home / name), **changes})


@pytest.fixture(scope="module")
def done(home):
    return run(asked(home))


def test_a_run_ends_with_a_certified_model_of_several_widths(done):
    report = done.report
    size = report["size"]
    assert report["certificate"]["ok"] and report["certificate"]["without_hf_prune"]
    assert 0.29 <= size["removed_ratio"] and size["pruned"]["parameters"] == size["pruned"]["active_parameters"]
    assert {b["name"] for b in report["baselines"]} == {"hf_prune", "uniform", "errors", "wanda", "magnitude"}
    assert all(b["parameters"] <= 0.71 * size["dense"]["parameters"] for b in report["baselines"])
    assert len({(w["heads"], w["neurons"]) for w in report["widths"]}) > 1
    assert (done.folder / "figures" / "widths.png").is_file() and (done.folder / "modeling_pruned.py").is_file()
    card = (done.folder / "README.md").read_text()
    assert "trust_remote_code=True" in card and "import hf_prune" in card
    assert done.model.config.model_type == "pruned_llama"


def test_a_process_without_hf_prune_needs_the_file_beside_the_weights(done):
    code = f"""
        import sys
        sys.modules["hf_prune"] = None
        from transformers import AutoModelForCausalLM
        try:
            AutoModelForCausalLM.from_pretrained({str(done.folder)!r}, trust_remote_code=False)
        except ValueError as e:
            print("refused", "trust_remote_code" in str(e))
        model = AutoModelForCausalLM.from_pretrained({str(done.folder)!r}, trust_remote_code=True)
        print(type(model).__name__, model.generate(max_new_tokens=3).shape[1])
    """
    said = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["refused", "True", "PrunedLlamaForCausalLM", "4"]


@pytest.mark.slow
def test_the_library_serves_every_ratio(done, home, monkeypatch):
    monkeypatch.setattr("hf_prune.recovery.levels.build", None)
    other = run(asked(home, "smaller", ratio=0.45, baselines=("uniform",)))
    assert 0.44 <= other.report["size"]["removed_ratio"]


def left(asked, stage, after):
    """Start, and leave when a stage has told of itself so often."""
    events, seen = compress(asked), 0
    for event in events:
        seen += (getattr(event, "stage", "") or {"Scored": "search"}.get(type(event).__name__)) == stage
        if seen == after:
            break
    events.close()
    assert seen == after


@pytest.mark.slow
def test_left_in_library_search_and_training_it_goes_on_and_ends_the_same(home, monkeypatch):
    monkeypatch.setattr("hf_prune.session.session.BATCH", 4)
    trained = {"heal": "4k", "heal_batch": 4, "heal_checks": 4, "heal_lr": 1e-3, "baselines": ()}
    whole, mine = asked(home, "whole", **trained), asked(home, "left", **trained, library=str(home / "other"))
    levels, work = home / "other" / "obs", home / "left.run"
    left(mine, "library", 3)
    assert (levels / "layer-001.safetensors").is_file() and not (levels / "manifest.json").exists()
    left(mine, "search", 4)
    assert (levels / "manifest.json").is_file() and (work / "journal.jsonl").is_file()
    scored = (work / "journal.jsonl").read_text()
    left(mine, "heal", 12)
    assert list(work.glob("heal-*/checkpoint-*/complete"))
    again, whole = run(mine), run(whole)
    assert again.report["healing"]["tokens"] > 0 and again.model.config.model_type == "pruned_llama"
    assert again.report["digest"] == whole.report["digest"]
    assert (again.folder / "journal.jsonl").read_text().startswith(scored)
    assert (again.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_finalists_may_be_trained_before_the_choice(home):
    result = run(asked(home, "aware", search_heal="500", baselines=()))
    assert result.report["selection"]["means"] == ["trained"]


@pytest.mark.slow
def test_a_front_over_all_sizes_comes_from_one_library(home):
    result = run(asked(home, "front", ratio=None, search="nsga2", evaluations=40))
    sizes = [member["parameters"] for member in result.front]
    assert len(set(sizes)) > 2


@pytest.mark.slow
def test_width_and_depth_may_remove_whole_layers(home):
    result = run(asked(home, "both", method="width+depth", ratio=0.6, evaluations=60))
    assert result.report["certificate"]["ok"]


@pytest.mark.slow
@pytest.mark.parametrize("search", ["genetic", "evopress", "random", "greedy"])
def test_other_searches_come_to_a_model(home, search):
    assert searched(asked(home, search, search=search, baselines=())) == "6 layers"


@pytest.mark.slow
def test_from_the_hub_to_the_hub(hub_server, home, tmp_path):
    hub_server.seed("ns/base", home / "base")
    flags = ["--method", "width", "--ratio", "0.3", "--levels", "6", "--multiple-of", "8", "--library-sequences", "12",
             "--length", "32", "--sequences", "4", "--selection-sequences", "4", "--report-sequences", "6",
             "--evaluations", "24", "--task-items", "4", "--data", home / "text.txt", "--library", home / "levels-hub",
             "--output", tmp_path / "small", "--push-to", "ns/small"]  # fmt: skip
    done = command("compress", "ns/base", *flags)
    assert done.returncode == 0, done.stderr
    assert {"modeling_pruned.py", "config.json", "README.md"} <= set(hub_server.repo("ns/small").at("main").tree)
    raw = json.loads(hub_server.storage.read(hub_server.repo("ns/small"), "config.json"))
    assert raw["model_type"] == "pruned_llama" and raw["per_layer_config"] and raw["auto_map"]
    loaded = AutoModelForCausalLM.from_pretrained("ns/small")
    assert Blueprint.from_json((tmp_path / "small" / "blueprint.json").read_text()).layers[0] is not None
    assert sum(p.numel() for p in loaded.parameters()) < 0.71 * 10**6


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keep_layers": 3, "ratio": None}, "removes heads and neurons"),
        ({"repair": True}, "repaired already"),
        ({"search": "shortgpt"}, "does not know the genes of method width"),
        ({"levels": 1}, "levels must be at least 2"),
        ({"latency": 1.5, "ratio": None}, "between 0 and 1"),
        ({"latency": 0.5}, "not ratio and latency"),
    ],
)
def test_what_width_cannot_do_is_refused(home, changes, says):
    with pytest.raises(InvalidRecipe, match=says):
        asked(home, **changes)


def test_more_than_the_layers_hold_is_refused(home):
    with pytest.raises(InvalidRecipe, match="more than the layers hold"):
        run(asked(home, "none", ratio=0.99))


@pytest.mark.slow
def test_time_may_be_the_budget(home):
    result = run(asked(home, "timed", ratio=None, latency=0.8, evaluations=30))
    latency = result.report["latency"]
    assert latency["asked"] == 0.8 and latency["predicted"]["request"] <= 0.801
    # On a busy machine nothing is measured, and nothing said.
    quiet = result.report["speed"]["pruned"]["decode_tokens_per_s"] is not None
    assert all(m > 0 if quiet else m is None for m in latency["measured"].values())
    assert all(len(phase["mlp"]) == 7 and phase["mlp"][-1] == 0 for phase in latency["table"].values())
    said = f"(224 tokens in, 32 out); the table of levels predicts {percent(latency['predicted']['request'])}"
    lines = report_lines(Report.load(result.folder / "report.json"))
    assert said in (result.folder / "README.md").read_text() and said in "\n".join(lines)


@pytest.mark.slow
def test_it_is_measured_again_and_trained_later(done, home, tmp_path):
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "tasks": TASKS,
             "library": str(home / "levels")}  # fmt: skip
    again = finished(report_folder(done.folder, output=tmp_path / "again", report_sequences=4, **given)).report
    assert again["digest"] == done.report["digest"] and len(again["baselines"]) == 5
    *_, end = heal_folder(done.folder, output=tmp_path / "healed", heal="1k", heal_batch=4, **given)
    assert end.report["certificate"]["ok"] and end.report["healing"]
    with pytest.raises(InvalidBlueprint, match="cannot be made again from this text"):
        elsewhere = {**given, "library": str(tmp_path / "empty")}
        list(report_folder(done.folder, output=tmp_path / "no", library_sequences=3, **elsewhere))
    assert not (tmp_path / "no").exists()


def test_a_report_does_not_say_where_a_library_is_written(done, home, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_prune.recovery.levels.CACHE", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(done.folder, tmp_path / "stranger"))
    report = json.loads((folder / "report.json").read_text())
    report["recipe"]["library"] = str(tmp_path / "taken")
    (folder / "report.json").write_text(json.dumps(report))
    finished(
        report_folder(folder, base=str(home / "base"), data=(str(home / "text.txt"),), tasks=TASKS, report_sequences=4)
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "stranger"]


def test_a_blueprint_is_rebuilt_where_its_library_is_named_or_cached(done, home, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    with pytest.raises(InvalidBlueprint, match="is not there; name its folder with --library"):
        assemble_blueprint(done.folder / "blueprint.json", tmp_path / "none", source=str(home / "base"))
    named = command("assemble", done.folder / "blueprint.json", "--source", home / "base", "--library", home / "levels",
                    "--output", tmp_path / "named")  # fmt: skip
    assert named.returncode == 0, named.stderr
    assert (tmp_path / "named" / "model.safetensors").read_bytes() == (done.folder / "model.safetensors").read_bytes()
    library = Levels.open(home / "levels" / "obs")
    (tmp_path / "cache" / library.digest).symlink_to(library.folder)
    monkeypatch.setattr("hf_prune.recovery.levels.CACHE", str(tmp_path / "cache"))
    folder = assemble_blueprint(done.folder / "blueprint.json", tmp_path / "built", source=str(home / "base"))
    assert (folder / "model.safetensors").read_bytes() == (done.folder / "model.safetensors").read_bytes()
