"""Whole runs of experts: from a command to a certified stock mixture, repeated, rebuilt, planned."""

import filecmp

import pytest

from hf_prune.blueprint import Blueprint
from hf_prune.pipeline import run
from hf_prune.results import assemble_blueprint
from tests.mixtures import saved
from tests.runs import command, recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("experts")
    saved("qwen3_moe", home / "base")
    return home


@pytest.fixture(scope="module")
def done(home):
    asked = {"method": "experts", "ratio": 0.3, "library_sequences": 8, "library": str(home / "library")}
    return run(recipe(home, base=str(home / "base"), data=(str(home / "text.txt"),), **asked))


def test_a_run_ends_with_a_certified_stock_mixture(done):
    report = done.report
    assert report["certificate"]["ok"] and report["certificate"]["without_hf_prune"]
    assert done.model.config.model_type == "qwen3_moe" and done.model.config.num_experts == 5
    assert report["size"]["pruned"]["parameters"] == report["size"]["pruned"]["active_parameters"]
    names = {b["name"] for b in report["baselines"]}
    assert names - {"search"} == {"hf_prune", "reap", "frequency", "output_norm", "ean", "weight_norm",
                                  "random_experts"}  # fmt: skip
    assert len({b["parameters"] for b in report["baselines"]}) == 1
    assert {layer["fate"] for layer in report["layers"]} == {"narrowed"}


def test_its_blueprint_rebuilds_it_bit_for_bit(done, home):
    again = assemble_blueprint(done.folder / "blueprint.json", home / "again", source=str(home / "base"))
    assert filecmp.cmp(done.folder / "model.safetensors", again / "model.safetensors", shallow=False)
    assert Blueprint.from_json((again / "blueprint.json").read_text()).layers[0].blends


def test_a_repair_refits_the_experts_that_enough_tokens_reach(home):
    asked = {"method": "experts", "ratio": 0.4, "library_sequences": 8, "library": str(home / "library")}
    asked |= {"repair": True, "repair_sequences": 40, "repair_finalists": 2, "baselines": ("reap",)}
    files = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "output": str(home / "repaired")}
    report = run(recipe(home, **files, **asked)).report
    assert report["certificate"]["ok"] and report["repair"]["kept"]
    assert report["repair"]["kl_after"] < report["repair"]["kl_before"]
    assert any(name.startswith("mlp.experts.") for fit in report["repair"]["fits"] for name in fit["ridges"])
    again = assemble_blueprint(home / "repaired" / "blueprint.json", home / "once more", source=str(home / "base"))
    assert filecmp.cmp(home / "repaired" / "model.safetensors", again / "model.safetensors", shallow=False)


def test_layers_that_lose_different_numbers_are_certified_and_the_card_says_who_loads_them(home):
    asked = {"method": "experts", "ratio": 0.3, "library_sequences": 8, "library": str(home / "library")}
    files = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "output": str(home / "differ")}
    done = run(recipe(home, per_layer=True, baselines=("reap",), **files, **asked))
    report = done.report
    counts = [
        len(s.blends or ()) or 8 for s in Blueprint.from_json((done.folder / "blueprint.json").read_text()).layers
    ]
    assert report["certificate"]["ok"] and sum(counts) == 4 * 5
    assert report["size"]["pruned"]["parameters"] == report["baselines"][-1]["parameters"]
    card = (done.folder / "README.md").read_text()
    if len(set(counts)) > 1:
        assert report["own_code"] and "their number of experts" in card and "vLLM" in card
    assert "on average" in " ".join(command("plan", home / "base", "--method", "experts", "--per-layer", "--ratio",
                                            "0.3", "--data", home / "text.txt").stdout.split())  # fmt: skip


def test_experts_that_go_may_be_merged_and_the_report_says_whether_that_won(home):
    asked = {"method": "experts", "ratio": 0.3, "library_sequences": 8, "library": str(home / "library")}
    files = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "output": str(home / "merged")}
    done = run(recipe(home, merge_experts=True, baselines=("reap",), **files, **asked))
    layers = Blueprint.from_json((done.folder / "blueprint.json").read_text()).layers
    merged = [any(len(blend) > 1 for blend in spec.blends) for spec in layers]
    assert [layer["fate"] for layer in done.report["layers"]] == ["merged" if m else "narrowed" for m in merged]
    assert done.report["certificate"]["ok"] and [len(spec.blends) for spec in layers] == [5] * 4
    assert done.report["merging"]["won"] == any(merged)
    card = (done.folder / "README.md").read_text()
    assert ("Merging helped" in card or "Merging did not help" in card) if any(merged) else "Nothing is merged" in card
    again = assemble_blueprint(done.folder / "blueprint.json", home / "merged again", source=str(home / "base"))
    assert filecmp.cmp(done.folder / "model.safetensors", again / "model.safetensors", shallow=False)


def test_a_plan_says_what_stays(home):
    said = command("plan", home / "base", "--method", "experts", "--ratio", "0.45", "--data", home / "text.txt")
    assert said.returncode == 0 and "remove 5 of 8 experts of 4 layers" in " ".join(said.stdout.split()), said.stdout
    said = command("plan", home / "base", "--method", "experts", "--ratio", "0.9", "--data", home / "text.txt")
    assert said.returncode and "1 to 7 can go" in " ".join(said.stderr.split()), said.stderr
