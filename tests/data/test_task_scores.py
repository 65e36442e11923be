import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_prune.data import task_scores
from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_scores import LARGEST_SCALE, doubt_slopes, doubts, encode_pair, judged, score, slopes
from hf_prune.data.task_sources import load_tasks
from hf_prune.data.tasks import Item, Task, bundled_tasks
from hf_prune.report import statistics

SMALL = {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES = {
    "llama": {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48},
    "gemma2": {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "sliding_window": 12},
    "gpt2": {"vocab_size": 2048, "n_embd": 32, "n_layer": 3, "n_head": 4},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    # Their caches hold states, which cannot be lent to several rows.
    "lfm2": {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48,
             "layer_types": ["conv", "full_attention", "conv"]},
    "mamba": {"vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
}  # fmt: skip
MIXED = Task(
    "mixed",
    (
        Item("the cat sat on the mat. then it", ("slept.", "flew to the moon and back again.", " ran"), 0),
        Item("", ("once upon a time", "zebra"), 0),
        Item("a", ("b", "c"), 1),
        Item("the answer is ", ("15", "seventeen"), 0),
        Item("she had two apples and gave one away, and so she had only " * 3, ("one", "two", "three apples left."), 0),
    ),
)
VALUES = arrays(float, st.tuples(st.integers(1, 12), st.just(4)), elements=st.floats(-5, 0))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(demo_folder() / "storymath-16l", dtype=torch.float32).eval()


def random_model(family: str, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **more})
    made = AutoModelForCausalLM.from_config(config).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return made


@torch.inference_mode()
def oracle(model, tokenizer, item: Item, longest: int = 10**9) -> list[float]:
    """One option at a time, no batch, no cache."""
    values = []
    for choice in item.choices:
        gap = "" if not item.context or item.context[-1].isspace() or choice[0].isspace() else " "
        head = tokenizer(item.context.rstrip(), add_special_tokens=False)["input_ids"]
        whole = tokenizer(item.context + gap + choice, add_special_tokens=False)["input_ids"]
        cut = len(head)
        if not head:
            whole, cut = [tokenizer.eos_token_id, *whole], 1
        scored = len(whole) - cut
        whole = whole[-longest:]
        scored = min(scored, len(whole) - 1)
        logs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        values.append(sum(logs[i - 1, whole[i]].item() for i in range(len(whole) - scored, len(whole))))
    return values


def check(model, tokenizer, task, scores, longest=10**9):
    for row, item in zip(scores.log_likelihoods, task.items, strict=False):
        expected = oracle(model, tokenizer, item, longest)
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=0, atol=2e-3)
        assert np.isneginf(row[len(expected) :]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_one_option_at_a_time(family, tokenizer):
    model = random_model(family)
    check(model, tokenizer, MIXED, score(model, tokenizer, MIXED))


@pytest.mark.parametrize("budget", [1, 100, 2048])
def test_batches_do_not_change_scores(monkeypatch, tokenizer, budget):
    model = random_model("llama")
    monkeypatch.setattr(task_scores, "TOKEN_BUDGET", budget)
    check(model, tokenizer, MIXED, score(model, tokenizer, MIXED))
    monkeypatch.setattr(task_scores, "LOGIT_BUDGET", budget * 2048)
    check(model, tokenizer, MIXED, score(model, tokenizer, MIXED))


def test_too_long_a_context_loses_its_beginning(tokenizer):
    model = random_model("gpt2", n_positions=16)
    check(model, tokenizer, MIXED, score(model, tokenizer, MIXED), longest=16)


def test_demo_model_beats_chance_on_its_own_stories(model, tokenizer):
    task = next(t for t in load_tasks(bundled_tasks()) if t.name == "stories_cloze")
    task = task.spread(40)
    scores = score(model, tokenizer, task)
    check(model, tokenizer, Task("few", task.items[:2]), scores)
    assert len(scores.correct) == 40 and scores.chance == task.chance == 0.25
    low, high = statistics.wilson(int(scores.correct.sum()), 40)
    assert 0.3 < low + 0.1 < scores.accuracy < high < 0.8
    best = [max(range(4), key=lambda k, row=row: row[k]) for row in scores.log_likelihoods]
    assert scores.correct.tolist() == [b == i.answer for b, i in zip(best, task.items, strict=True)]


def test_norm_divides_by_the_characters_of_the_option(tokenizer):
    model = random_model("llama")
    item = Item("the cat", ("sat", "sat on the mat and slept all day long"), 1)
    logs = np.array(oracle(model, tokenizer, item))
    scores = score(model, tokenizer, Task("two", (item,)))
    assert not scores.correct[0]
    assert scores.correct_norm[0] == (logs[1] / len(item.choices[1]) > logs[0] / len(item.choices[0]))
    assert scores.accuracy == 0.0 and scores.accuracy_norm == float(scores.correct_norm[0])


def test_encode_pair_moves_spaces_to_the_option(tokenizer):
    glued = encode_pair(tokenizer, "the cat", "sat", False)
    assert glued == encode_pair(tokenizer, "the cat ", "sat", False) == encode_pair(tokenizer, "the cat", " sat", False)
    assert tokenizer.decode(glued[0]) == "the cat" and tokenizer.decode(glued[1]) == " sat"
    assert encode_pair(tokenizer, "the cat\n", "sat", False) != glued
    assert encode_pair(tokenizer, "", "sat", False)[0] == [tokenizer.bos_token_id]


def test_a_context_that_brings_its_start_token_gets_no_second_one(tokenizer):
    plain = encode_pair(tokenizer, "the cat", "sat", True)
    assert plain == encode_pair(tokenizer, "<|endoftext|>the cat", "sat", True) and plain[0].count(0) == 1
    # Where the tokenizer adds none, a text says itself that it begins.
    assert encode_pair(tokenizer, "<|endoftext|>the cat", "sat", False) == plain


def test_start_token_where_the_tokenizer_adds_one():
    tokenizer = AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    model = random_model("llama")
    item = Item("the cat", ("sat", "flew"), 0)
    ids = [0, *tokenizer("the cat sat", add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    n = len(ids) - len(tokenizer("the cat", add_special_tokens=False)["input_ids"]) - 1
    expected = sum(logs[i - 1, ids[i]].item() for i in range(len(ids) - n, len(ids)))
    assert score(model, tokenizer, Task("one", (item,))).log_likelihoods[0, 0] == pytest.approx(expected, abs=1e-3)


def test_doubt_is_of_the_right_option_by_log_likelihood_per_character():
    task = Task("t", (Item("q", ("ab", "abcd"), 1), Item("q", ("a", "abc"), 0)))
    table = np.array([[-2.0, -8.0], [-1.0, -6.0]])
    found = judged(task, table, np.zeros(2, bool))
    # Per character the right options are 1 behind and 1 ahead: nothing tells them, whatever the scale.
    np.testing.assert_allclose(found.doubts, np.log(2))
    assert found.doubt == pytest.approx(np.log(2))
    # An option that an item has not got takes no part.
    wider = judged(task, np.concatenate([table, np.full((2, 1), -np.inf)], 1), np.zeros(2, bool))
    np.testing.assert_allclose(wider.doubts, found.doubts)


def test_doubt_about_a_text_to_generate_is_per_character():
    task = Task("t", (Item("q", ("four",), 0), Item("q", ("is",), 0)), "exact")
    np.testing.assert_allclose(judged(task, np.array([[-2.0], [-3.0]]), np.ones(2, bool)).doubts, [0.5, 1.5])


@pytest.mark.parametrize("kind", ["choice", "exact"])
def test_slopes_are_what_the_doubt_about_a_task_does(kind):
    choices = ("ab", "abcd", "a") if kind == "choice" else ("abcd",)
    answers = (1, 0, 2) if kind == "choice" else (0, 0, 0)
    items = [Item("q", choices, answer) for answer in answers]
    # The last item has an option less.
    items[-1] = Item("q", choices[:2], 1) if kind == "choice" else items[-1]
    task = Task("t", tuple(items), kind)
    table = np.array([[-2.0, -8.0, -4.0], [-1.0, -6.0, -3.0], [-3.0, -2.0, -np.inf]])[:, : len(choices)]
    found = slopes(task, table)

    def doubt(step):
        return judged(task, table + step, np.zeros(3, bool)).doubt

    for place in zip(*np.isfinite(table).nonzero(), strict=True):
        step = np.zeros_like(table)
        step[place] = 1e-4
        assert found[place] == pytest.approx((doubt(step) - doubt(-step)) / 2e-4, abs=1e-5)
    assert found.any()


@given(VALUES, st.randoms(use_true_random=False))
def test_doubts_are_least_over_the_scale(values, random):
    answers = np.array([random.randrange(4) for _ in values])

    def mean(scale):
        return float(torch.nn.functional.cross_entropy(torch.tensor(scale * values), torch.tensor(answers)))

    found = doubts(values, answers)
    assert found.shape == (len(values),) and found.mean() <= min(map(mean, np.linspace(0, LARGEST_SCALE, 400))) + 1e-6
    # Guessing is one of the scales.
    assert found.mean() <= np.log(4) + 1e-12


@given(VALUES, st.floats(0.5, 4), st.floats(-3, 3))
def test_doubts_do_not_depend_on_how_sure_a_model_sounds(values, scale, shift):
    answers = np.arange(len(values)) % 4
    # One wrong answer, so that there is a least doubt, far from the largest scale.
    values[0, answers[0]] = values[0].min() - 1.0
    found = doubts(values, answers).mean()
    assert doubts(scale * values + shift, answers).mean() == pytest.approx(found, abs=1e-6)


def test_what_is_always_right_leaves_no_doubt():
    sure = np.array([[-1.0, -2.0], [-9.0, -3.0]])
    assert doubts(sure, np.array([0, 1])).max() < 1e-12
    np.testing.assert_allclose(doubts(sure, np.array([1, 0])), np.log(2))


@given(VALUES, st.integers(0, 3))
def test_slopes_are_what_the_doubt_does_when_values_change(values, missing):
    answers = np.arange(len(values)) % 3
    # One wrong and one right answer: the best scale is inside of its range.
    values[0, 0] = values[0].min() - 1.0
    values = np.concatenate([values, [[-4.0, -1.0, -4.0, -4.0]]])
    answers = np.concatenate([answers, [1]])
    values[:missing, 3] = -np.inf
    found = doubt_slopes(values, answers)
    assert (found[np.isinf(values)] == 0).all()
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-9)
    for place in zip(*np.isfinite(values).nonzero(), strict=True):
        step = np.zeros_like(values)
        step[place] = 1e-4
        rise = doubts(values + step, answers).mean() - doubts(values - step, answers).mean()
        assert found[place] == pytest.approx(rise / 2e-4, abs=1e-4 * max(1.0, np.abs(found).max()))


@pytest.mark.parametrize("answers", [[1, 0], [1, 1]])
def test_where_guessing_is_best_there_is_no_slope(answers):
    values, answers = np.array([[-1.0, -2.0], [-2.0, -1.0]]), np.array(answers)
    assert doubts(values, answers).mean() == pytest.approx(np.log(2))
    np.testing.assert_allclose(doubt_slopes(values, answers), 0, atol=1e-9)
