"""Families: every row names what is really there, the rest is inferred or refused by name, and lists follow layers."""

import copy
import functools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import BrokenCheckpoint, UnsupportedArchitecture
from hf_prune.models.configs import config_of as written
from hf_prune.models.configs import language_tower, read_config, skeleton
from hf_prune.models.families import CUT_BY_WIDTH, FAMILIES, REFUSED, UNCUT
from hf_prune.models.inference import family_of, infer
from hf_prune.models.mixtures import ROUTINGS
from hf_prune.models.modeling_pruned import FAMILIES as NARROW
from hf_prune.models.numbering import depth_of, is_writable, sliced
from tests.families import DEPTH, EVERY, INFERRED, TINY, config_of, tiny
from tests.shrunk import shrunk, whole

ROWS = sorted({*FAMILIES, *INFERRED})
every = pytest.mark.parametrize("name", ROWS)
halved = pytest.mark.parametrize("name", [n for n in ROWS if n not in FAMILIES or FAMILIES[n].halved])


def test_every_tiny_model_has_a_row_or_is_inferred():
    assert set(TINY) <= set(FAMILIES) and all(f.model_type == name for name, f in FAMILIES.items())
    assert not set(INFERRED) & set(FAMILIES) and not set(UNCUT) & set(FAMILIES)


def test_rows_know_who_can_be_cut_to_layers_that_differ():
    assert {*CUT_BY_WIDTH, *ROUTINGS} == set(NARROW)


def test_rows_load_no_torch():
    code = "import sys, hf_prune.models.families\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


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


@halved
def test_halves_and_norms_divide_the_tensors_of_a_layer(name):
    family = family_of(config_of(name))
    for layer in skeleton(config_of(name)).get_submodule(family.layers):
        found = {suffix: family.half(suffix) for suffix, _ in layer.named_parameters()}
        assert {"attention", "mlp"} <= set(found.values())
        assert all(half or family.is_norm(suffix) for suffix, half in found.items())
        own = family.of_layer(found)
        assert own.attention in {s.partition(".")[0] for s, half in found.items() if half == "attention"}
        assert own == own.of_layer(found) and all(
            own.half(s) == h for s, h in found.items() if isinstance(own.mlp, str)
        )


def test_norms_are_told_by_what_they_are_called():
    for name in EVERY:
        family = family_of(config_of(name))
        for path, module in skeleton(config_of(name)).get_submodule(family.layers)[1].named_modules():
            for suffix, _ in module.named_parameters(prefix=path, recurse=False):
                assert family.is_norm(suffix) == ("norm" in type(module).__name__.lower()), suffix


@pytest.mark.parametrize("name", EVERY)
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


OTHERWISE = {"opt", "granitemoehybrid", "lfm2", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
"""Whose halves do not show by the names of their classes."""


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - OTHERWISE))
def test_what_would_be_inferred_is_what_the_row_says(name):
    row, found = FAMILIES[name], infer(config_of(name))
    same = {"inferred": False, "opaque": row.opaque, "refuse": row.refuse, "scales": row.scales, "last": row.last}
    if not row.halved:
        same |= dict.fromkeys(("attention", "attention_out", "mlp", "mlp_out", "attention_norm", "mlp_norm"))
    if row.attention_norm:
        same |= {"attention_norm": row.attention_norm, "mlp_norm": row.mlp_norm}
    found = replace(found, depth_key=row.depth_key, **same)
    for key in ("attention_out", "mlp_out"):
        ours, theirs = getattr(row, key), getattr(found, key)
        assert set(ours if isinstance(ours, tuple) else [ours]) >= set(
            theirs if isinstance(theirs, tuple) else [theirs]
        )
        found = replace(found, **{key: ours})
    assert found == row and depth_of(config_of(name), infer(config_of(name))) == DEPTH


