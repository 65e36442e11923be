"""A chat is what transformers makes of it, or refused in a sentence."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_prune.data import chat_templates
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


CHAT = [{"role": "user", "content": "a"}]
LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}x"
ENDLESS = {
    "loops": (LOOP, "takes longer than 1 seconds"),
    "nests loops": (LOOP * 50, "takes longer than 1 seconds"),
    "grows a text": ("{{ 'x' * 10**10 }}", "more memory"),
    "doubles a text": ("{% set n = namespace(x='xxxx') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
                       "more memory"),
    "grows a number": ("{{ 9 ** (9 ** 9) }}", "takes longer than 1 seconds|digits"),
    "fills a format": ("{{ '%99999999999d' % 1 }}", "more memory|format|too"),
    "says too much": ("{{ 'x' * (40 * 2**20) }}", "characters of it"),
    "recurses": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "reaches out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|undefined"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_ended_and_the_next_chat_rendered(tokenizer, monkeypatch, name):
    template, said = ENDLESS[name]
    chat = document(CHAT, "Line 1 of a.jsonl")
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert rendered(chat, tokenizer) == "a"
    if "seconds" in said:
        monkeypatch.setattr(chat_templates, "SECONDS", 1.0)
    tokenizer.chat_template = template
    with pytest.raises(InvalidData, match=f"refuses Line 1 of a.jsonl .*({said})"):
        rendered(chat, tokenizer)
    monkeypatch.undo()
    tokenizer.chat_template = "{{ messages[0].content }}{{ '<s>' }}"
    assert rendered(chat, tokenizer) == "a<s>"


def test_who_renders_ends_with_who_asks():
    code = (
        "from transformers import AutoTokenizer; import sys, time\n"
        "from hf_prune.data import chat_templates as c; from hf_prune.data.bundled import demo_folder\n"
        "print(c._renderer().pid, flush=True)\n"
        f"c._asked(c.json.dumps({{'conversations': [[]], 'chat_template': {LOOP!r}}}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    time.sleep(0.5)
    os.kill(pid, 0)
    process.kill()
    process.wait()
    until = time.monotonic() + 2
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
