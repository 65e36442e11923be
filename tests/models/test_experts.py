"""Mixtures of experts: stacks in memory and matrices in files are one thing, and each expert is cut by its inputs."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune.assembly.assemble import assemble, write
from hf_prune.errors import BrokenCheckpoint, InvalidBlueprint
from hf_prune.evaluation.dense import Dense
from hf_prune.models.experts import STACKS
from hf_prune.models.families import FAMILIES
from hf_prune.models.inference import family_of
from hf_prune.pipeline import run
from hf_prune.recovery.heal import Course, heal
from hf_prune.recovery.levels import build
from hf_prune.recovery.obs import damped, removal_order
from tests.families import DEPTH, blueprint, mean, opened, save_tiny, tiny
from tests.oracle import closed_form
from tests.recovery.test_levels import OPTIONS, TOKENS, library
from tests.runs import base, recipe

E, NEURONS = 4, 48


def moments(model, layer):
    """E x x^T of what enters each expert's down_proj: every expert computed on every token, by the formula."""
    seen = []
    block = model.model.layers[layer].mlp
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        model(TOKENS)
        states, chosen = seen[0], torch.zeros(seen[0].shape[0], E)
        hook.remove()
        likely, index = (states @ block.gate.weight.T).softmax(-1).topk(2)
        chosen.scatter_(1, index, likely)
        found = []
        for e in range(E):
            gate, up = block.experts.gate_up_proj[e].split(NEURONS)
            x = (torch.nn.functional.silu(states @ gate.T) * (states @ up.T) * chosen[:, e : e + 1]).double()
            found.append(x.T @ x / len(x))
    return found


def test_each_expert_has_its_own_order_and_weights_and_all_have_one_level(tmp_path):
    bank, _, made = library(tmp_path, "qwen3_moe")
    for layer in (0, 3):
        stack, losses = bank.model.model.layers[layer].mlp.experts.down_proj.detach(), torch.zeros(made.count("mlp"))
        for e, plain in enumerate(moments(bank.model, layer)):
            hessian = damped(plain)
            gone = removal_order(stack[e].double(), hessian).groups.tolist()
            for level in range(1, made.count("mlp")):
                kept = made.kept(layer, "mlp", level)
                assert kept.shape == (E, made.neurons[level])
                assert set(kept[e].tolist()) == set(gone[-made.neurons[level] :])
                expected = closed_form(stack[e], hessian, kept[e])
                found = made.output(layer, "mlp", level, stack)
                torch.testing.assert_close(found[e].double(), expected, rtol=2e-3, atol=2e-4)
                change = stack[e].double().clone()
                change[:, kept[e]] -= expected
                losses[level] += float((change @ hessian * change).sum())
        torch.testing.assert_close(made.losses(layer, "mlp")[:-1].float(), losses, rtol=1e-3, atol=1e-6)
        orders = made.kept(layer, "mlp", made.count("mlp") - 1)
        assert len({tuple(row) for row in orders.tolist()}) == E


def test_an_expert_that_no_token_reaches_goes_by_magnitude_and_loses_nothing(tmp_path):
    model = save_tiny("qwen3_moe", tmp_path / "model", num_experts_per_tok=1)
    for layer in model.model.layers:
        gate = layer.mlp.gate.weight.data
        gate[1], gate[2:] = -gate[0], 0
    model.save_pretrained(tmp_path / "model")
    made = build(Dense(model, family_of(model.config)), opened(tmp_path / "model"), TOKENS, tmp_path / "l", OPTIONS)
    stack, level = model.model.layers[2].mlp.experts.down_proj.detach(), 3
    kept = made.kept(2, "mlp", level)
    for e in (2, 3):
        largest = stack[e].square().sum(0).topk(made.neurons[level]).indices
        assert set(kept[e].tolist()) == set(largest.tolist())
    found = made.output(2, "mlp", level, stack)
    assert torch.equal(found[3], stack[3][:, kept[3]]) and not torch.equal(found[0], stack[0][:, kept[0]])
    assert bool(made.losses(2, "mlp").isfinite().all())


