"""What is exported has the shapes that readers compute from its config, and the logits of the result."""

import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from hf_prune.assembly.modeling_decilm import Block, neurons
from hf_prune.assembly.nemotron_nas import export_nemotron_nas
from hf_prune.cli.main import app
from hf_prune.errors import InvalidRecipe, UnsupportedArchitecture
from hf_prune.models.auto_classes import classes, pruned_config
from tests.families import VOCABULARY, save_tiny

PLAIN = {"attention_bias": False, "mlp_bias": False, "sliding_window": None, "num_hidden_layers": 3,
         "intermediate_size": 768}  # fmt: skip
HALF = {"num_attention_heads": 2, "num_key_value_heads": 1}
TOKENS = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip


def result(folder, layers, family="llama", dtype=torch.float32, **changes):
    """A random model of several widths, saved."""
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=4,
                                  num_key_value_heads=2, **{**PLAIN, **changes})  # fmt: skip
    made = pruned_config(config, layers)
    torch.manual_seed(0)
    model = classes(family)[1](made).to(dtype).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def logits(model):
    with torch.inference_mode():
        return model.eval()(TOKENS).logits


def read(raw, number, seen=lambda mult: mult):
    """(query rows, key rows, neurons) of a layer as readers compute them; 0 where it has no such half."""
    block, hidden = raw["block_configs"][number], raw["hidden_size"]
    attention, ffn = block["attention"], block["ffn"]
    assert not attention["replace_with_linear"] and not ffn["replace_with_linear"]
    assert attention["no_op"] is (attention["n_heads_in_group"] is None) and ffn["no_op"] is (
        ffn.get("ffn_mult", 0) is None
    )
    keys = 0 if attention["no_op"] else raw["num_attention_heads"] // attention["n_heads_in_group"]
    if "ffn_mult" in ffn:
        size = 0 if ffn["no_op"] else int(2 * seen(ffn["ffn_mult"]) * hidden / 3)
        while size % 256:
            size += 1
    else:
        size = ffn["intermediate_size"]
    return (raw["num_attention_heads"] * raw["head_dim"] if keys else 0, keys * raw["head_dim"], size)


def check(folder, model):
    """Shapes are those of the readers, and transformers computes the logits of the result."""
    raw, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    for number in range(raw["num_hidden_layers"]):
        queries, keys, size = read(raw, number)
        assert size == read(raw, number, lambda mult: round(mult, 6))[2]
        own = {n.split(".", 3)[3].removesuffix(".weight"): list(t.shape) for n, t in tensors.items()
               if n.startswith(f"model.layers.{number}.")}  # fmt: skip
        attention = {"input_layernorm": [32], "self_attn.q_proj": [queries, 32], "self_attn.k_proj": [keys, 32],
                     "self_attn.v_proj": [keys, 32], "self_attn.o_proj": [32, queries]}  # fmt: skip
        mlp = {"post_attention_layernorm": [32], "mlp.gate_proj": [size, 32], "mlp.up_proj": [size, 32],
               "mlp.down_proj": [32, size]}  # fmt: skip
        assert own == {**(attention if keys else {}), **(mlp if size else {})}
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert loaded.dtype == model.dtype and type(loaded).__name__ == "DeciLMForCausalLM"
    torch.testing.assert_close(logits(loaded), logits(model))
    whole, again = (loaded.generate(TOKENS[:, :4], max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0)
                    for cache in (True, False))  # fmt: skip
    assert whole.tolist() == again.tolist()
    return raw, loaded


@given(st.integers(1, 200), st.integers(1, 1024))
def test_the_multiple_gives_the_neurons_back_also_when_rounded(blocks, hidden):
    size, hidden = 256 * blocks, 8 * hidden
    mult = 3 * size / (2 * hidden)
    assert neurons(mult, hidden) == neurons(round(mult, 6), hidden) == size
    exact = Fraction(2) * Fraction(mult) * hidden / 3
    assert size - 256 < exact <= size or int(2 * mult * hidden / 3) == size


def test_widths_and_removed_halves_are_said(tmp_path):
    layers = {0: {"intermediate_size": 256}, 1: {"skip": ["attention"]}, 2: {"intermediate_size": 512}}
    model = result(tmp_path / "small", layers, rope_parameters=LLAMA3)
    written = sum(p.numel() for p in model.parameters()) - 32
    assert export_nemotron_nas(tmp_path / "small", tmp_path / "out") == (written, 0, 0)
    raw, loaded = check(tmp_path / "out", model)
    assert [b["ffn"]["ffn_mult"] for b in raw["block_configs"]] == [12.0, 36.0, 24.0]
    assert [b["attention"]["no_op"] for b in raw["block_configs"]] == [False, True, False]
    assert raw["num_attention_heads"] == 4 and raw["head_dim"] == 8 and raw["rope_theta"] == 5e5
    assert loaded.config.rope_parameters == LLAMA3 and raw["original_max_position_embeddings"] == 16
    # As objects and as dictionaries, and again after a second saving.
    loaded.save_pretrained(tmp_path / "again")
    block = AutoConfig.from_pretrained(tmp_path / "again", trust_remote_code=True).block_configs[1]
    assert block.attention.no_op and block["ffn"]["ffn_mult"] == 36.0 and not hasattr(block.ffn, "sparsify")