@pytest.mark.parametrize("name", ["falcon", "gptj", "mpt", "phi", "olmo"])
def test_more_families_that_leave_no_doubt(name):
    family = family_of(shrunk(name))
    layer = skeleton(shrunk(name)).get_submodule(family.layers)[0]
    for path in (family.attention, family.attention_out, family.mlp, family.mlp_out):
        layer.get_submodule(path)
    assert isinstance(layer.get_submodule(family.mlp_out), torch.nn.Linear)


def test_a_type_that_transformers_has_no_model_of_is_refused():
    with pytest.raises(UnsupportedArchitecture, match="no causal language model for model_type 't5'"):
        family_of(shrunk("t5", is_encoder_decoder=False))


@pytest.mark.parametrize(("key", "fine"), [(key, fine) for key, fine, _ in REFUSED])
def test_a_rule_that_no_cut_can_follow_is_refused(key, fine):
    assert family_of(shrunk("cohere", **{key: fine})).inferred
    for name in ("cohere", "llama"):
        other = [3] if isinstance(fine, list) else not fine if isinstance(fine, bool) else 2
        with pytest.raises(UnsupportedArchitecture, match=rf"{name} with {key}=.* cannot be cut"):
            family_of(shrunk(name, **{key: other}))


@pytest.mark.parametrize(
    ("name", "key", "fine", "reason"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", False, "by the layer's number"),
        ("opt", "do_layer_norm_before", True, "normalise after the sum"),
        ("opt", "_remove_final_layer_norm", False, "no final norm"),
        ("gemma4_text", "hidden_size_per_layer_input", 0, "anew for each layer"),
        ("gemma4_text", "num_kv_shared_layers", 0, "use keys and values of earlier ones"),
    ],
)
def test_settings_that_break_a_row_are_refused(name, key, fine, reason):
    config = config_of(name)
    assert getattr(config, key) == fine and family_of(config) is FAMILIES[name]
    setattr(config, key, not fine if isinstance(fine, bool) else 2)
    with pytest.raises(UnsupportedArchitecture, match=f"{name} with {key}=.* cannot be cut: .*{reason}"):
        family_of(config)


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.refuse and not f.last])
def test_what_a_file_leaves_out_is_fine_where_a_plan_reads_it_alone(name):
    """Or a plan, which knows no defaults, would say otherwise than a run."""
    default = type(config_of(name))()
    assert all(getattr(default, key, fine) == fine for key, fine, _ in FAMILIES[name].refuse)
    assert family_of(default) is FAMILIES[name]


def test_numbered_layers_would_really_change():
    """Or the refusal of diffllama would be needless."""
    config = shrunk("diffllama")
    before, after = (skeleton(c).model.layers for c in (config, sliced(config, infer(config), range(1, DEPTH))))
    assert before[1].self_attn.lambda_init != after[0].self_attn.lambda_init


def test_a_language_tower_is_taken_where_it_loads_by_itself():
    for name in ("qwen3_5", "llama4"):
        assert language_tower(whole(name)).model_type == f"{name}_text"
    for name in ("gemma3", "mllama", "emu3"):
        config = whole(name)
        assert language_tower(config) is config


# Lists ---------------------------------------------------------------------------------------------------------------


@functools.cache
def family_of_cached(name):
    return family_of(config_of(name))


@given(st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=2 * DEPTH), st.sampled_from(sorted(TINY)))
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
    with pytest.raises(UnsupportedArchitecture, match="cohere lists 'mystery' with one entry per layer"):
        family_of(config_of("cohere", **odd))
    family = family_of(config_of("cohere"))
    with pytest.raises(UnsupportedArchitecture, match="cohere lists 'mystery' with one entry per layer"):
        sliced(config_of("cohere", **odd), family, [0])
    short = sliced(config_of("cohere", mystery=[1, 2]), family, [0, 1, 2])
    assert short.mystery == [1, 2] and short.num_hidden_layers == 3


def test_lists_that_speak_of_no_layers_stay():
    config = config_of("qwen3", eos_token_id=list(range(DEPTH)))
    assert sliced(config, FAMILIES["qwen3"], [0]).eos_token_id == list(range(DEPTH))


