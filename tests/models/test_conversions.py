"""Conversions: what transformers does to a state dict when it loads and saves, done to one tensor at a time."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_prune.models.configs import skeleton
from hf_prune.models.conversions import as_files, as_modules
from tests.families import jittered
from tests.shrunk import shrunk

# A stack of experts, one under another name, experts under other names, and a prefix that is spelled otherwise.
LAYOUTS = ("qwen3_moe", "mixtral", "granitemoehybrid", "nemotron_h", "gpt_neox")


class Stored:
    """A tensor of a file that counts how often it is read."""

    def __init__(self, tensor):
        self.tensor, self.read = tensor, 0

    @property
    def shape(self):
        return self.tensor.shape

    @property
    def dtype(self):
        return self.tensor.dtype

    @property
    def nbytes(self):
        return self.tensor.nbytes

    def __call__(self):
        self.read += 1
        return self.tensor


def saved(name, folder):
    model = jittered(AutoModelForCausalLM.from_config(shrunk(name)))
    model.save_pretrained(folder)
    return model.state_dict(), {n: Stored(t) for n, t in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_and_modules_are_told_from_headers_and_hold_the_same(name, tmp_path):
    state, stored = saved(name, tmp_path)
    model = skeleton(shrunk(name))
    found = as_modules(stored, model)
    assert {n: tuple(r.shape) for n, r in found.items()} == {n: tuple(t.shape) for n, t in state.items() if n in found}
    assert set(state) - set(found) <= {"lm_head.weight"}
    assert all((r.dtype, r.nbytes) == (torch.float32, state[n].nbytes) for n, r in found.items())
    assert not any(s.read for s in stored.values())
    assert all(torch.equal(r(), state[n]) for n, r in found.items())
    assert {s.read for s in stored.values()} == {1}

    made = {n: Stored(state[n]) for n in found}
    files = list(as_files(made.items(), model))
    assert {n: size for n, size, _ in files} == {n: s.nbytes for n, s in stored.items()}
    assert not any(s.read for s in made.values())
    assert all(torch.equal(read(), stored[n].tensor) for n, _, read in files)
    assert {s.read for s in made.values()} == {1}


def test_what_is_there_already_is_taken_as_it_is(tmp_path):
    state, _ = saved("mixtral", tmp_path)
    found = as_modules({n: Stored(t) for n, t in state.items()}, skeleton(shrunk("mixtral")))
    assert all(torch.equal(r(), state[n]) for n, r in found.items()) and set(found) == set(state)


def test_tensors_that_no_module_has_are_left_out_and_so_are_stacks_that_lack_a_part(tmp_path):
    _, stored = saved("qwen3_moe", tmp_path)
    del stored["model.layers.1.mlp.experts.2.up_proj.weight"]
    stored["model.layers.9.mlp.gate.weight"] = stored["model.layers.1.mlp.gate.weight"]
    found = as_modules(stored, skeleton(shrunk("qwen3_moe")))
    assert "model.layers.1.mlp.experts.gate_up_proj" not in found and "model.layers.9.mlp.gate.weight" not in found
    assert "model.layers.1.mlp.experts.down_proj" in found and "model.layers.2.mlp.experts.gate_up_proj" in found


def test_a_model_saved_from_its_trunk_is_read_by_the_whole_one(tmp_path):
    state, stored = saved("gpt2", tmp_path)
    bare = {n.removeprefix("transformer."): s for n, s in stored.items()}
    found = as_modules(bare, skeleton(shrunk("gpt2")))
    assert all(torch.equal(r(), state[n]) for n, r in found.items())
    assert set(state) - set(found) <= {"lm_head.weight"}
