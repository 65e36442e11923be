"""A chat is what transformers makes of it, or refused in a sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_prune.data.bundled import demo_folder
from hf_prune.data.chat_templates import LONGEST_REASON, rendered
from hf_prune.data.documents import document
from hf_prune.errors import InvalidData
from tests.data.strangers import CHATS

TEMPLATES = {
    "takes all": "{{ messages | tojson }}{{ tools | tojson }}",
    "joins": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
    "knows two": "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
    "{{ raise_exception('only\\nusers\x1b[31m') }}{% endif %}{% endfor %}",
    "indexes": "{{ messages[2].content[5] }}{{ messages[0].tool_calls[0].name.upper() }}",
    "is broken": "{% for m in messages %}",
    "says nothing": "{% set x = messages %}",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")


@given(CHATS, st.sampled_from(list(TEMPLATES)))
def test_any_chat_is_rendered_as_transformers_does_or_refused_by_its_place(tokenizer, record, name):
    try:
        chat = document(record, "Line 7 of a.jsonl")
    except InvalidData:
        return
    tokenizer.chat_template = TEMPLATES[name]
    try:
        found = rendered(chat, tokenizer)
    except InvalidData as e:
        said = str(e)
        assert "Line 7 of a.jsonl" in said and said.isprintable() and len(said) < LONGEST_REASON + 300
        return
    messages, tools = chat.parts
    assert found.strip() and found == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)


def test_what_a_template_says_is_kept_short_and_plain(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no\\n\x1b[2J' + 'x' * 5000) }}"
    with pytest.raises(InvalidData) as caught:
        rendered(document([{"role": "user", "content": "a"}], "Line 1 of a.jsonl"), tokenizer)
    assert "(no [2Jxx" in str(caught.value) and len(str(caught.value)) < 400


def test_a_text_needs_no_template(tokenizer):
    tokenizer.chat_template = None
    assert rendered("<s> {{ as it is }}", tokenizer) == "<s> {{ as it is }}"
    with pytest.raises(InvalidData, match="Line 1 of a.jsonl is a chat, but the base's tokenizer has no chat template"):
        rendered(document([{"role": "user", "content": "a"}], "Line 1 of a.jsonl"), tokenizer)
