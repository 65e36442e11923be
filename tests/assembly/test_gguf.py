"""A GGUF file holds the tensors of the result, each once, and says what llama.cpp reads of model and tokenizer."""

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from hf_prune.assembly.gguf import vocabulary as words
from hf_prune.assembly.gguf.certificate import divergence
from hf_prune.assembly.gguf.export import export_gguf
from hf_prune.assembly.gguf.layout import ARCHITECTURES, period, rope_factors
from hf_prune.assembly.gguf.llama_cpp import VARIABLE
from hf_prune.assembly.gguf.stamp import read_stamp
from hf_prune.cli.main import app
from hf_prune.data.bundled import bundled_folder
from hf_prune.data.hard_texts import PARTS
from hf_prune.errors import InvalidRecipe, ReloadMismatch, UnsupportedArchitecture
from hf_prune.models.auto_classes import classes, pruned_config
from hf_prune.models.plain_checkpoint import copy_tokenizer
from tests.llama_cpp import llama_cpp

HALF = {"num_attention_heads": 2, "num_key_value_heads": 1}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
SHARED = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
          "num_hidden_layers": 4, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
          "pad_token_id": 1}  # fmt: skip
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}
ROUTED = {"num_experts": 6, "num_experts_per_tok": 2}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512,
        "short_factor": [1.0 + 0.1 * i for i in range(6)], "long_factor": [1.0 + i for i in range(6)],
        "partial_rotary_factor": 0.75}  # fmt: skip
LENGTHS = {"max_position_embeddings": 1024, "original_max_position_embeddings": 512}
SMALL = {"gemma2": GEMMA, "gemma3_text": GEMMA, "qwen3": {"head_dim": 24}, "mistral": {"sliding_window": None},
         "mixtral": {"num_local_experts": 6, "sliding_window": None},
         "qwen3_moe": {**ROUTED, "head_dim": 24, "moe_intermediate_size": 48, "norm_topk_prob": True},
         "qwen2_moe": {**ROUTED, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 80},
         "olmoe": {**ROUTED, "num_key_value_heads": 4}, "phi3": {"sliding_window": None}}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention"] * 2
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}<s>assistant\n"
TEXT = [p.read_text(encoding="utf-8") for p in sorted(bundled_folder("examples/demo").glob("text/*.report.jsonl"))][:2]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Without the llama.cpp that the environment may name."""
    monkeypatch.delenv(VARIABLE, raising=False)


def trained(rule, *, nfc=False, bos=False, whole=False):
    """A tokenizer of bytes that splits by a rule, with merges enough for it to matter."""
    made = Tokenizer(models.BPE(ignore_merges=whole))
    made.pre_tokenizer, made.decoder = rule, decoders.ByteLevel()
    if nfc:
        made.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    made.train_from_iterator([*TEXT, *PARTS, *PARTS], trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])  # fmt: skip


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
TOKENIZERS = {
    "gpt-2": lambda: trained(BYTES),
    "smollm": lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])),
    "llama-bpe": lambda: trained(split(words.CONTRACTED + r"\p{N}{1,3}" + words.REST), bos=True, whole=True),
    "qwen2": lambda: trained(split(words.CONTRACTED + r"\p{N}" + words.REST), nfc=True),
}


def save_tokenizer(folder, made):
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>",
                            chat_template=TEMPLATE).save_pretrained(folder)  # fmt: skip


def result(folder, family, layers=None, tokenizer="gpt-2", **changes):
    """A random model of several widths, or of one, with its tokenizer; saved."""
    made = TOKENIZERS[tokenizer]()
    size = made.get_vocab_size() + 3
    config = AutoConfig.for_model(family, vocab_size=size, **{**SHARED, **SMALL.get(family, {}), **changes})
    torch.manual_seed(0)
    if layers:
        model = classes(family)[1](pruned_config(config, layers))
    else:
        model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.float().eval().save_pretrained(folder)
    save_tokenizer(folder, made)
    return model


def read(path):
    """Fields and tensors as the reader of the package has them."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    assert len(tensors) == len(reader.tensors)
    return fields, tensors