def test_one_number_of_heads_for_all_is_said(tmp_path):
    model = result(tmp_path / "small", {0: HALF, 1: {**HALF, "intermediate_size": 256}, 2: {"skip": ["attention"]}},
                   "mistral", torch.bfloat16, tie_word_embeddings=True)  # fmt: skip
    export_nemotron_nas(tmp_path / "small", tmp_path / "out")
    raw, _ = check(tmp_path / "out", model)
    assert (raw["num_attention_heads"], raw["num_key_value_heads"], raw["head_dim"]) == (2, 1, 8)
    assert raw["torch_dtype"] == "bfloat16" and raw["tie_word_embeddings"]


def test_a_result_of_one_width_is_said_too(tmp_path):
    model = save_tiny("llama", tmp_path / "small", **PLAIN)
    export_nemotron_nas(tmp_path / "small", tmp_path / "out")
    check(tmp_path / "out", model)


REFUSED = {
    "2 query heads and another layer 4": {2: HALF},
    "has attention but no MLP": {2: {"skip": ["mlp"]}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_layer_has_beyond_the_format_is_refused_or_filled_up(tmp_path, why):
    model = result(tmp_path / "small", REFUSED[why])
    with pytest.raises(UnsupportedArchitecture, match=f"layer 2: it .*{why}"):
        export_nemotron_nas(tmp_path / "small", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    whole, zeros, _ = export_nemotron_nas(tmp_path / "small", tmp_path / "out", pad=True)
    raw, loaded = check(tmp_path / "out", model)
    assert whole == sum(p.numel() for p in loaded.parameters()) and raw["num_attention_heads"] == 4
    assert zeros == whole - sum(p.numel() for p in model.parameters()) > 0


def test_odd_numbers_of_neurons_are_said_as_they_are(tmp_path):
    model = result(tmp_path / "small", {0: {"intermediate_size": 300}, 2: {"intermediate_size": 512}})
    whole, zeros, odd = export_nemotron_nas(tmp_path / "small", tmp_path / "out")
    raw, loaded = check(tmp_path / "out", model)
    assert (zeros, odd) == (0, 1) and whole == sum(p.numel() for p in loaded.parameters())
    assert [set(b["ffn"]) - {"no_op", "replace_with_linear"} for b in raw["block_configs"]] == [
        {"intermediate_size"}, {"ffn_mult"}, {"ffn_mult"}]  # fmt: skip
    said = CliRunner().invoke(app, ["export", str(tmp_path / "small"), "--format", "nemotron-nas"])
    assert "1 layers have numbers of neurons that are no multiples of 256, which vLLM reads" in said.output


def test_attention_of_the_first_layer_is_never_gone(tmp_path):
    model = result(tmp_path / "small", {0: {"skip": ["attention"]}})
    with pytest.raises(UnsupportedArchitecture, match="layer 0: it has no attention"):
        export_nemotron_nas(tmp_path / "small", tmp_path / "out")
    export_nemotron_nas(tmp_path / "small", tmp_path / "out", pad=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("qwen3", {}, "this is a qwen3"),
        ("gemma3_text", {}, "this is a gemma3_text"),
        ("qwen2", {}, "this is a qwen2"),
        ("llama", {"mlp_bias": True}, "biases"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("llama", {"rope_parameters": {**LLAMA3, "rope_type": "linear"}}, "positions of type linear"),
        ("mistral", {"sliding_window": 5}, "looks back 5 tokens"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, family, changes, why):
    save_tiny(family, tmp_path, **({**PLAIN, **changes} if family in ("llama", "mistral") else changes))
    with pytest.raises(UnsupportedArchitecture, match=f"{why}.*; publish the result as it is"):
        export_nemotron_nas(tmp_path, tmp_path / "out")


def test_the_command_writes_a_folder_once(tmp_path):
    result(tmp_path / "small", {1: {"intermediate_size": 300}})
    (tmp_path / "small/tokenizer.json").write_text("{}")
    said = CliRunner().invoke(app, ["export", str(tmp_path / "small"), "--format", "nemotron-nas", "--pad"])
    out = tmp_path / "small-nemotron-nas"
    assert said.output.splitlines() == [str(out), "20,352 of 212,256 parameters are zeros that fill up."]
    assert {p.name for p in out.iterdir()} == {"config.json", "model.safetensors", "modeling_decilm.py",
                                               "tokenizer.json", "generation_config.json"}  # fmt: skip
    with pytest.raises(InvalidRecipe, match="exists; choose another --output"):
        export_nemotron_nas(tmp_path / "small", out, pad=True)
    wrong = CliRunner().invoke(app, ["export", str(tmp_path / "small"), "--pad"])
    assert wrong.exit_code == 2 and "--pad has no meaning for --format mergekit" in wrong.output


def test_a_block_is_copied_and_stored_as_a_dictionary():
    block = Block.of({"ffn": {"no_op": True}})
    assert json.loads(json.dumps(block)) == {"ffn": {"no_op": True}} and block.ffn.no_op
