"""Families: every row names what is really there, the rest is inferred or refused by name, and lists follow layers."""

import copy
import functools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from hf_prune.errors import BrokenCheckpoint, UnsupportedArchitecture
from hf_prune.models.families import FAMILIES, PERIODIC, depth_of, family_of, infer, read_config, skeleton, sliced
from tests.families import DEPTH, EVERY, GROUPED, INFERRED, TINY, tiny

every = pytest.mark.parametrize("name", EVERY)


def config_of(name, **changes):
    return AutoConfig.for_model(name, **{**EVERY.get(name, GROUPED), **changes})


def test_every_row_has_a_tiny_model():
    assert set(TINY) == set(FAMILIES) and all(f.model_type == name for name, f in FAMILIES.items())
    assert not set(INFERRED) & set(FAMILIES)


# Rows and inference --------------------------------------------------------------------------------------------------


@every
def test_the_layers_and_the_final_norm_are_where_the_row_says(name):
    config = config_of(name)
    family, model = family_of(config), skeleton(config)
    layers = model.get_submodule(family.layers)
    assert len(layers) == depth_of(config, family) == DEPTH and all(p.is_meta for p in model.parameters())
    assert "norm" in type(model.get_submodule(family.norm)).__name__.lower()
    assert family.norm.rpartition(".")[0] == family.layers.rpartition(".")[0]
    assert family.inferred == (name in INFERRED)


@every
def test_halves_and_norms_divide_the_tensors_of_a_layer(name):
    family = family_of(config_of(name))
    layer = skeleton(config_of(name)).get_submodule(family.layers)[1]
    for path, module in layer.named_modules():
        kind = type(module).__name__.lower()
        for suffix, _ in module.named_parameters(prefix=path, recurse=False):
            top = suffix.partition(".")[0]
            assert family.is_norm(suffix) == ("norm" in kind), suffix
            expected = {"self_attn": "attention", "attn": "attention", "attention": "attention"}.get(top)
            expected = "mlp" if top in ("mlp", "fc1", "fc2") else expected
            assert family.half(suffix) == expected, suffix
            assert expected or family.is_norm(suffix)


@every
def test_silenced_tensors_are_one_linear_map_a_half_and_leave_it_nothing_to_add(name):
    model, family, said = tiny(name), family_of(config_of(name)), {}
    layers = model.get_submodule(family.layers)
    assert not any(family.silenced(n, False, False) for n, _ in layers[1].named_parameters())
    for half in ("attention", "mlp"):
        silent = {
            n: p for n, p in layers[1].named_parameters() if family.silenced(n, half == "attention", half == "mlp")
        }
        assert [n.rpartition(".")[2] for n in silent] in (["weight"], ["weight", "bias"], ["down_proj"])
        for p in silent.values():
            p.data.zero_()
    for i in (1, 2):
        for child, module in layers[i].named_children():
            if "ttention" in type(module).__name__ or child in ("mlp", "fc2"):
                module.register_forward_hook(lambda m, a, out, key=(i, child): said.update({key: out}))
    model(input_ids=torch.arange(3, 9)[None])
    silence = {key: bool((out[0] if isinstance(out, tuple) else out).eq(0).all()) for key, out in said.items()}
    assert len(silence) == 4 and all(silent == (i == 1) for (i, _), silent in silence.items())


@pytest.mark.parametrize("name", [n for n in TINY if n not in ("opt", "qwen3_moe")])
def test_what_would_be_inferred_is_what_the_row_says(name):
    row, found = FAMILIES[name], infer(config_of(name))
    known = {"inferred": False, "lists": row.lists, "refuse": row.refuse, "renames": row.renames}
    assert set(found.lists) <= set(row.lists) and found.inferred
    assert replace(found, depth_key=row.depth_key, **known) == row
    assert depth_of(config_of(name), found) == DEPTH


@pytest.mark.parametrize("name", ["cohere2", "falcon", "gptj", "mpt", "phi", "olmo3"])
def test_more_families_that_leave_no_doubt(name):
    family = family_of(config_of(name, rotary_dim=4))
    layer = skeleton(config_of(name, rotary_dim=4)).get_submodule(family.layers)[0]
    for path in (family.attention, family.attention_out, family.mlp, family.mlp_out):
        layer.get_submodule(path)
    assert isinstance(layer.get_submodule(family.mlp_out), torch.nn.Linear)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mixtral", "'mixtral' is a mixture of experts.* qwen3_moe alone; choose that or a dense base"),
        ("olmoe", "'olmoe' is a mixture of experts"),
        ("qwen2_moe", "'qwen2_moe' is a mixture of experts"),
        ("mamba", "'mamba' .* an attention module in a layer found none"),
        ("bloom", r"'bloom' .* a final norm found 2 candidates \(word_embeddings_layernorm, ln_f\)"),
        ("openai-gpt", "'openai-gpt' .* a final norm found none"),
        ("trocr", r"'trocr' .* an attention module in a layer found 2 candidates \(self_attn, encoder_attn\)"),
        ("bigbird_pegasus", f"'bigbird_pegasus' .* a list of {DEPTH} layers found none"),
        ("t5", "no causal language model for model_type 't5'"),
        ("dots1", "transformers builds no dots1"),
        ("diffllama", r"'diffllama' makes self_attn\.lambda_init of a layer from its number"),
    ],
)
def test_what_leaves_a_doubt_is_refused_by_name_and_reason(name, reason):
    with pytest.raises((UnsupportedArchitecture, BrokenCheckpoint), match=reason):
        family_of(config_of(name))


