"""Assemble: a blueprint becomes a model, in memory and on disk, the same one in both, in every family."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_prune.assemble import LayerBank, Parent, assemble, check, output_config, plan_tensors, write
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part, Source
from hf_prune.errors import BrokenCheckpoint, IncompatibleSources, InvalidBlueprint
from hf_prune.evaluate import Evaluator
from tests.families import DEPTH, EVERY, tiny
from tests.oracle import (
    EDITS,
    blueprint,
    cached_logits,
    logits,
    opened,
    oracle,
    saved,
    stock,
    tokens,
)

families = pytest.mark.parametrize("name", EVERY)
edits = pytest.mark.parametrize("edit", EDITS)
WINDOWS = tokens(2)


def close(a, b, tolerance=2e-4):
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(a.abs().max()))


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_identity_blueprint_is_bit_exact(name, dtype, tmp_path):
    parent = opened(name, dtype)
    write(Blueprint.identity(parent.source, DEPTH), [parent], tmp_path)
    source, copy = stock(saved(name, dtype), dtype=dtype), stock(tmp_path, dtype=dtype)
    before, after = source.state_dict(), copy.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(logits(source, WINDOWS), logits(copy, WINDOWS))
    stored = [load_file(f / "model.safetensors") for f in (saved(name, dtype), tmp_path)]
    assert stored[0].keys() == stored[1].keys() and all(torch.equal(stored[0][k], stored[1][k]) for k in stored[0])


@families
@edits
def test_an_edited_model_reloads_with_the_logits_of_the_same_edit_by_hand(name, edit, tmp_path):
    parent = opened(name)
    write(blueprint(parent, edit), [parent], tmp_path)
    model = stock(tmp_path)
    wanted, got = logits(oracle(name, EDITS[edit]), WINDOWS), logits(model, WINDOWS)
    assert wanted.std() > 0.1 and close(wanted, got)
    assert torch.equal(got, logits(assemble(blueprint(parent, edit), [parent]), WINDOWS))
    assert close(got, cached_logits(model, WINDOWS, 9))


@families
@edits
def test_the_searched_candidate_has_the_logits_of_the_assembled_model(name, edit):
    parent = opened(name)
    dense = assemble(Blueprint.identity(parent.source, DEPTH), [parent])
    evaluator = Evaluator(LayerBank(dense, [parent]), WINDOWS)
    candidate = blueprint(parent, edit)
    assert close(logits(assemble(candidate, [parent]), WINDOWS), evaluator.logits(candidate, len(WINDOWS)))


@families
def test_every_list_with_one_entry_per_layer_follows_the_layers(name, tmp_path):
    parent = opened(name)
    write(blueprint(parent, "dropped"), [parent], tmp_path)
    before, after = (json.loads((f / "config.json").read_text()) for f in (saved(name), tmp_path))
    lists = {k for k, v in before.items() if isinstance(v, list) and len(v) == DEPTH}
    for key in lists:
        assert after[key] == [before[key][i] for i in (0, 2, 4, 5)], key
    depth = parent.family.depth_key
    assert after[depth] == 4 and {k: v for k, v in after.items() if k not in lists | {depth}} == {
        k: v for k, v in before.items() if k not in lists | {depth}
    }
    assert not any(len(v) == DEPTH for v in after.values() if isinstance(v, list))


def test_mixed_families_really_carry_lists():
    assert {"layer_types", "no_rope_layers"} <= set(json.loads((saved("smollm3") / "config.json").read_text()))
    mixed = output_config(blueprint(opened("qwen3"), "dropped"), [opened("qwen3")]).layer_types
    assert set(mixed) == {"sliding_attention", "full_attention"}


def test_a_merged_layer_inherits_the_attention_type_of_its_heaviest_part():
    parent = opened("gemma2")
    for weights, kind in (((0.6, 0.4), "sliding_attention"), ((0.4, 0.6), "full_attention")):
        spec = LayerSpec((Part(0, 0, weights[0]), Part(0, 1, weights[1])))
        assert output_config(Blueprint((parent.source,), (spec,)), [parent]).layer_types == [kind]


def test_two_parents_of_one_shape_merge_and_give_embedding_and_head(tmp_path):
    other_folder = tmp_path / "other"
    tiny("llama", seed=1).save_pretrained(other_folder)
    parents = [opened("llama"), Parent.open(Source("other", "tiny"), other_folder)]
    mixed = LayerSpec((Part(0, 0, 0.25), Part(1, 0, 0.75)))
    bp = Blueprint(tuple(p.source for p in parents), (mixed, LayerSpec((Part(1, 5),))), embed=1, head=0)
    state = assemble(bp, parents).state_dict()
    a, b = (stock(f).state_dict() for f in (saved("llama"), other_folder))
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(state[key], 0.25 * a[key] + 0.75 * b[key], atol=1e-6)
    assert torch.equal(state["model.embed_tokens.weight"], b["model.embed_tokens.weight"])
    assert torch.equal(state["lm_head.weight"], a["lm_head.weight"])
    assert torch.equal(state["model.norm.weight"], a["model.norm.weight"])


def test_parents_of_other_shapes_are_refused(tmp_path):
    tiny("llama", intermediate_size=64).save_pretrained(tmp_path)
    parents = [opened("llama"), Parent.open(Source("wide", "tiny"), tmp_path)]
    bp = Blueprint(tuple(p.source for p in parents), (LayerSpec((Part(0, 0, 0.5), Part(1, 0, 0.5))),))
    with pytest.raises(IncompatibleSources, match="wide@tiny"):
        check(bp, parents)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (LayerSpec((Part(0, DEPTH),)), f"layer {DEPTH} of llama-float32@tiny, which has {DEPTH} layers"),
        (LayerSpec((Part(0, 0),), norms=Part(0, 9)), "layer 9"),
        (LayerSpec((Part(0, 0),), mlp_level=2), "no level library"),
    ],
)
def test_a_blueprint_beyond_its_parents_is_refused(spec, what, tmp_path):
    parent = opened("llama")
    with pytest.raises(InvalidBlueprint, match=what):
        write(Blueprint((parent.source,), (spec,)), [parent], tmp_path)
    assert not list(tmp_path.iterdir())


def test_nan_weights_are_named(tmp_path):
    model = tiny("llama")
    model.model.layers[2].mlp.up_proj.weight.data[3, 1] = float("nan")
    model.save_pretrained(tmp_path)
    parent = Parent.open(Source("broken", "tiny"), tmp_path)
    with pytest.raises(BrokenCheckpoint, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds NaN"):
        assemble(Blueprint.identity(parent.source, DEPTH), [parent])


def test_nothing_is_read_before_it_is_needed():
    parent = opened("llama")
    read = dict(plan_tensors(blueprint(parent, "dropped"), [parent]))
    assert len(read) == 3 + 4 * 16 and all(map(callable, read.values()))


def test_parameters_and_halves_add_up():
    for name in EVERY:
        parent = opened(name)
        source = stock(saved(name))
        assert parent.parameters == source.num_parameters(), name
        inside = sum(sum(h.values()) for h in parent.half_parameters)
        layers = source.get_submodule(parent.family.layers)
        assert inside == sum(p.numel() for p in layers.parameters()), name
        attention = layers[0].get_submodule(parent.family.attention)
        assert parent.half_parameters[0]["attention"] == sum(p.numel() for p in attention.parameters()), name


def test_the_bank_keeps_the_layers_it_made_last_and_shares_plain_ones():
    parent = opened("llama")
    dense = assemble(Blueprint.identity(parent.source, DEPTH), [parent])
    bank = LayerBank(dense, [parent], capacity=2)
    assert bank.module(LayerSpec((Part(0, 3),))) is dense.model.layers[3]
    made = [LayerSpec((Part(0, i, 0.5), Part(0, i + 1, 0.5))) for i in range(3)]
    first = bank.module(made[0])
    assert bank.module(made[0]) is first
    for spec in made[1:]:
        bank.module(spec)
    assert len(bank._made) == 2 and bank.module(made[0]) is not first


def test_a_half_that_is_gone_adds_nothing():
    parent = opened("opt")
    dense = assemble(Blueprint.identity(parent.source, DEPTH), [parent])
    bank = LayerBank(dense, [parent])
    states = torch.randn(1, 4, 32)
    both = bank.module(LayerSpec((Part(0, 1),), attn_level=GONE, mlp_level=GONE))
    out = both(states)
    assert torch.equal(out[0] if isinstance(out, tuple) else out, states)
