"""Speakers: what they read, what they say, and what they remember."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.errors import InvalidRecipe
from hf_prune.evaluation.dialogue import Speaker
from tests.runs import base

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = base(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def speaker(loaded):
    model, tokenizer = loaded
    tokenizer.chat_template = None
    return Speaker(model, tokenizer)


def said(speaker, text, temperature=0.0, seed=0, tokens=12):
    *_, last = speaker.answer(text, tokens, temperature, seed)
    return last


def test_the_likeliest_tokens_are_those_of_a_plain_loop(loaded, speaker):
    model, tokenizer = loaded
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    begun = ids.shape[1]
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == 1:
                break
    expected = tokenizer.decode(ids[0, begun:], skip_special_tokens=True)
    assert said(speaker, "the cat") == expected and speaker.turns == []


def test_it_is_heard_while_it_speaks_and_a_seed_says_it_again(speaker):
    parts = list(speaker.answer("the cat", 24, 1.0, 7))
    assert len(parts) > 4 and all(b.startswith(a) for a, b in zip(parts, parts[1:], strict=False))
    before = torch.get_rng_state()
    assert said(speaker, "the cat", 1.0, 7, 24) == parts[-1] != said(speaker, "the cat", 1.0, 8, 24)
    assert torch.equal(torch.get_rng_state(), before)


def test_who_chats_is_told_what_was_said(speaker):
    speaker.tokenizer.chat_template = TEMPLATE
    first = said(speaker, "hello")
    read = speaker.tokenizer.decode(speaker.read("again", 4)[0])
    assert read == f"<user>hello<assistant>{first}<user>again<a>"
    assert speaker.turns[-1] == {"role": "assistant", "content": first}


def test_what_it_has_no_room_for_is_refused(speaker):
    with pytest.raises(InvalidRecipe, match="more than the 256"):
        speaker.read("a" * 300, 12)
    with pytest.raises(InvalidRecipe, match="nothing to go on from"):
        speaker.read("", 12)


def test_whoever_stops_listening_ends_it(speaker):
    heard = speaker.answer("the cat", 200, 1.0, 7)
    next(heard)
    heard.close()
    assert speaker.turns == []