@pytest.mark.parametrize("key", PERIODIC)
def test_a_key_that_tells_layers_apart_by_number_is_refused(key):
    for harmless in (None, 0, 1, [], False):
        assert family_of(config_of("granite", **{key: harmless})).inferred
    for value in (2, [3]):
        with pytest.raises(UnsupportedArchitecture, match=rf"'granite' sets {key}=\[?{value if value == 2 else 3}"):
            family_of(config_of("granite", **{key: value}))


@pytest.mark.parametrize(
    ("name", "key", "fine", "reason"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", False, "by the layer's number"),
        ("opt", "do_layer_norm_before", True, "normalise after the sum"),
        ("opt", "_remove_final_layer_norm", False, "no final norm"),
    ],
)
def test_settings_that_break_a_row_are_refused(name, key, fine, reason):
    config = config_of(name)
    assert getattr(config, key) == fine and family_of(config) is FAMILIES[name]
    setattr(config, key, not fine)
    with pytest.raises(UnsupportedArchitecture, match=f"{name} with {key}={not fine} cannot be cut: .*{reason}"):
        family_of(config)


def test_numbered_layers_would_really_change():
    """Or the refusal of diffllama above would be needless."""
    config = config_of("diffllama")
    before, after = (skeleton(c).model.layers for c in (config, sliced(config, infer(config), range(1, DEPTH))))
    assert before[1].self_attn.lambda_init != after[0].self_attn.lambda_init


# Lists ---------------------------------------------------------------------------------------------------------------


@functools.cache
def family_of_cached(name):
    return family_of(config_of(name))


@given(st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=2 * DEPTH), st.sampled_from(sorted(EVERY)))
def test_lists_follow_the_layers_and_nothing_else_changes(kept, name):
    config, family = config_of(name), family_of_cached(name)
    before = copy.deepcopy(config.to_dict())
    after = sliced(config, family, kept).to_dict()
    for key, value in before.items():
        if key in ("layer_types", "no_rope_layers") and value:
            value = [value[i] for i in kept]
        assert after[key] == (len(kept) if key == family.depth_key else value), key
    assert config.to_dict() == before


def test_sliced_lists_survive_the_file(tmp_path):
    config, kept = config_of("smollm3"), [0, 2, 4, 5]
    sliced(config, family_of(config), kept).save_pretrained(tmp_path)
    again = read_config(tmp_path)
    assert again.num_hidden_layers == 4 and again.no_rope_layers == [1, 0, 0, 0]
    assert again.layer_types == [config.layer_types[i] for i in kept]
    assert again.layer_types != config.layer_types[:4]


def test_a_list_nobody_knows_is_refused_where_the_family_is_inferred():
    odd = {"mystery": list(range(DEPTH))}
    with pytest.raises(UnsupportedArchitecture, match="granite lists 'mystery' with one entry per layer"):
        family_of(config_of("granite", **odd))
    family = family_of(config_of("granite"))
    with pytest.raises(UnsupportedArchitecture, match="granite lists 'mystery' with one entry per layer"):
        sliced(config_of("granite", **odd), family, [0])
    short = sliced(config_of("granite", mystery=[1, 2]), family, [0, 1, 2])
    assert short.mystery == [1, 2] and short.num_hidden_layers == 3


def test_a_row_knows_its_lists_so_others_stay():
    config = config_of("qwen3", eos_token_id=list(range(DEPTH)))
    assert sliced(config, FAMILIES["qwen3"], [0]).eos_token_id == list(range(DEPTH))


# Configs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing or no JSON object"),
        ("{", "missing or no JSON object"),
        ("[]", "missing or no JSON object"),
        (None, "missing or no JSON object"),
        ("{}", "of no family this transformers version knows .model_type None.; upgrade transformers"),
        ('{"model_type": "zorg"}', "of no family this transformers version knows"),
        ('{"model_type": "llama", "num_hidden_layers": "many"}', "num_hidden_layers' expected int, got str"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((UnsupportedArchitecture, BrokenCheckpoint), match=words) as refusal:
        read_config(tmp_path)
    assert "trust" not in str(refusal.value)


def test_a_config_is_read_without_running_its_code(tmp_path):
    code = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    (tmp_path / "configuration_zorg.py").write_text(code)
    auto = {"AutoConfig": "configuration_zorg.ZorgConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zorg", "auto_map": auto}))
    with pytest.raises(UnsupportedArchitecture, match="trust"):
        read_config(tmp_path)
    assert not (tmp_path / "ran").exists()
