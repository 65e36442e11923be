"""Assemble: a blueprint becomes a model, in memory and on disk, the same one in both, in every family."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_prune.assembly.assemble import Parent, assemble, check, output_config, plan_tensors, write
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part, Source
from hf_prune.errors import BrokenCheckpoint, IncompatibleSources, InvalidBlueprint
from hf_prune.evaluation.evaluator import Evaluator
from tests.families import DEPTH, EVERY, VOCABULARY, tiny
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


# Layers used twice, empty layers, shards ---------------------------------------------------------------------------

TWICE = [LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 1),)), LayerSpec((Part(0, 1),)),
         LayerSpec((Part(0, 2, 0.5), Part(0, 3, 0.5)), norms=Part(0, 1)), LayerSpec((Part(0, 0),))]  # fmt: skip


@families
def test_a_layer_used_twice_is_written_twice(name, tmp_path):
    parent = opened(name)
    write(Blueprint((parent.source,), tuple(TWICE)), [parent], tmp_path)
    assert close(logits(oracle(name, TWICE), WINDOWS), logits(stock(tmp_path), WINDOWS))


def test_a_layer_that_lost_both_halves_is_left_out(tmp_path):
    parent = opened("qwen3")
    empty = LayerSpec((Part(0, 1),), attn_level=GONE, mlp_level=GONE)
    bp = Blueprint((parent.source,), (EDITS["identity"][0], empty, EDITS["identity"][5]))
    write(bp, [parent], tmp_path)
    kept = [EDITS["identity"][0], EDITS["identity"][5]]
    for model in (stock(tmp_path), assemble(bp, [parent])):
        assert model.config.num_hidden_layers == 2
        assert close(logits(oracle("qwen3", kept), WINDOWS), logits(model, WINDOWS))
    written = Blueprint.from_json((tmp_path / "blueprint.json").read_text())
    assert written.layers == tuple(kept) and written.digest == bp.digest
    with pytest.raises(InvalidBlueprint, match="no layers"):
        write(Blueprint((parent.source,), (empty,)), [parent], tmp_path)


def test_a_merge_nobody_knows_is_refused_by_name(tmp_path):
    parent = opened("llama")
    spec = LayerSpec((Part(0, 0, 0.5), Part(0, 1, 0.5)), merge="average")
    with pytest.raises(InvalidBlueprint, match="merges by 'average'; known are linear"):
        write(Blueprint((parent.source,), (spec,)), [parent], tmp_path)
    assert not list(tmp_path.iterdir())


@families
def test_shards_hold_the_same_model_and_sizes_are_those_of_the_files(name, tmp_path):
    parent = opened(name)
    folders = {size: tmp_path / str(size) for size in (1 << 14, 1 << 30)}
    for size, folder in folders.items():
        folder.mkdir()
        parameters, stored = write(blueprint(parent, "halved"), [parent], folder, shard_bytes=size)
        files = [load_file(f) for f in folder.glob("*.safetensors")]
        assert stored == sum(t.nbytes for f in files for t in f.values())
        assert parameters == sum(t.numel() for f in files for t in f.values()) == stock(folder).num_parameters()
        assert (len(files) > 5) == (size == 1 << 14)
    one, many = (stock(f).state_dict() for f in folders.values())
    assert one.keys() == many.keys() and all(torch.equal(one[k], many[k]) for k in one)


def test_what_speaks_for_the_model_comes_along_and_code_does_not(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    tiny("llama").save_pretrained(source)
    out.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja", "modeling_x.py"):
        (source / name).write_text("{}")
    parent = Parent.open(Source("speaks", "tiny"), source)
    write(Blueprint.identity(parent.source, DEPTH), [parent], out)
    come = {p.name for p in out.iterdir()} - {"config.json", "model.safetensors", "blueprint.json"}
    assert come == {"tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja",
                    "generation_config.json"}  # fmt: skip


@pytest.mark.parametrize("name", ["mpt", "falcon", "cohere", "gptj", "phi"])
def test_inferred_halves_add_nothing_whatever_their_modules_return(name, tmp_path, monkeypatch):
    """MPT's MLP adds the residual itself, Falcon's and GPT-J's layers run both halves beside each other."""
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
    monkeypatch.setitem(EVERY, name, {**small, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2,
                                      "pad_token_id": 0, **({"rotary_dim": 4} if name == "gptj" else {})})  # fmt: skip
    source, out = tmp_path / "source", tmp_path / "out"
    tiny(name).save_pretrained(source)
    out.mkdir()
    parent = Parent.open(Source(name, "tiny"), source)
    dense = assemble(Blueprint.identity(parent.source, DEPTH), [parent])
    write(blueprint(parent, "halved"), [parent], out)
    searched = Evaluator(LayerBank(dense, [parent]), WINDOWS).logits(blueprint(parent, "halved"), len(WINDOWS))
    assert parent.family.inferred and close(logits(stock(out), WINDOWS), searched)


def test_a_config_that_does_not_say_its_precision_is_completed(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    tiny("llama", dtype=torch.bfloat16).save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    del config["dtype"], config["architectures"]
    (source / "config.json").write_text(json.dumps(config))
    out.mkdir()
    parent = Parent.open(Source("mute", "tiny"), source)
    write(blueprint(parent, "dropped"), [parent], out)
    written = json.loads((out / "config.json").read_text())
    assert (written["dtype"], written["architectures"]) == ("bfloat16", ["LlamaForCausalLM"])
    assert stock(out).dtype == torch.bfloat16
