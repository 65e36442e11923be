"""The level library: what it stores is what second order says, any level reads by itself, and building resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, Fidelity, LayerSpec, Part
from hf_prune.errors import BrokenCheckpoint, InvalidBlueprint, InvalidRecipe, UnsupportedArchitecture
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.models.inference import family_of
from hf_prune.recovery import levels as module
from hf_prune.recovery.heads_and_neurons import Widths, spread
from hf_prune.recovery.levels import Levels, Options, build, grid
from hf_prune.recovery.obs import damped
from tests.families import DEPTH, VOCABULARY, opened, save_tiny
from tests.oracle import closed_form

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3", "qwen3_moe")
TOKENS = torch.randint(3, VOCABULARY, (12, 24), generator=torch.Generator().manual_seed(0))
OPTIONS = Options(levels=5, multiple=4)


def library(home, family, options=OPTIONS, **changes):
    """A tiny model, its source with a library, and the bank of both."""
    model = save_tiny(family, home / "model", **changes)
    parent = opened(home / "model")
    made = build(Dense(model, parent.family), parent, TOKENS, home / "library", options)
    parent = replace(parent, levels={made.digest: made})
    return LayerBank(model, [parent]), parent, made


def blueprint(parent, made, levels):
    """Layers 0, 1, ... with these (attention, MLP) levels, the others dense."""
    given = {i: pair for i, pair in enumerate(levels)}
    specs = [
        LayerSpec((Part(0, i),), attn_level=given.get(i, (0, 0))[0], mlp_level=given.get(i, (0, 0))[1],
                  library=made.digest)
        for i in range(parent.depth)
    ]  # fmt: skip
    return Blueprint((parent.source,), tuple(specs)).canonical()


MIXED = [(0, 2), (1, 0), (1, 3), (GONE, 1), (0, GONE), (1, 4)]


def hessian_of(model, path, layer):
    """E x x^T of a module's inputs, by a plain forward."""
    seen = []
    target = model.get_submodule(f"{path[0]}.{layer}").get_submodule(path[1])
    hook = target.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model(TOKENS)
    hook.remove()
    x = seen[0].flatten(0, -2).double()
    return x.T @ x / len(x)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "qwen3_moe"])
