"""The model tree of a base on the stand-in Hub: who fits, how far the weights are, and how little is read for it."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from typer.testing import CliRunner

from hf_prune.cli.main import app
from hf_prune.errors import InvalidRecipe, SourceNotFound
from hf_prune.models.scout import scout
from tests.hub.samples import adapter, model


def card(base="ns/base", licence="mit", **more):
    lines = [f"{k}: {v}" for k, v in {"license": licence, "base_model": base, **more}.items()]
    return "\n".join(["---", *lines, "---", "# A model"]).encode()


def scaled(files, factor, dtype=torch.float32):
    """Every matrix of the layers times a factor."""
    state = load(files["model.safetensors"])
    made = {n: (t * factor if "layers" in n and t.dim() == 2 else t).to(dtype) for n, t in state.items()}
    return {**files, "model.safetensors": save(made, {"format": "pt"})}


@pytest.fixture
def tree(hub_server):
    """A base and what came of it, by downloads."""
    base = model(num_hidden_layers=4)
    hub_server.seed("ns/base", base)
    children = {
        "ns/tuned": (900, {**scaled(base, 1.1), "README.md": card()}),
        "ns/half": (800, {**scaled(base, 1.5, torch.bfloat16), "README.md": card(licence="llama3")}),
        "ns/deeper": (700, {**model(num_hidden_layers=5), "README.md": card()}),
        "ns/lora": (600, {**adapter(), "README.md": card(base_model_relation="adapter")}),
        "ns/pickled": (500, {"config.json": base["config.json"], "pytorch_model.bin": b"x", "README.md": card()}),
        "ns/blend": (400, {**scaled(base, 0.9), "README.md": card(base_model_relation="merge")}),
        "ns/quantised": (999, {**base, "README.md": card(base_model_relation="quantized")}),
        "ns/stranger": (999, {**base, "README.md": card("ns/other")}),
    }
    for name, (downloads, files) in children.items():
        hub_server.seed(name, files).downloads = downloads
    hub_server.seed("ns/closed", {**base, "README.md": card()}, gated=True).downloads = 50
    hub_server.requests.clear()
    return hub_server


def test_the_tree_is_listed_by_downloads_with_a_verdict_each(tree):
    found = {c.repo: c for c in scout("ns/base")}
    assert list(found) == ["ns/tuned", "ns/half", "ns/deeper", "ns/lora", "ns/pickled", "ns/blend", "ns/closed"]
    assert [c.repo for c in found.values() if c.fits] == ["ns/tuned", "ns/half", "ns/lora", "ns/blend", "ns/closed"]
    assert [c.relation for c in found.values()][3:6] == ["adapter", "finetune", "merge"]
    assert "num_hidden_layers is 5" in found["ns/deeper"].note and "pickle" in found["ns/pickled"].note
    assert found["ns/half"].license == "llama3" and "dtype" in found["ns/half"].note
    assert [c.repo for c in scout("ns/base", 2)] == ["ns/tuned", "ns/half"]


def test_differences_are_those_of_the_weights(tree):
    found = {c.repo: c.difference for c in scout("ns/base") if c.fits}
    for name, expected in {"ns/tuned": 0.1, "ns/half": 0.5, "ns/blend": 0.1, "ns/closed": 0.0}.items():
        assert np.allclose([found[name].mean, found[name].least, found[name].most], expected, atol=3e-3), name


def test_an_adapters_difference_is_that_of_the_merged_matrix(hub_server):
    base, lora = model(num_hidden_layers=1), adapter()
    hub_server.seed("ns/base", base)
    hub_server.seed("ns/lora", {**lora, "README.md": card(base_model_relation="adapter")})
    (found,) = scout("ns/base")
    pair = load(lora["adapter_model.safetensors"])
    a, b = (next(t for n, t in pair.items() if f"lora_{side}" in n) for side in "AB")
    weight = load(base["model.safetensors"])["model.layers.0.self_attn.q_proj.weight"]
    assert found.difference.most == pytest.approx(float((2 * b @ a).norm() / weight.norm()), rel=1e-5)


def test_little_is_read(hub_server):
    base = model(hidden_size=256, intermediate_size=1024, num_hidden_layers=8)
    hub_server.seed("ns/base", base)
    hub_server.seed("ns/tuned", {**scaled(base, 1.1), "README.md": card()})
    assert next(iter(scout("ns/base"))).difference.mean == pytest.approx(0.1, rel=1e-3)
    assert hub_server.sent("cdn") < 0.25 * 2 * len(base["model.safetensors"])


def test_what_the_tree_does_not_know_is_refused(tree, tmp_path):
    with pytest.raises(SourceNotFound):
        list(scout("ns/nothing"))
    with pytest.raises(InvalidRecipe, match="model tree knows repos"):
        (tmp_path / "m").mkdir()
        for name, content in model().items():
            (tmp_path / "m" / name).write_bytes(content)
        list(scout(str(tmp_path / "m")))


def test_a_passing_fault_of_the_list_is_tried_again(tree):
    tree.faults.status("GET /api/models[?]", 503)
    assert len(list(scout("ns/base", sleep=lambda seconds: None))) == 7


def test_the_command_shows_a_table_and_the_next_command(tree):
    run = CliRunner().invoke(app, ["scout", "ns/base"])
    assert run.exit_code == 0 and "weights differ by" in run.stdout and "10.0 %" in run.stdout
    assert "--method stitch --variant ns/tuned --variant ns/half --variant ns/lora" in run.stdout
    told = CliRunner().invoke(app, ["scout", "ns/base", "--format", "json"]).stdout
    rows = [json.loads(row) for row in told.splitlines()]
    assert rows[0]["repo"] == "ns/tuned" and rows[0]["difference"]["mean"] == pytest.approx(0.1, rel=1e-3)
    assert CliRunner().invoke(app, ["scout", "ns/base", "-q", "--limit", "3"]).stdout.split() == ["ns/tuned", "ns/half"]
