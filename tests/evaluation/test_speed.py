import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_prune.evaluation import speed
from hf_prune.evaluation.speed import compare, kv_bytes_per_token, measure

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
    got = measure({"a": Clock("a", 1.0), "b": Clock("b", 1.0)}, np.random.default_rng(0), 6, 10, repeats=3)
    prefills = [name for name, seen, _ in Clock.calls if seen == 0]
    assert prefills == ["b", "a", "a", "b", "b", "a", "a", "b"]
    first = Clock.calls[: len(Clock.calls) // 4]
    assert [name for name, _, _ in first] == ["b", "a", *"b" * 8, *"a" * 8, *"bb", *"aa"]
    assert [call[1:] for call in first if call[0] == "a"] == [(0, 6), *((6 + n, 1) for n in range(10))]
    assert (got["prefill_tokens"], got["decode_tokens"], got["repeats"]) == (6, 10, 3)


class Noisy:
    """As `Clock`, with noise on every call; `waits` says how much of it the process waits for a processor."""

    dtype, device = torch.float32, torch.device("cpu")
    config = Clock("", 0).config
    get_input_embeddings = Clock.get_input_embeddings
    queued = 0.0

    def __init__(self, cost, noise, waits=lambda: 0.0):
        self.cost, self.noise, self.waits = cost, noise, waits
        self.rng = np.random.default_rng(int(1e6 * cost))

    def __call__(self, input_ids, past_key_values=0, **_):
        tokens = input_ids.shape[1]
        took = tokens * self.cost * np.exp(self.noise * self.rng.normal())
        wait = took * self.waits()
        Noisy.queued += wait
        Clock.now += took + wait
        return SimpleNamespace(logits=torch.zeros(1, 1, 10), past_key_values=past_key_values + tokens)


def compared(dense, pruned):
    Noisy.queued = 0.0
    return compare(dense, pruned, np.random.default_rng(0), queued=lambda: Noisy.queued)


def test_a_gain_beyond_noise_is_told_with_its_interval(clock):
    got = compared(Noisy(1.0, 0.05), Noisy(0.8, 0.05))
    for phase in ("prefill", "decode"):
        low, high = got[phase]["ci"]
        assert 1 < low < 1.25 < high < 1.5 and low <= got[phase]["value"] <= high
    assert got["repeats"] == 9 and got["disturbed"] == 0
    assert got["pruned"]["prefill_tokens_per_s"] == pytest.approx(1.25, rel=0.1)


def test_the_interval_of_equal_models_spans_one(clock):
    found = [compared(Noisy(1.0, 0.3), Noisy(1.001 + i / 1000, 0.3))["prefill"]["ci"] for i in range(40)]
    missed = sum(not low <= 1 <= high for low, high in found)
    assert missed <= 5  # 4 % on average


def test_rounds_in_which_the_process_waited_do_not_count(clock):
    calls = iter(range(10**9))
    # Of the 17 calls of a round; the first round is not counted.
    got = compared(Noisy(1e-4, 0.05), Noisy(8e-5, 0.05, lambda: 9.0 if next(calls) < 170 else 0.0))
    assert got["disturbed"] in (8, 9) and got["repeats"] == 25 - got["disturbed"]
    assert got["prefill"]["ci"][0] > 1.1


def test_nothing_is_said_of_a_busy_machine(clock):
    got = compared(Noisy(1.0, 0.05), Noisy(0.5, 0.05, lambda: 9.0))
    assert got["disturbed"] == 9 and got["repeats"] == 0
    assert "prefill" not in got and np.isnan(got["dense"]["decode_tokens_per_s"])


def test_who_cannot_tell_the_waiting_goes_by_the_interval(clock):
    got = compare(Noisy(1.0, 0.05), Noisy(0.5, 0.05), np.random.default_rng(0), queued=lambda: None)
    assert got["repeats"] == 9 and got["decode"]["ci"][0] > 1.5


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="this system does not count the waiting")
def test_threads_that_crowd_one_processor_wait_for_it():
    one = {min(os.sched_getaffinity(0))}

    def burn():
        os.sched_setaffinity(0, one)
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            sum(range(1000))

    before, after = speed.waited(), 0.0
    others = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(2)]
    try:
        for process in others:
            os.sched_setaffinity(process.pid, one)
        thread = threading.Thread(target=burn)
        thread.start()
        while thread.is_alive():
            after = max(after, speed.waited())
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert after - before > 0.1


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