def unrotated(rows, size=16):
    """Rows of queries or keys in the order of transformers."""
    return rows.reshape(-1, size // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def test_tensors_and_settings_of_a_llama_are_read_back(tmp_path):
    model = result(tmp_path, "llama", rope_parameters=LLAMA3, attention_bias=True, tie_word_embeddings=False)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: ns/base\n---\n")
    done = export_gguf(tmp_path)
    assert done.path == tmp_path / f"{tmp_path.name}-F32.gguf" and "UNCERTIFIED" in done.verdict
    fields, tensors = read(done.path)
    state = model.state_dict()
    assert len(tensors) == len(state) + 1
    layer, there = "model.layers.2.", "blk.2."
    for name, own in {"attn_v.weight": "self_attn.v_proj.weight", "ffn_down.weight": "mlp.down_proj.weight",
                      "attn_norm.weight": "input_layernorm.weight", "attn_v.bias": "self_attn.v_proj.bias",
                      "ffn_norm.weight": "post_attention_layernorm.weight"}.items():  # fmt: skip
        assert np.array_equal(tensors[there + name], state[layer + own].numpy())
    for letter in "qk":
        for end in ("weight", "bias"):
            own = state[f"{layer}self_attn.{letter}_proj.{end}"].numpy()
            assert np.array_equal(unrotated(tensors[f"{there}attn_{letter}.{end}"]), own)
    assert np.array_equal(tensors["output.weight"], state["lm_head.weight"].numpy())
    # What transformers divides the frequencies by.
    plain = 1 / 5e5 ** (np.arange(0, 16, 2) / 16)
    assert np.allclose(plain / tensors["rope_freqs.weight"], model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
    expected = {"general.architecture": "llama", "general.license": "apache-2.0", "llama.block_count": 4,
                "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.feed_forward_length": 96,
                "llama.rope.freq_base": 5e5, "general.base_model.0.repo_url": "https://huggingface.co/ns/base",
                "llama.context_length": 128, "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 0,
                "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_bos_token": False,
                "tokenizer.chat_template": TEMPLATE}  # fmt: skip
    assert {k: fields[k] for k in expected} == expected
    assert fields["tokenizer.ggml.tokens"][-3:] == ["[PAD900]", "[PAD901]", "[PAD902]"]
    assert fields["tokenizer.ggml.token_type"][:2] == [3, 3] and fields["tokenizer.ggml.token_type"][-1] == 5
    assert len(fields["tokenizer.ggml.merges"]) == 900 - 256 - 2


def test_widths_are_lists_and_missing_halves_are_said(tmp_path):
    layers = {0: {"skip": ["attention"]}, 1: {**HALF, "intermediate_size": 50}, 2: {"skip": ["attention"]},
              3: {"skip": ["mlp"]}}  # fmt: skip
    model = result(tmp_path, "qwen2", layers)
    fields, tensors = read(export_gguf(tmp_path).path)
    assert fields["general.architecture"] == "deci"
    assert fields["deci.attention.head_count"] == [2, 2, 0, 4]
    assert fields["deci.attention.head_count_kv"] == [1, 1, 0, 2]
    assert fields["deci.feed_forward_length"] == [96, 50, 96, 32]
    assert not tensors["blk.0.attn_output.weight"].any() and not tensors["blk.3.ffn_down.weight"].any()
    assert not [n for n in tensors if n.startswith("blk.2.attn")] and tensors["blk.2.ffn_norm.weight"].any()
    own = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], own)
    # Nothing is filled up that can be said.
    again, _ = read(export_gguf(tmp_path, tmp_path / "again.gguf", pad=True).path)
    assert again["deci.feed_forward_length"] == fields["deci.feed_forward_length"]


def test_queries_keys_and_values_of_openelm_are_one_matrix(tmp_path):
    model = result(tmp_path, "qwen3", {1: {**HALF, "intermediate_size": 50}}, tie_word_embeddings=True)
    fields, tensors = read(export_gguf(tmp_path).path)
    assert fields["general.architecture"] == "openelm" and fields["openelm.attention.head_count_kv"] == [2, 1, 2, 2]
    state = model.state_dict()
    whole = [state[f"model.layers.1.self_attn.{n}_proj.weight"] for n in "qkv"]
    assert np.array_equal(tensors["blk.1.attn_qkv.weight"], torch.cat(whole).numpy())
    assert "output.weight" not in tensors


