"""Whole runs with repair and training: what is written is what was measured, and both are kept only if they help."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hf_prune import calibration, recovery
from hf_prune.assemble import quiet
from hf_prune.blueprint import Blueprint
from hf_prune.events import Healed, Repaired
from hf_prune.folder import assemble_blueprint
from hf_prune.pipeline import compress, run
from tests.families import tiny
from tests.runs import base, leftovers, recipe, text

AFTER = {"repair": True, "repair_sequences": 24, "repair_finalists": 2, "heal": "3k", "heal_batch": 4, "heal_rank": 4,
         "keep_layers": 4, "baselines": ("last",)}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    base(folder / "base")
    text(folder / "text.txt")
    return folder


def made(home, name, **changes):
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "output": str(home / name)}
    return recipe(home, **{**given, **AFTER, **changes})


@pytest.fixture(scope="module")
def untrained(home):
    return run(made(home, "untrained", heal=0))


@pytest.fixture(scope="module")
def trained(home):
    return run(made(home, "trained"))


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_the_repair_lies_beside_the_blueprint_which_rebuilds_the_weights(untrained, home, tmp_path):
    blueprint = Blueprint.from_json((untrained.folder / "blueprint.json").read_text())
    assert any(s.repair for s in blueprint.layers) and (untrained.folder / "repairs/patches.safetensors").is_file()
    again = assemble_blueprint(untrained.folder / "blueprint.json", tmp_path / "again", source=str(home / "base"))
    assert weights(again) == weights(untrained.folder) and leftovers(home) == []
    repair = untrained.report["repair"]
    assert repair["kept"] and repair["kl_after"] < repair["kl_before"] and repair["fits"]
    assert untrained.report["stages"]["names"] == ["dense", "cut", "repaired"]
    assert len(untrained.report["selection"]["finalists"]) == 2


@pytest.mark.slow
def test_training_changes_the_weights_and_is_certified_and_told(trained, untrained):
    report = trained.report
    assert report["stages"]["names"] == ["dense", "cut", "repaired", "healed"] and report["healing"]["kept"]
    assert weights(trained.folder) != weights(untrained.folder) and report["certificate"]["ok"]
    assert (trained.folder / "blueprint.json").read_bytes() == (untrained.folder / "blueprint.json").read_bytes()
    assert not (trained.folder / "adapter").exists() and not (trained.folder / "merged").exists()
    healed, repaired = (report["stages"]["text"]["all"][s] for s in ("healed", "repaired"))
    assert healed["perplexity"] < repaired["perplexity"]
    assert report["text"]["all"]["pruned"] == {k: healed[k] for k in ("perplexity", "ci")}
    card = (trained.folder / "README.md").read_text()
    assert "What the cut cost and what came back" in card and "was trained on" in card


@pytest.mark.slow
def test_a_kept_adapter_leaves_the_weights_and_loads_on_top(trained, untrained, home):
    result = run(made(home, "adapter", keep_adapter=True))
    assert weights(result.folder) == weights(untrained.folder) and not result.report["healing"]["merged"]
    config = json.loads((result.folder / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ".." and str(home) not in json.dumps(config)
    with quiet(), torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(result.folder)
        merged = AutoModelForCausalLM.from_pretrained(trained.folder)
        tokens = torch.arange(3, 35)[None]
        before = plain(tokens).logits
        adapted = PeftModel.from_pretrained(plain, result.folder / "adapter")
        said = adapted(tokens).logits
        torch.testing.assert_close(said, merged(tokens).logits, rtol=1e-3, atol=1e-3)
    assert float((said - before).abs().max()) > 1e-2
    assert "PeftModel" in (result.folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dora", "full"])
def test_other_ways_to_train_end_as_plain_weights(home, method):
    result = run(made(home, method, heal_method=method, repair=False, drop=("2",), keep_layers=None))
    assert result.report["healing"]["kept"] and result.report["certificate"]["ok"]
    assert result.report["stages"]["names"] == ["dense", "cut", "healed"]
    assert {p.name for p in result.folder.glob("*.safetensors")} == {"model.safetensors"}


@pytest.mark.slow
def test_a_training_that_hurts_leaves_the_weights(home, untrained):
    result = run(made(home, "hurt", heal_lr=50.0))
    assert not result.report["healing"]["kept"] and weights(result.folder) == weights(untrained.folder)
    assert result.report["stages"]["names"] == ["dense", "cut", "repaired"]
    assert "did not help" in (result.folder / "README.md").read_text()


def test_a_repair_that_hurts_is_not_taken(home, monkeypatch):
    measured = recovery._repair

    def worse(job, cut, tell):
        blueprint, summary = measured(job, cut, tell)
        return blueprint, {**summary, "kl_after": summary["kl_before"] + 1, "kept": False}

    monkeypatch.setattr(recovery, "_repair", worse)
    events = list(compress(made(home, "unrepaired", heal=0, repair_finalists=1)))
    assert [e.kept for e in events if isinstance(e, Repaired)] == [False]
    folder = home / "unrepaired"
    assert not (folder / "repairs").exists() and "did not help" in (folder / "README.md").read_text()
    assert not any(s.repair for s in Blueprint.from_json((folder / "blueprint.json").read_text()).layers)


@pytest.mark.slow
def test_finalists_may_be_trained_before_the_choice(home):
    result = run(made(home, "aware", heal=0, repair=False, search_heal="1k", evaluations=12))
    chosen = result.report["selection"]
    assert chosen["means"] == ["trained"] and 2 <= len(chosen["finalists"]) <= 8
    assert all(row["after"] != row["before"] for row in chosen["finalists"])


@pytest.mark.slow
def test_events_tell_of_every_stage(home):
    events = list(compress(made(home, "told")))
    (repaired,), (healed,) = ([e for e in events if isinstance(e, kind)] for kind in (Repaired, Healed))
    assert repaired.after < repaired.before and healed.kept and healed.tokens <= 3000


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "phi3"])
def test_other_families_are_repaired_and_trained_to_plain_weights(home, tmp_path, family):
    tiny(family, vocab_size=512).save_pretrained(tmp_path / "m")
    for file in (calibration.demo_folder() / "stories260K").glob("*token*"):
        shutil.copy(file, tmp_path / "m")
    changes = {"base": str(tmp_path / "m"), "output": str(tmp_path / "out"), "drop": ("1", "3"), "keep_layers": None}
    report = run(made(home, "unused", **changes)).report
    assert report["certificate"]["ok"] and report["stages"]["names"][-1] == "healed"
