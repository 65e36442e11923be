import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from hf_prune.data.bundled import demo_folder
from hf_prune.report.samples import distinct, fluency, greedy, repetition

TOKENS = st.lists(st.integers(0, 5), max_size=30)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    config.eos_token_id = None
    made = LlamaForCausalLM(config).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    made.generation_config = GenerationConfig()
    return made


@torch.inference_mode()
def oracle(model, prompt, new_tokens):
    """Likeliest token after token, no cache."""
    ids = prompt.tolist()
    for _ in range(new_tokens):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return tuple(ids[len(prompt) :])


def test_samples_are_the_likeliest_tokens_in_the_order_of_the_prompts(model):
    prompts = [torch.randint(0, 40, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 4, 9, 6)]
    assert greedy(model, prompts, 12) == tuple(oracle(model, p, 12) for p in prompts)


def test_sampling_settings_of_the_model_are_set_aside_and_come_back(model):
    prompts = torch.arange(10).view(2, 5)
    plain = greedy(model, prompts, 12)
    own = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=[plain[0][0]]
    )
    model.generation_config = own
    assert greedy(model, prompts, 12) == plain
    assert model.generation_config is own


@pytest.mark.parametrize("as_list", [False, True])
def test_samples_end_before_the_end_token(model, as_list):
    prompts = torch.arange(10).view(2, 5)
    plain = greedy(model, prompts, 12)
    end = plain[0][5]
    model.generation_config.eos_token_id = [end] if as_list else end
    cut = greedy(model, prompts, 12)
    assert cut == tuple(s[: s.index(end)] if end in s else s for s in plain)
    assert len(cut[0]) <= 5


def test_demo_model_speaks_without_looping_all_the_time():
    model = AutoModelForCausalLM.from_pretrained(demo_folder() / "storymath-16l", dtype=torch.float32).eval()
    (sample,) = greedy(model, torch.tensor([[300, 12, 45, 77]]), 8)
    assert sample == oracle(model, torch.tensor([300, 12, 45, 77]), 8)[: len(sample)]


def test_figures_by_hand():
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([7] * 10) == pytest.approx(6 / 7)
    assert repetition([1, 2, 3]) == 0.0
    assert distinct([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)
    assert distinct([[], [1]], 2) == 0.0
    got = fluency([[7] * 10, [1, 2, 3, 4], []])
    assert got.to_dict() == pytest.approx({"repetition": 2 / 7, "distinct_2": 4 / 12, "mean_length": 14 / 3})


@given(TOKENS)
def test_saying_it_twice_repeats_and_shares_stay_shares(sample):
    assert 0.0 <= repetition(sample) < 1.0
    assert 0.0 <= distinct([sample], 2) <= 1.0
    if len(sample) >= 4:
        assert repetition(sample + sample) > 0.0
        assert repetition(list(range(len(sample)))) == 0.0