def test_norms_and_windows_of_gemma_are_said(tmp_path):
    model = result(tmp_path, "gemma3_text", sliding_window=8, layer_types=SLIDING)
    fields, tensors = read(export_gguf(tmp_path).path)
    name = "model.layers.1.pre_feedforward_layernorm.weight"
    assert np.array_equal(tensors["blk.1.ffn_norm.weight"], model.state_dict()[name].numpy() + 1)
    assert fields["gemma3.attention.sliding_window"] == 8 and fields["gemma3.attention.sliding_window_pattern"] == 2


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_experts_lie_one_behind_the_other_and_their_router_is_not_rounded(tmp_path, kind):
    model = result(tmp_path, "mixtral", intermediate_size=64)
    done = export_gguf(tmp_path, kind=kind)
    fields, tensors = read(done.path)
    assert fields["llama.expert_count"] == 6 and fields["llama.expert_used_count"] == 2
    state = model.state_dict()
    for there, own in {"ffn_gate_exps": slice(0, 64), "ffn_up_exps": slice(64, None)}.items():
        found, wanted = (
            tensors[f"blk.2.{there}.weight"],
            state["model.layers.2.mlp.experts.gate_up_proj"][:, own].numpy(),
        )
        assert found.shape == wanted.shape == (6, 64, 64)
        assert np.abs(found - wanted).max() <= (0 if kind == "F32" else 1e-2)
    down = state["model.layers.2.mlp.experts.down_proj"].numpy()
    assert np.abs(tensors["blk.2.ffn_down_exps.weight"] - down).max() <= (0 if kind == "F32" else 1e-2)
    assert np.array_equal(tensors["blk.2.ffn_gate_inp.weight"], state["model.layers.2.mlp.gate.weight"].numpy())


def test_a_share_of_a_head_is_rotated_and_long_texts_have_factors_of_their_own(tmp_path):
    model = result(tmp_path, "phi3", rope_parameters=LONG, **LENGTHS)
    fields, tensors = read(export_gguf(tmp_path).path)
    assert fields["phi3.rope.dimension_count"] == 12 and fields["phi3.rope.scaling.original_context_length"] == 512
    scale = model.model.rotary_emb.attention_scaling
    assert scale > 1 and fields["phi3.rope.scaling.attn_factor"] == pytest.approx(scale)
    assert np.allclose(tensors["rope_factors_short.weight"], LONG["short_factor"])
    assert np.allclose(tensors["rope_factors_long.weight"], LONG["long_factor"])


@pytest.mark.parametrize(("kind", "bound"), [("f16", 1e-3), ("BF16", 1e-2), ("q8_0", 1e-2)])
def test_matrices_are_written_smaller_and_vectors_are_not(tmp_path, kind, bound):
    model = result(tmp_path, "llama", intermediate_size=100)
    done = export_gguf(tmp_path, tmp_path / "x.gguf", kind=kind)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(done.path).tensors}
    assert types["blk.0.attn_norm.weight"] == "F32" and types["blk.0.attn_v.weight"] == kind.upper()
    # Rows of 100 numbers are no whole blocks.
    assert types["blk.0.ffn_down.weight"] == ("F16" if kind == "q8_0" else kind.upper())
    _, tensors = read(done.path)
    own = model.state_dict()["model.layers.0.self_attn.v_proj.weight"].numpy()
    assert np.abs(tensors["blk.0.attn_v.weight"] - own).max() < bound * np.abs(own).max()


