"""Whatever a record holds is a text, a chat, or refused in a sentence."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_prune.data.documents import Chat, document
from hf_prune.data.tasks import _item
from hf_prune.errors import InvalidData
from tests.data.strangers import CHATS, RECORDS


@given(RECORDS | CHATS)
@example({"messages": {"role": ["user"], "content": ["a"]}})
@example({"messages": [{"role": "tool", "content": {"degrees": [1]}}]})
@example({"conversations": [{"from": "function_call", "value": "7"}]})
def test_any_record_is_a_document_or_refused_with_its_place(record):
    try:
        found = document(record, "Line 7 of a.jsonl")
    except InvalidData as e:
        assert str(e).startswith("Line 7 of a.jsonl is not ") and "\n" not in str(e)
        return
    found.encode()
    if isinstance(found, Chat):
        messages, tools = found.parts
        assert messages and all(isinstance(m["role"], str) for m in messages) and (tools is None or tools)
        assert all(isinstance(m.get("content", ""), str) and ("content" in m or m["tool_calls"]) for m in messages)
        assert found.where == "Line 7 of a.jsonl" and document({"messages": messages, "tools": tools}, "") == found


@given(RECORDS)
def test_any_record_is_an_item_or_refused_with_its_place(record):
    try:
        item = _item(record, "Line 7 of a.jsonl")
    except InvalidData as e:
        assert str(e).startswith("Line 7 of a.jsonl ") and "\n" not in str(e)
        return
    assert all(isinstance(t, str) for t in (item.context, *item.choices)) and 0 <= item.answer < len(item.choices)


@given(st.text(), st.text())
def test_a_text_stays_as_it_is_and_a_chat_keeps_its_spelling(asked, said):
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    assert document({"text": asked}, "") == document(asked, "") == asked
    # Runs cut their documents by this spelling: another one would give them other windows.
    assert document({"messages": messages}, "") == json.dumps(messages)


@pytest.mark.parametrize("content", [{"degrees": 12}, [12], 12, True])
def test_results_of_tools_may_be_json(content):
    chat = document([{"role": "tool", "content": content}], "")
    assert json.loads(chat.parts[0][0]["content"]) == content


def test_a_table_of_turns_becomes_rows():
    table = {"messages": {"role": ["user", "assistant"], "content": ["a", "b"], "tool_calls": [None, None]}}
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert document(table, "") == json.dumps(plain)
    with pytest.raises(InvalidData):
        document({"messages": {"role": ["user"], "content": ["a", "b"]}}, "")