def test_every_level_has_the_weights_of_the_closed_form(family, tmp_path):
    bank, parent, made = library(tmp_path, family)
    assert Levels.open(made.folder).digest == made.digest
    for half, out, unit in (("attention", "self_attn.o_proj", made.widths.unit), ("mlp", "mlp.down_proj", 1)):
        for layer in (0, 3):
            weight = bank.model.get_submodule(f"{parent.family.layers}.{layer}").get_submodule(out).weight.detach()
            hessian = damped(hessian_of(bank.model, (parent.family.layers, out), layer))
            for level in range(1, made.count(half)):
                kept = spread(made.kept(layer, half, level), unit)
                expected = closed_form(weight, hessian, kept)
                found = made.output(layer, half, level, weight)
                torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-4)
                change = weight.double().clone()
                change[:, kept] -= expected
                lost = float((change @ hessian * change).sum())
                assert float(made.losses(layer, half)[level]) == pytest.approx(lost, rel=1e-3, abs=1e-6)
            assert (made.losses(layer, half).diff() >= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_mixed_widths_load_and_compute_what_the_sweep_does(family, tmp_path):
    bank, parent, made = library(tmp_path, family)
    cut = blueprint(parent, made, MIXED)
    evaluator = Evaluator(bank, TOKENS)
    (measured,) = evaluator.evaluate([cut], Fidelity(12))
    (tmp_path / "out").mkdir()
    stored = write(cut, [parent], tmp_path / "out")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert stored[0] == measured.parameters == sum(p.numel() for p in loaded.parameters())
    assert loaded.config.model_type == f"pruned_{family}"
    with torch.inference_mode():
        logits = loaded.eval()(TOKENS).logits
        torch.testing.assert_close(logits, evaluator.logits(cut, 12), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(logits, assemble(cut, [parent])(TOKENS).logits, rtol=1e-4, atol=1e-5)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    assert measured.nll == pytest.approx(float(nll), rel=1e-4)
    # Cached decoding, with layers that cache less than others or nothing.
    whole = loaded.generate(TOKENS[:2, :6], max_new_tokens=8, do_sample=False, use_cache=True, pad_token_id=0)
    again = loaded.generate(TOKENS[:2, :6], max_new_tokens=8, do_sample=False, use_cache=False, pad_token_id=0)
    assert whole.tolist() == again.tolist()
    loaded.save_pretrained(tmp_path / "again")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    with torch.inference_mode():
        assert torch.equal(other(TOKENS).logits, loaded(TOKENS).logits)


def test_equal_widths_make_a_stock_model(tmp_path):
    bank, parent, made = library(tmp_path, "llama")
    (tmp_path / "out").mkdir()
    write(blueprint(parent, made, [(1, 2)] * DEPTH), [parent], tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.model_type == "llama" and not (tmp_path / "out" / "modeling_pruned.py").exists()
    expected = Evaluator(bank, TOKENS).logits(blueprint(parent, made, [(1, 2)] * DEPTH), 2)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(TOKENS[:2]).logits, expected, rtol=1e-3, atol=1e-4)


def test_kept_units_are_nested_and_heads_go_by_groups(tmp_path):
    _, _, made = library(tmp_path, "llama")
    for half in ("attention", "mlp"):
        for level in range(1, made.count(half)):
            inner, outer = (set(made.kept(2, half, lv).tolist()) for lv in (level, level - 1))
            assert inner < outer and len(inner) == made.left(half, level)
    assert made.widths == Widths(2, 2, 8, 48) and made.groups == (2, 1) and made.neurons == (48, 40, 28, 20, 8)
    raw = made.widths.cut("self_attn.k_proj.weight", torch.arange(16.0)[:, None], torch.tensor([1]), torch.arange(48))
    assert raw.flatten().tolist() == list(range(8, 16))
    fused = made.widths.cut("mlp.gate_up_proj.weight", torch.arange(96.0)[:, None], torch.arange(2), torch.tensor([5]))
    assert fused.flatten().tolist() == [5, 53]


def test_second_order_loses_least_and_the_others_keep_their_weights(tmp_path):
    found = {}
    for kind in ("obs", "wanda", "magnitude"):
        bank, parent, made = library(tmp_path / kind, "llama", replace(OPTIONS, kind=kind))
        cut = blueprint(parent, made, [(0, 3)] * DEPTH)
        found[kind] = Evaluator(bank, TOKENS).evaluate([cut], Fidelity(12))[0].kl
        weight = torch.randn(32, 48)
        plain = weight[:, made.kept(1, "mlp", 3)]
        assert torch.equal(made.output(1, "mlp", 3, weight), plain) is (kind != "obs")
    assert found["obs"] < min(found["wanda"], found["magnitude"])


def test_building_resumes_layer_by_layer_and_ends_the_same(tmp_path, monkeypatch):
    _, parent, made = library(tmp_path, "llama")
    kept = {p.name: p.read_bytes() for p in made.folder.iterdir()}
    for name in ("manifest.json", "layer-004.safetensors", "layer-005.safetensors"):
        (made.folder / name).unlink()
    worked = []
    inner = module._layer
    monkeypatch.setattr(module, "_layer", lambda *a: worked.append(1) or inner(*a))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    with pytest.raises(BrokenCheckpoint, match="no finished level library"):
        Levels.open(made.folder)
    told = []
    build(Dense(model, parent.family), parent, TOKENS, made.folder, OPTIONS, progress=lambda *x: told.append(x))
    assert len(worked) == 2 and told[-1] == (DEPTH, DEPTH)
    assert {p.name: p.read_bytes() for p in made.folder.iterdir()} == kept
    with pytest.raises(InvalidRecipe, match="level library of another model"):
        build(Dense(model, parent.family), parent, TOKENS, made.folder, replace(OPTIONS, levels=4))


def test_a_blueprint_without_its_library_is_refused(tmp_path):
    bank, parent, made = library(tmp_path, "llama")
    cut = blueprint(parent, made, MIXED)
    with pytest.raises(InvalidBlueprint, match="library .* is not there"):
        assemble(cut, [replace(parent, levels={})])
    beyond = replace(cut, layers=(replace(cut.layers[0], mlp_level=9), *cut.layers[1:]))
    with pytest.raises(InvalidBlueprint, match="beyond those"):
        assemble(beyond, [parent])


def test_families_whose_halves_are_not_known_are_refused_by_name(tmp_path):
    model = save_tiny("gpt2", tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="not 'gpt2'"):
        build(Dense(model, family_of(model.config)), opened(tmp_path), TOKENS, tmp_path / "l", OPTIONS)


@pytest.mark.parametrize("count", [1, 2, 7, 48, 384, 11008])
def test_grids_fall_in_steps_of_the_multiple(count):
    for multiple in (1, 8, 64):
        found = grid(count, 10, multiple)
        assert found[0] == count and list(found) == sorted(set(found), reverse=True) and min(found) > 0
        assert all(n % multiple == 0 for n in found[1:]) and len(found) <= 10
    assert np.allclose(np.diff(grid(11008, 10, 8)), -1100.8, atol=8)


def test_increments_take_less_room_than_the_model(tmp_path):
    _, parent, made = library(tmp_path, "llama", Options(), intermediate_size=128, hidden_size=48)
    stored = sum(p.stat().st_size for p in (tmp_path / "model").glob("*.safetensors"))
    assert made.bytes < 0.7 * stored