REFUSED = {
    "layer 2 has another width than layer 0.*gemma3.*--pad": ("gemma3_text", {2: {"intermediate_size": 50}}, {}),
    "layer 1 has no MLP.*gemma2.*--pad": ("gemma2", {1: {"skip": ["mlp"]}}, {}),
    "head of its own, and openelm.*": ("qwen3", {1: HALF}, {"tie_word_embeddings": False}),
    "activation gelu": ("llama", None, {"hidden_act": "gelu"}),
    "positions of type dynamic": ("llama", None, {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}),
    "positions of type llama3, which qwen3": ("qwen3", None, {"rope_parameters": LLAMA3}),
    "positions say partial_rotary_factor": (
        "llama",
        None,
        {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    ),
    "positions say beta_fast": ("qwen2", None, {"rope_parameters": {**YARN, "beta_fast": 16}}),
    "stand in no period": ("gemma3_text", None, {"layer_types": [*SLIDING[1:], SLIDING[1]], "sliding_window": 8}),
    "divides scores by the root of 64": ("gemma2", None, {"query_pre_attn_scalar": 64}),
    "gpt_neox is not written as GGUF": ("gpt_neox", None, {}),
    "other layers without positions than smollm3": ("smollm3", None, {"no_rope_layers": [1, 0, 1, 1]}),
    "qwen3moe divides the weights": ("qwen3_moe", None, {"norm_topk_prob": False}),
    "some of its layers have no experts": ("qwen2_moe", None, {"mlp_only_layers": [1]}),
    "fewer heads of keys than of queries": ("olmoe", None, {"num_key_value_heads": 2}),
    "clips queries": ("olmoe", None, {"clip_qkv": 8.0}),
    "layer 1 has 4 experts and layer 0 6.*serve it": ("qwen3_moe", {1: {"num_experts": 4}}, {}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_no_architecture_holds_is_refused_before_anything_is_written(tmp_path, why):
    family, layers, changes = REFUSED[why]
    result(tmp_path, family, layers, **changes)
    with pytest.raises(UnsupportedArchitecture, match=why):
        export_gguf(tmp_path)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".hf-prune*"))


def test_narrow_layers_are_filled_up_when_asked(tmp_path):
    result(
        tmp_path,
        "gemma3_text",
        {1: {"skip": ["mlp"]}, 2: {**HALF, "intermediate_size": 50}, 3: {"skip": ["attention"]}},
    )
    fields, tensors = read(export_gguf(tmp_path, pad=True).path)
    assert fields["gemma3.feed_forward_length"] == 96 and fields["gemma3.attention.head_count_kv"] == 2
    assert {t.shape for n, t in tensors.items() if "ffn_up" in n} == {(96, 64)}
    assert not tensors["blk.1.ffn_up.weight"].any() and not tensors["blk.2.ffn_up.weight"][50:].any()
    assert (tensors["blk.3.attn_q_norm.weight"] == 1).all()


@pytest.mark.parametrize("pre", TOKENIZERS)
def test_the_way_to_split_is_told_by_what_the_tokenizer_does(pre):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[pre](), bos_token="<s>", eos_token="</s>")
    found = words.vocabulary(tokenizer, 900)
    assert (found.model, found.pre, found.added["bos"]) == ("gpt2", pre, pre == "llama-bpe")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (pre_tokenizers.Whitespace(), "none of its names stands for"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "none of its names stands for"),
        (split(words.CONTRACTED + r"\p{N}{1,3}" + words.REST), "none of its names stands for"),
    ],
)
def test_other_ways_are_refused(rule, why):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained(rule), bos_token="<s>", eos_token="</s>")
    with pytest.raises(UnsupportedArchitecture, match=why):
        words.vocabulary(tokenizer, 900)


