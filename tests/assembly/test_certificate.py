"""The certificate passes what it should and names what is wrong, from a process that knows nothing of hf_prune."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_prune.assembly import certificate
from hf_prune.assembly.assemble import write
from hf_prune.assembly.certificate import certify
from hf_prune.errors import ReloadMismatch
from tests.families import tiny
from tests.oracle import EDITS, blueprint, logits, opened, oracle, tokens

WINDOWS = tokens(2)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    parent = opened("qwen3")
    write(blueprint(parent, "merged"), [parent], folder)
    return folder


@pytest.fixture
def spoiled(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "small")


@pytest.fixture(scope="module")
def expected():
    return logits(oracle("qwen3", EDITS["merged"]), WINDOWS)


def checked(folder, expected, dtype="float32"):
    return certify(folder, WINDOWS, expected, dtype=dtype, device="cpu")


def edited(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_good_folder_passes_without_hf_prune(finished, expected):
    found = checked(finished, expected)
    assert found["ok"] and found["without_hf_prune"] and found["dtype"] == "float32"
    assert found["max_logit_difference"] <= found["tolerance"] < 1e-2 * float(expected.abs().max())
    assert 0 < found["cached_difference"] <= found["tolerance"]
    assert found["missing"] == found["unexpected"] == found["mismatched"] == []


def test_it_does_not_hang_on_a_process_that_has_died(finished, expected):
    checked(finished, expected)
    certificate._server().kill()
    assert checked(finished, expected)["without_hf_prune"]


def test_weights_changed_afterwards_are_another_model(spoiled, expected):
    edited(spoiled, lambda s: s["model.layers.1.mlp.up_proj.weight"].mul_(1.05))
    with pytest.raises(ReloadMismatch, match="small reloads as another model: logits differ by"):
        checked(spoiled, expected)


def test_missing_and_unexpected_tensors_fail(spoiled, expected):
    edited(spoiled, lambda s: s.update({"model.layers.9.up": s.pop("model.layers.3.mlp.up_proj.weight")}))
    with pytest.raises(
        ReloadMismatch, match=r"missing': \['model\.layers\.3\.mlp.*unexpected': \['model\.layers\.9\.up"
    ):
        checked(spoiled, expected)


def test_a_tensor_of_another_shape_fails(spoiled, expected):
    edited(spoiled, lambda s: s.update({"model.norm.weight": torch.ones(16)}))
    with pytest.raises(ReloadMismatch):
        checked(spoiled, expected)


def test_a_config_of_another_depth_fails(spoiled, expected):
    config = json.loads((spoiled / "config.json").read_text())
    config["num_hidden_layers"], config["layer_types"] = 3, config["layer_types"][:3]
    (spoiled / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReloadMismatch, match="small"):
        checked(spoiled, expected)


def test_a_folder_that_does_not_load_says_why(spoiled, expected):
    (spoiled / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ReloadMismatch, match="small does not load in a fresh process: .+"):
        checked(spoiled, expected)


def test_logits_of_another_shape_fail(finished, expected):
    with pytest.raises(ReloadMismatch, match="logits of shape"):
        checked(finished, expected[..., :50])


def test_half_precision_is_allowed_its_rounding_and_says_so(finished, expected):
    found = checked(finished, expected, "bfloat16")
    assert found["dtype"] == "bfloat16" and 1e-4 < found["max_logit_difference"] <= found["tolerance"]


FORGETFUL = """
from transformers import LlamaForCausalLM


class Forgetful(LlamaForCausalLM):
    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        return super().forward(input_ids=input_ids, past_key_values=None, **kwargs)
"""


def test_a_model_whose_cache_loses_the_past_fails(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "small")
    (tmp_path / "small" / "modeling_forgetful.py").write_text(FORGETFUL)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_forgetful.Forgetful"}
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    how = {"dtype": "float32", "device": "cpu", "trust_remote_code": True}
    with pytest.raises(ReloadMismatch, match="small decodes differently with its cache: logits differ by"):
        certify(tmp_path / "small", WINDOWS, logits(model, WINDOWS), **how)
