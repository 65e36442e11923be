"""A mixture goes from the Hub to the Hub: fewer experts, refitted, by one command."""

import json

import pytest
from transformers import AutoModelForCausalLM

from hf_prune.models.mixtures import ROUTINGS
from tests.mixtures import EXPERTS, saved
from tests.runs import FLAGS, command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("kind", "ratio"), [("mixtral", 0.4), ("deepseek_v3", 0.3)])
def test_a_repo_loses_experts_is_repaired_and_published(kind, ratio, hub_server, tmp_path):
    saved(kind, tmp_path / "base")
    hub_server.seed("ns/mixture", {p.name: p.read_bytes() for p in (tmp_path / "base").iterdir()})
    done = command("compress", "ns/mixture", "--method", "experts", "--ratio", ratio, "--repair", *FLAGS,
                   "--repair-sequences", 24, "--repair-finalists", 2, "--library-sequences", 8,
                   "--library", tmp_path / "library", "--data", tmp_path / "text.txt", "--output", tmp_path / "small",
                   "--push-to", "ns/small")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "small/report.json").read_text())
    assert report["certificate"]["ok"] and report["certificate"]["without_hf_prune"]
    assert report["stages"]["names"] == ["dense", "cut", "repaired"]
    made = hub_server.repo("ns/small")
    for name in ("model.safetensors", "config.json", "blueprint.json", "README.md"):
        assert hub_server.storage.read(made, name) == (tmp_path / "small" / name).read_bytes()
    loaded, info = AutoModelForCausalLM.from_pretrained("ns/small", output_loading_info=True)
    assert (
        loaded.config.model_type == kind
        and getattr(loaded.config, ROUTINGS[kind].count) < EXPERTS
        and not any(info.values())
    )