def test_text_that_is_changed_first_and_tokens_without_rows_are_refused():
    lower = trained(BYTES)
    lower.normalizer = normalizers.Lowercase()
    for made, rows, why in (
        (lower, 900, r"changes text .*Lowercase"),
        (trained(BYTES), 899, "a token 899, and .* 899"),
    ):
        with pytest.raises(UnsupportedArchitecture, match=why):
            words.vocabulary(PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>"), rows)


def test_the_command_writes_once_and_refuses_what_it_cannot_do(tmp_path):
    result(tmp_path / "small", "llama")
    said = CliRunner().invoke(app, ["export", str(tmp_path / "small"), "--format", "gguf", "--quantize", "q8_0"])
    assert said.exit_code == 0, said.output
    assert said.output.splitlines()[0].endswith("small-Q8_0.gguf") and "UNCERTIFIED" in said.output
    with pytest.raises(InvalidRecipe, match="exists; choose another --output"):
        export_gguf(tmp_path / "small", kind="q8_0")
    with pytest.raises(InvalidRecipe, match="--quantize q4_k_m is done by llama.cpp, and none is here"):
        export_gguf(tmp_path / "small", kind="q4_k_m")
    with pytest.raises(InvalidRecipe, match="--quantize q9 is unknown"):
        export_gguf(tmp_path / "small", kind="q9")
    with pytest.raises(InvalidRecipe, match="holds no libllama"):
        export_gguf(tmp_path / "small", llama_cpp=tmp_path)


def test_a_period_is_one_of_all_layers():
    def of(*full, n=6):
        kinds = ["full_attention" if i in full else "sliding_attention" for i in range(n)]
        return period(AutoConfig.for_model("gemma3_text", num_hidden_layers=n, layer_types=kinds, sliding_window=8))

    assert (of(5), of(2, 5), of(1, 3, 5), of(), of(4), of(0, 1, 2, 3, 4, 5)) == (6, 3, 2, 0, 5, 1)
    assert of(0) is of(1, 2) is of(1, 4) is None


def test_factors_are_those_of_transformers_at_both_ends():
    found = rope_factors({**LLAMA3, "original_max_position_embeddings": 8192}, 64)
    assert found[0] == 1.0 and found[-1] == 8.0 and sorted(found) == found


def test_a_divergence_is_none_of_a_model_to_itself():
    logits = np.random.default_rng(0).normal(size=(2, 5, 7)).astype("f4")
    assert divergence(logits, logits) == 0 and divergence(logits, logits[::-1].copy()) > 0.1


REAL = {
    "llama": ("llama", None, {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama linear": ("llama", None, {"rope_parameters": LINEAR, "tokenizer": "smollm"}),
    "mistral": ("mistral", None, {"tokenizer": "llama-bpe", "tie_word_embeddings": False}),
    "qwen2": ("qwen2", None, {"tokenizer": "qwen2"}),
    "qwen2 yarn": ("qwen2", None, {"rope_parameters": YARN}),
    "qwen3 yarn": ("qwen3", None, {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 32}}),
    "gemma3 linear": ("gemma3_text", None, {"sliding_window": 8, "layer_types": SLIDING, "rope_parameters": {
        "full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "qwen2, fewer heads": ("qwen2", None, {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", None, {"tokenizer": "qwen2", "tie_word_embeddings": False}),
    "gemma2": ("gemma2", None, {"sliding_window": 8, "layer_types": SLIDING}),
    "gemma3": ("gemma3_text", None, {"sliding_window": 8, "layer_types": SLIDING}),
    "smollm3": ("smollm3", None, {"tokenizer": "llama-bpe", "num_hidden_layers": 8}),
    "smollm3 with all positions": ("smollm3", None, {"no_rope_layers": [1] * 4, "rope_parameters": YARN}),
    "deci of smollm3": ("smollm3", {1: {"intermediate_size": 50}}, {"no_rope_layers": [1] * 4}),
    "phi3": ("phi3", None, {}),
    "phi3 longrope": ("phi3", None, {"rope_parameters": LONG, **LENGTHS}),
    "mixtral": ("mixtral", None, {"tie_word_embeddings": False}),
    "qwen2_moe": ("qwen2_moe", None, {"tokenizer": "qwen2"}),
    "qwen3_moe": ("qwen3_moe", None, {"tokenizer": "qwen2", "num_experts": 5}),
    "olmoe": ("olmoe", None, {}),
    "deci": ("llama", {0: {"skip": ["attention"]}, 1: {**HALF, "intermediate_size": 50}, 2: {"skip": ["attention"]},
                       3: {"skip": ["mlp"]}}, {"attention_bias": True, "rope_parameters": LLAMA3}),
    "deci of qwen2": ("qwen2", {1: HALF, 3: {"skip": ["attention"]}}, {"tie_word_embeddings": True}),
    "deci of mistral": ("mistral", {1: {"intermediate_size": 50}, 2: {"skip": ["attention", "mlp"]}}, {}),
    "openelm": ("qwen3", {0: {"skip": ["attention"]}, 1: {**HALF, "intermediate_size": 50}, 2: {"skip": ["mlp"]}},
                {"tie_word_embeddings": True}),
    "gemma3 filled up": ("gemma3_text", {1: {"skip": ["mlp"]}, 2: HALF, 3: {"skip": ["attention"]}},
                         {"pad": True, "sliding_window": 8, "layer_types": SLIDING}),
    "qwen3 filled up": ("qwen3", {1: {"skip": ["mlp"]}, 2: HALF}, {"pad": True, "tie_word_embeddings": False}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_llama_cpp_computes_the_same_and_reads_the_same_tokens(tmp_path, name):
    library = llama_cpp()
    family, layers, changes = REAL[name]
    pad = changes.pop("pad", False) if "pad" in (changes := {**changes}) else False
    result(tmp_path, family, layers, **changes)
    done = export_gguf(tmp_path, kind="f32", llama_cpp=library, pad=pad)
    logits = done.certificate["logits"]
    assert logits["difference"] < (3e-3 if "gemma" in name else 1e-4) and logits["same_spoken"] == logits["spoken"]
    assert done.certificate["tokens"]["texts"] > 100
    stamped = json.loads(read(done.path)[0]["hf_prune.certificate"])
    assert stamped == {"kind": "F32", **done.certificate}


@pytest.mark.slow
def test_a_model_without_a_layer_says_the_same_in_llama_cpp(tmp_path):
    library, source = llama_cpp(), bundled_folder("examples/demo") / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(source)
    del model.model.layers[2]
    model.config.num_hidden_layers = len(model.model.layers)
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.save_pretrained(tmp_path)
    copy_tokenizer(source, tmp_path)
    done = export_gguf(tmp_path, kind="f32", llama_cpp=library)
    logits = done.certificate["logits"]
    assert logits["difference"] < 1e-4 and logits["same_spoken"] == logits["spoken"] == 12
    fields, _ = read(done.path)
    assert fields["tokenizer.ggml.model"] == "llama" and fields["tokenizer.ggml.add_space_prefix"]
    coarse = export_gguf(tmp_path, kind="q8_0", llama_cpp=library)
    assert 0 < coarse.certificate["logits"]["kl"] < 0.05


@pytest.mark.slow
def test_llama_cpp_quantizes_what_the_package_does_not(tmp_path):
    library = llama_cpp()
    result(tmp_path, "llama", {1: {"intermediate_size": 512}}, hidden_size=256, intermediate_size=768)
    done = export_gguf(tmp_path, kind="q4_k_m", llama_cpp=library)
    types = {t.tensor_type.name for t in gguf.GGUFReader(done.path).tensors}
    assert {"Q4_K", "F32"} <= types and not list(tmp_path.glob(".hf-prune*"))
    assert read_stamp(done.path) == {"kind": "Q4_K_M", **done.certificate}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("tokens", "this file would speak another language"),
        ("model", "computes another model of this F32 file"),
        ("rule", "unknown pre-tokenizer type: 'no-such-rule'"),
    ],
)
def test_a_file_that_llama_cpp_reads_otherwise_is_an_error_and_is_not_kept(tmp_path, monkeypatch, wrong, why):
    library = llama_cpp()
    result(tmp_path, "llama")
    if wrong == "model":
        rows = tuple(replace(row, interleaved=False) for row in ARCHITECTURES)
        monkeypatch.setattr("hf_prune.assembly.gguf.layout.ARCHITECTURES", rows)
    else:
        monkeypatch.setattr(words, "_rule", lambda _: {"tokens": "qwen2", "rule": "no-such-rule"}[wrong])
    with pytest.raises(ReloadMismatch, match=why):
        export_gguf(tmp_path, kind="f32", llama_cpp=library)
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".hf-prune*"))
