"""Models of several widths do what transformers' own do, with hf_prune and in a process that cannot import it."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune.assembly.assemble import assemble, write
from hf_prune.models.families import CUT_BY_WIDTH
from hf_prune.models.mixtures import ROUTINGS
from tests.families import DEPTH, opened, tiny
from tests.mixtures import GONE, saved, without
from tests.recovery.test_levels import MIXED, TOKENS, blueprint, library

EVERYTHING = """
import json, sys
sys.modules["hf_prune"] = None
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
home = sys.argv[1]
TRUST = {"trust_remote_code": True}
for family in sys.argv[2:]:
    folder, said = f"{home}/{family}", {"family": family}
    kept = load_file(folder + "/said.safetensors")
    tokens, wanted = kept["tokens"], kept["logits"]

    # Experts are multiplied in other ways here and there, and by the last bit of bfloat16 a router chooses otherwise.
    mixture = family.endswith("_experts")

    def same(model, like=wanted, atol=1e-5):
        with torch.inference_mode():
            off = model(tokens).logits.float() - like
        if mixture and like is not wanted:
            return float(off.abs().mean()) < 0.1 * float(like.abs().mean())
        return bool((off.abs() <= 1e-4 * like.abs() + max(atol, 1e-6 * mixture)).all())

    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as e:
        said["refused"] = "trust_remote_code" in str(e)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **TRUST)
    model.eval()
    said["whole"], said["same"] = not any(info.values()), same(model)
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached, plain = (model.generate(tokens[:2, :6], use_cache=c, **how).tolist() for c in (True, False))
    said["generates"] = cached == plain and len(cached[0]) > 6
    model.save_pretrained(folder + "/again")
    said["saved"] = same(AutoModelForCausalLM.from_pretrained(folder + "/again", **TRUST).eval(), atol=0)
    said["placed"] = same(AutoModelForCausalLM.from_pretrained(folder, device_map="auto", **TRUST).eval())
    room = {"cpu": 3 * sum(p.nbytes for p in model.parameters()) // 4}
    how = {"device_map": "auto", "max_memory": room, "offload_folder": folder + "/off", **TRUST}
    split = AutoModelForCausalLM.from_pretrained(folder, **how).eval()
    said["split"] = same(split) and {"cpu", "disk"} <= set(map(str, split.hf_device_map.values()))
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **TRUST).eval()
    said["half"] = half.dtype == torch.bfloat16 and same(half, kept["half"])
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = [p for p in tuned.parameters() if p.requires_grad]
    before = tuned(tokens, labels=tokens).loss
    before.backward()
    torch.optim.SGD(trained, 0.05).step()
    said["learns"] = float(tuned(tokens, labels=tokens).loss) < float(before) and len(trained) > 10
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of a mixed model per family, and what it says."""
    home = tmp_path_factory.mktemp("pruned")
    for family in CUT_BY_WIDTH:
        _, parent, made = library(home / "made" / family, family)
        said(home / family, blueprint(parent, made, MIXED), parent)
    for kind in ROUTINGS:
        saved(kind, home / "mixtures" / kind)
        parent = opened(home / "mixtures" / kind)
        said(home / f"{kind}_experts", without(parent.source, GONE), parent)
    return home


def said(folder, cut, parent):
    """A cut, and what it says."""
    folder.mkdir()
    write(cut, [parent], folder)
    with torch.inference_mode():
        logits = assemble(cut, [parent])(TOKENS).logits
        half = assemble(cut, [parent], dtype=torch.bfloat16)(TOKENS).logits.float()
    save_file({"tokens": TOKENS, "logits": logits, "half": half}, folder / "said.safetensors")


FOLDERS = (*CUT_BY_WIDTH, *(f"{kind}_experts" for kind in ROUTINGS))


@pytest.mark.slow
def test_without_hf_prune_they_load_generate_train_and_are_saved(home):
    command = [sys.executable, "-P", "-c", EVERYTHING, str(home), *FOLDERS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f.pop("family") for f in found] == list(FOLDERS)
    wrong = {family: [k for k, v in f.items() if not v] for family, f in zip(FOLDERS, found, strict=True)}
    assert not any(wrong.values()) and {len(f) for f in found} == {9}, wrong


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_what_is_saved_with_hf_prune_loads_without(home, family, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(home / family)
    model.save_pretrained(tmp_path)
    own = (home / family / "modeling_pruned.py").read_text()
    assert (tmp_path / "modeling_pruned.py").read_text() == own
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw == json.loads((home / family / "config.json").read_text())


def test_the_wrong_widths_are_refused_and_not_filled_up(home, tmp_path):
    raw = json.loads((home / "llama" / "config.json").read_text())
    del raw["per_layer_config"]["2"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(load_file(home / "llama" / "model.safetensors"), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "qwen3_moe"])
def test_equal_widths_load_as_the_family_itself(family, tmp_path):
    _, parent, made = library(tmp_path, family)
    cut = blueprint(parent, made, [(1, 2)] * DEPTH)
    (tmp_path / "out").mkdir()
    write(cut, [parent], tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(loaded) is type(tiny(family)) and not any(info.values())
    assert not (tmp_path / "out" / "modeling_pruned.py").exists()
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded.eval()(TOKENS).logits, assemble(cut, [parent])(TOKENS).logits, rtol=1e-4, atol=1e-5
        )