def test_files_hold_a_matrix_per_expert_and_models_of_many_widths_hold_stacks(tmp_path):
    model = save_tiny("qwen3_moe", tmp_path / "base")
    parent = opened(tmp_path / "base")
    names = set(load_file(tmp_path / "base" / "model.safetensors"))
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in names
    (tmp_path / "out").mkdir()
    stored = write(blueprint(*range(DEPTH)), [parent], tmp_path / "out", shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == names and stored[0] == sum(p.numel() for p in model.parameters())
    sizes = [p.stat().st_size for p in (tmp_path / "out").glob("model-*")]
    assert len(sizes) > 3 and max(sizes) < 30_000
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_stacks_in_files_are_read_as_well(tmp_path):
    model = save_tiny("qwen3_moe", tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "stacked")
    save_file({n: t.clone() for n, t in model.state_dict().items()}, tmp_path / "stacked" / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    for folder in ("base", "stacked"):
        made = assemble(blueprint(*range(DEPTH)), [opened(tmp_path / folder)])
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in made.state_dict().items())


def test_a_lost_expert_is_named(tmp_path):
    save_tiny("qwen3_moe", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.2.mlp.experts.1.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenCheckpoint, match="model.layers.2.mlp.experts.gate_up_proj is missing"):
        opened(tmp_path)


@pytest.mark.parametrize("setting", [{"decoder_sparse_step": 2}, {"mlp_only_layers": [1]}])
def test_mixtures_with_plain_layers_among_them_are_cut_and_never_merged(tmp_path, setting):
    model = save_tiny("qwen3_moe", tmp_path / "base", **setting)
    parent = opened(tmp_path / "base")
    (tmp_path / "out").mkdir()
    write(blueprint(0, 1, 4), [parent], tmp_path / "out")
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in (0, 1, 4))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        assert torch.equal(again(TOKENS, use_cache=False).logits, model(TOKENS, use_cache=False).logits)
    with pytest.raises(InvalidBlueprint, match="merges layers 0 and 1 of a qwen3_moe, which do not have the same"):
        assemble(blueprint(mean(0, 1)), [parent])


def test_a_lora_reaches_the_experts_and_is_merged_into_them():
    student, teacher = tiny("qwen3_moe"), tiny("qwen3_moe", seed=1).requires_grad_(False)
    course = Course(12 * 96, batch=4, checks=2, rank=4, alpha=8.0, rate=1e-2)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    with tempfile.TemporaryDirectory() as home:
        done = heal(student, teacher, FAMILIES["qwen3_moe"], TOKENS, TOKENS, course, Path(home))
    assert done.after < done.before
    with torch.inference_mode():
        wanted = done.model(TOKENS).logits
        merged = done.model.merge_and_unload()
        torch.testing.assert_close(merged(TOKENS).logits, wanted, rtol=1e-3, atol=1e-4)
    changed = {n.partition("layers.0.")[2] for n, t in merged.state_dict().items() if not torch.equal(t, before[n])}
    assert {*STACKS, "self_attn.o_proj.weight"} <= changed


def moe(folder):
    """`tests.runs.base` with experts."""
    base(folder)
    save_tiny("qwen3_moe", folder, vocab_size=512, max_position_embeddings=256, hidden_size=64, bos_token_id=0,
              eos_token_id=1, pad_token_id=None)  # fmt: skip
    return str(folder)


@pytest.mark.slow
def test_a_mixture_goes_from_a_recipe_to_a_trained_model_that_loads(tmp_path):
    width = {"method": "width", "ratio": 0.3, "levels": 6, "multiple_of": 4, "library_sequences": 12}
    asked = {"base": moe(tmp_path / "base"), "heal": "2k", "heal_batch": 4, "heal_checks": 2, "heal_lr": 1e-3}
    done = run(recipe(tmp_path, library=str(tmp_path / "levels"), baselines=("uniform",), **width, **asked))
    report = done.report
    assert report["certificate"]["ok"] and report["certificate"]["without_hf_prune"]
    assert report["healing"]["tokens"] > 0 and 0.29 <= report["size"]["removed_ratio"]
    loaded, info = AutoModelForCausalLM.from_pretrained(done.folder, output_loading_info=True)
    assert loaded.config.model_type.removeprefix("pruned_") == "qwen3_moe" and not any(info.values())
