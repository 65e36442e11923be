from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_prune.evaluation import speed
from hf_prune.evaluation.speed import kv_bytes_per_token, measure

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES = {
    "llama": {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 16},
    "gemma2": {**SMALL, "num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 8},
    "phi3": {**SMALL, "num_key_value_heads": 4, "intermediate_size": 48, "pad_token_id": 0},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
}


class Clock:
    """Stands for a model and for the clock: every call takes `tokens x cost` seconds and is written down."""

    now = 0.0
    calls: list = []
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, name, cost, positions=1000):
        self.name, self.cost = name, cost
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=positions))

    def get_input_embeddings(self):
        return torch.nn.Embedding(10, 2)

    def __call__(self, input_ids, past_key_values=0, **_):
        seen, tokens = past_key_values, input_ids.shape[1]
        Clock.calls.append((self.name, seen, tokens))
        # every fourth round something else wants the machine
        Clock.now += tokens * self.cost * (100 if len(Clock.calls) % 4 == 0 else 1)
        return SimpleNamespace(logits=torch.zeros(1, 1, 10), past_key_values=seen + tokens)


@pytest.fixture
def clock(monkeypatch):
    Clock.now, Clock.calls = 0.0, []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: Clock.now)


def test_medians_ignore_a_disturbed_round(clock):
    got = measure({"a": Clock("a", 0.5), "b": Clock("b", 0.25)}, np.random.default_rng(0), 6, 1, repeats=5)
    assert got["a"]["prefill_tokens_per_s"] == pytest.approx(2.0)
    assert got["b"]["prefill_tokens_per_s"] == pytest.approx(4.0)


def test_the_quickest_round_may_count(clock):
    # Of two rounds the decoding of the first is disturbed.
    got = measure({"a": Clock("a", 0.5)}, np.random.default_rng(0), 6, 1, repeats=2, of_rounds=min)
    assert got["a"]["prefill_tokens_per_s"] == pytest.approx(2.0)
    assert got["a"]["decode_tokens_per_s"] == pytest.approx(2.0)


def test_models_take_turns_and_decoding_goes_on_from_the_prefill(clock):
    got = measure({"a": Clock("a", 1.0), "b": Clock("b", 1.0)}, np.random.default_rng(0), 6, 2, repeats=3)
    prefills = [name for name, seen, _ in Clock.calls if seen == 0]
    assert prefills == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert [call[1:] for call in Clock.calls[:3]] == [(0, 6), (6, 1), (7, 1)]
    assert (got["prefill_tokens"], got["decode_tokens"], got["repeats"]) == (6, 2, 3)


def test_few_positions_shrink_the_measurement(clock):
    got = measure({"a": Clock("a", 1.0), "b": Clock("b", 1.0, 40)}, np.random.default_rng(0), 256, 32, repeats=1)
    assert got["prefill_tokens"] + got["decode_tokens"] == 40 and got["decode_tokens"] == 10


def test_real_models_give_finite_speeds():
    config = AutoConfig.for_model("llama", **FAMILIES["llama"])
    models = {"dense": AutoModelForCausalLM.from_config(config).eval()}
    got = measure(models, np.random.default_rng(0), 16, 4, repeats=1)
    assert all(0 < v < float("inf") for v in got["dense"].values())
    assert got["device"] == "cpu" and got["dtype"] == "float32" and got["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_bytes_are_those_of_the_real_cache(family):
    config = AutoConfig.for_model(family, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.inference_mode():
        cache = model(torch.arange(5)[None], use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes_per_token(config, 4) * 5 == real
    assert kv_bytes_per_token(config.to_dict(), 4) * 5 == real
    assert kv_bytes_per_token(config, 2, layers=[1]) * 6 * 5 == real


def test_kv_bytes_look_into_a_nested_text_config():
    assert kv_bytes_per_token({"text_config": FAMILIES["llama"]}, 2) == 2 * 3 * 2 * 8 * 2


def test_products_have_a_rate_in_both_precisions():
    search, training = speed.product_rates(size=64, repeats=2)
    assert search > 1e6 and training > 1e6
