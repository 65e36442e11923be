import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_prune.data import tasks
from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_sources import load_tasks
from hf_prune.data.tasks import (
    Item,
    Task,
    bundled_tasks,
    difference,
    encode_pair,
    judged,
    order,
    score,
    slopes,
    wilson,
)
from hf_prune.errors import InvalidData

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


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")


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
    monkeypatch.setattr(tasks, "TOKEN_BUDGET", budget)
    check(model, tokenizer, MIXED, score(model, tokenizer, MIXED))
    monkeypatch.setattr(tasks, "LOGIT_BUDGET", budget * 2048)
    check(model, tokenizer, MIXED, score(model, tokenizer, MIXED))


def test_too_long_a_context_loses_its_beginning(tokenizer):
    model = random_model("gpt2", n_positions=16)
    check(model, tokenizer, MIXED, score(model, tokenizer, MIXED), longest=16)


def test_demo_model_beats_chance_on_its_own_stories(model, tokenizer):
    task = next(t for t in load_tasks() if t.name == "stories_cloze")
    task = task.spread(40)
    scores = score(model, tokenizer, task)
    check(model, tokenizer, Task("few", task.items[:2]), scores)
    assert len(scores.correct) == 40 and scores.chance == task.chance == 0.25
    low, high = wilson(int(scores.correct.sum()), 40)
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


def test_bundled_tasks_are_three_of_150_items():
    assert [p.name.split("_")[0] for p in bundled_tasks()] == ["math", "stories", "wiki"]
    assert [(t.name, len(t.items), t.chance) for t in load_tasks()] == [
        (f"{n}_cloze", 150, 0.25) for n in ("math", "stories", "wiki")
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a"', r"Line 2 of .*t\.report\.jsonl is not"),
        ('{"context": "a", "choices": ["b", "c"]}', "is not"),
        ('{"context": 1, "choices": ["b", "c"], "answer": 0}', "needs a context string"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "at least two options"),
        ('{"context": "a", "choices": ["b", " "], "answer": 0}', "not empty"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "answer 2, not one of 0 to 1"),
        ('{"context": "a", "choices": ["b", "c"], "answer": true}', "answer True"),
    ],
)
def test_malformed_items_are_named(tmp_path, line, message):
    good = json.dumps({"context": "a", "choices": ["b", "c"], "answer": 0})
    (tmp_path / "t.report.jsonl").write_text(good + "\n" + line + "\n")
    with pytest.raises(InvalidData, match=message):
        load_tasks([tmp_path / "t.report.jsonl"])


def test_missing_empty_and_repeated_files_are_named(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(InvalidData, match="is empty"):
        load_tasks([tmp_path / "none.jsonl"])
    with pytest.raises(InvalidData, match="Cannot read the task file"):
        load_tasks([tmp_path / "absent.jsonl"])
    with pytest.raises(InvalidData, match="Two tasks are called 'math_cloze'"):
        load_tasks([bundled_tasks()[0]] * 2)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_bounds_solve_its_equation(n, share):
    k = round(share * n)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            assert (p - k / n) ** 2 == pytest.approx(tasks.Z95**2 * p * (1 - p) / n, rel=1e-6, abs=1e-12)


def test_difference_resamples_pairs():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(200) < 0.6, rng.random(200) < 0.4
    value, (low, high) = difference(ours, theirs, np.random.default_rng(0))
    assert value == pytest.approx(ours.mean() - theirs.mean())
    picks = rng.integers(0, 200, (4000, 200))
    plain = np.quantile(ours[picks].mean(1) - theirs[picks].mean(1), [0.025, 0.975])
    np.testing.assert_allclose([low, high], plain, atol=0.012)
    assert difference(ours, theirs, np.random.default_rng(0)) == (value, (low, high))
    assert difference(ours, ours, np.random.default_rng(0)) == (0.0, (0.0, 0.0))


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


@pytest.mark.parametrize("seed", [0, 1])
def test_every_prefix_of_the_order_holds_all_answers_alike(seed):
    items = tuple(Item("q", ("a", "b", "c", "d"), 0 if i < 50 else 1 + i % 3) for i in range(100))
    task = Task("t", items)
    places = order(task, seed)
    assert task.spread(seed=seed).items == tuple(items[i] for i in places) and len(task.spread(7).items) == 7
    assert sorted(places) == list(range(100)) and places == order(task, seed) != order(task, seed + 7)
    for count in (20, 50, 80):
        share = np.mean([items[i].answer == 0 for i in places[:count]])
        assert abs(share - 0.5) < 0.06