MOE = {"decoder_sparse_step": 2, "mlp_only_layers": [1]}


@pytest.mark.parametrize(
    ("name", "settings", "kept", "expected"),
    [
        ("bamba", {"attn_layer_indices": [0, 4]}, (0, 2, 4), {"attn_layer_indices": [0, 2]}),
        ("qwen3_moe", MOE, (1, 2, 3, 5), {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]}),
        ("deepseek_v3", {"first_k_dense_replace": 3}, (0, 2, 4), {"first_k_dense_replace": 2}),
        ("glm4_moe", {"first_k_dense_replace": 1}, (1, 2), {"first_k_dense_replace": 0}),
        ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_layer_end_index": 4}, (1, 2, 4, 5),
         {"moe_layer_start_index": 1, "moe_layer_end_index": 2}),
        ("gpt_neo", {}, (1, 3, 4), {"attention_layers": ["local", "local", "global"],
                                    "attention_types": [[["local"], 1], [["local"], 1], [["global"], 1]]}),
        ("nemotron_h", {}, (0, 2, 5), {"layers_block_type": ["full_attention", "moe", "moe"]}),
        ("qwen3_next", {}, (0, 1, 4), {"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
        ("longcat_flash", {}, (0, 2), {"num_layers": 2}),
        ("xlstm", {}, (0, 2), {"num_hidden_layers": 2, "num_blocks": 2}),
        ("granite_swa", {"layer_rope_theta": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}, (1, 5),
         {"layer_rope_theta": [2.0, 6.0]}),
        ("llama4_text", {"moe_layers": [1, 3, 5]}, (0, 1, 3), {"moe_layers": [1, 2]}),
    ],
)  # fmt: skip
def test_what_a_config_says_of_layers_by_number_follows_them(name, settings, kept, expected):
    config = shrunk(name, **settings)
    family = family_of(config)
    cut = sliced(config, family, kept)
    again = written(json.loads(cut.to_json_string()))
    for found in (cut, again):
        assert {key: getattr(found, key) for key in expected} == expected and depth_of(found, family) == len(kept)
    before, after = (skeleton(c).get_submodule(family.layers) for c in (config, again))
    for new, old in enumerate(kept):
        assert {n: t.shape for n, t in after[new].state_dict().items()} == {
            n: t.shape for n, t in before[old].state_dict().items()
        }


def test_settings_of_single_layers_follow_them():
    config = shrunk("llama", per_layer_config={1: {"intermediate_size": 24}, 4: {"num_key_value_heads": 4}})
    cut = sliced(config, family_of(config), [0, 2, 4, 1])
    assert cut.to_dict()["per_layer_config"] == {"2": {"num_key_value_heads": 4}, "3": {"intermediate_size": 24}}


def test_the_first_layers_stay_first():
    config = shrunk("deepseek_v3", first_k_dense_replace=2)
    with pytest.raises(UnsupportedArchitecture, match=r"\[0, 3, 1\] cannot stand .*: .*below 2 must come first"):
        sliced(config, family_of(config), [0, 3, 1])


@pytest.mark.parametrize(
    ("name", "kept", "reason"),
    [
        ("gemma4_text", [0, 1, 2], "last layer of a gemma4_text must be of full_attention.* keep the last layer"),
        ("qwen3_next", [1, 2, 3], r"leaves a qwen3_next without any attention layer \(of \[0, 4\]\)"),
        ("nemotron_h", [1, 2, 3], "leaves a nemotron_h without any attention layer"),
        ("olmo_hybrid", [0, 1], "leaves a olmo_hybrid without any attention layer"),
    ],
)
def test_a_cut_that_no_config_can_say_is_refused(name, kept, reason):
    config = shrunk(name)
    family = family_of(config)
    with pytest.raises(UnsupportedArchitecture, match=reason):
        sliced(config, family, kept)
    assert not is_writable(config, family, kept) and is_writable(config, family, range(DEPTH))


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
