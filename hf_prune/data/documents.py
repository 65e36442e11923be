"""What a record of a corpus says: a text, or a chat in one of the shapes in which people write chats.

A chat is a list of turns, {"role", "content"} of OpenAI or {"from", "value"} of ShareGPT, with the tools that are
offered and called in it; or an instruction and what is said to it.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_prune.data.records import HALF, is_cut, kind_of, unclear

EXPECTED = '{"text": "..."}, nor {"messages": [...]} with role and content'
EXPECTED_PROMPT = '{"prompt": "..."}, nor {"messages": [...]} with role and content'
TURNS = ("messages", "conversations", "conversation")
"""Keys behind which the turns of a chat stand."""
BESIDE = ("system", "tools")
"""Keys that belong to a chat as well."""
PASSAGES = ("prompt", "completion")
"""Two pieces of one text, or of one list of turns."""
EXCHANGES = (("instruction", "output"), ("instruction", "response"), ("prompt", "response"))
"""What a user asks and what an assistant says to it; `input` or `context` may belong to the question."""
SPEAKERS = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
}
"""Roles of ShareGPT's `from`."""
CALLERS = ("function_call", "tool_call")
"""Those whose value is a call, as JSON."""
LONGEST_NAME = 40
"""Characters of a stranger's name for something that a message shows."""
TEXT_PARTS = (None, "text", "input_text", "output_text")


class Chat(str):
    """A conversation, kept as the JSON of its messages, or of messages and tools; `where` it was read, in words."""

    where: str

    def __new__(cls, text: str, where: str) -> "Chat":
        """A string has its value from the beginning."""
        chat = super().__new__(cls, text)
        chat.where = where
        return chat

    @property
    def parts(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """Messages, and the tools that are offered."""
        raw = json.loads(self)
        return (raw, None) if isinstance(raw, list) else (raw["messages"], raw["tools"])


def document(record: Any, where: str) -> str:
    """The text or the `Chat` of a record.

    Args:
        record: a JSON value, or a row of a dataset.
        where: its place, for the message.

    Raises:
        InvalidData: its meaning is not clear.
    """
    try:
        raw = _said(record)
        if is_cut(raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)):
            raise ValueError(f"it holds {HALF}")
        return raw if isinstance(raw, str) else Chat(json.dumps(raw), where)
    except (ValueError, RecursionError) as e:
        raise unclear(where, EXPECTED, str(e)) from None


def question(record: Any, where: str) -> Chat:
    """What a record asks: a chat up to the last turn of its user. What was answered there is left out.

    Args:
        record: as for `document`; `prompt` alone is a question, too.
        where: its place, for the message.

    Raises:
        InvalidData: nothing is asked in it.
    """
    try:
        raw = _asked(record)
        messages = raw if isinstance(raw, list) else raw["messages"]
        last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        if last < 0:
            raise ValueError("no turn of it is the user's")
        asked = messages[: last + 1] if isinstance(raw, list) else {**raw, "messages": messages[: last + 1]}
        if is_cut(json.dumps(asked, ensure_ascii=False)):
            raise ValueError(f"it holds {HALF}")
        return Chat(json.dumps(asked), where)
    except (ValueError, RecursionError) as e:
        raise unclear(where, EXPECTED_PROMPT, str(e)) from None


def is_exchange(keys: Sequence[str]) -> bool:
    """Whether these keys are of two texts that make a document."""
    return any(set(pair) <= set(keys) for pair in (PASSAGES, *EXCHANGES))


def _said(record: Any) -> Any:
    """A text, the messages of a chat, or a dict of messages and tools."""
    if isinstance(record, str):
        return record
    if isinstance(record, list):
        return _chat(record, {})
    if not isinstance(record, Mapping):
        raise ValueError(f"it is {kind_of(record)}")
    if "text" in record:
        return _text(record, "text")
    if turns := next((key for key in TURNS if key in record), None):
        rows = _rows(record[turns], turns)
        return _chat([*_system(record), *rows] if turns != "messages" and rows else rows, record)
    if set(PASSAGES) <= set(record):
        return _passages(record)
    if pair := next((pair for pair in EXCHANGES if set(pair) <= set(record)), None):
        return _exchange(record, *pair)
    keys = ", ".join(repr(str(key)[:LONGEST_NAME]) for key in list(record)[:5])
    raise ValueError(f"it has {keys or 'nothing'} and no text")


def _asked(record: Any) -> Any:
    """The messages of a question, or a dict of messages and tools."""
    if isinstance(record, str):
        return [{"role": "user", "content": record}]
    if not isinstance(record, Mapping) or any(key in record for key in TURNS):
        return _said({k: v for k, v in record.items() if k != "text"} if isinstance(record, Mapping) else record)
    if isinstance(record.get("prompt"), list):
        return _chat(record["prompt"], record)
    key = next((key for key in ("prompt", "instruction") if key in record), None)
    if key is None:
        keys = ", ".join(repr(str(k)[:LONGEST_NAME]) for k in list(record)[:5])
        raise ValueError(f"it has {keys or 'nothing'} and no prompt")
    return [*_system(record), {"role": "user", "content": _with_input(record, key)}]


def _text(record: Mapping[str, Any], key: str) -> str:
    if not isinstance(record[key], str):
        raise ValueError(f"its {key} is {kind_of(record[key])}")
    return record[key]


def _system(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The instructions that a record keeps beside its turns."""
    return [{"role": "system", "content": _text(record, "system")}] if record.get("system") else []


def _rows(turns: Any, key: str) -> list[Any]:
    """Turns as a list; a table of columns, as datasets keeps nested lists, becomes rows."""
    if isinstance(turns, Mapping) and all(isinstance(column, list) for column in turns.values()):
        return [dict(zip(turns, row, strict=True)) for row in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list):
        raise ValueError(f"its {key} are {kind_of(turns)}, not a list")
    return turns


def _passages(record: Mapping[str, Any]) -> Any:
    first, then = (record[key] for key in PASSAGES)
    if isinstance(first, list) and isinstance(then, list):
        return _chat([*first, *then], record)
    return "".join(_text(record, key) for key in PASSAGES)


def _exchange(record: Mapping[str, Any], asked: str, said: str) -> list[dict[str, Any]]:
    """A question with what it is about, behind the exchanges before it."""
    before = record.get("history") or []
    if not isinstance(before, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in before):
        raise ValueError("its history is not a list of pairs")
    pairs = [*before, (_with_input(record, asked), _text(record, said))]
    roles = itertools.cycle(("user", "assistant"))
    turns = [{"role": next(roles), "content": text} for pair in pairs for text in pair]
    return _chat([*_system(record), *turns], {})


def _with_input(record: Mapping[str, Any], asked: str) -> str:
    """A question, and what it is about."""
    more = next((key for key in ("input", "context") if record.get(key)), None)
    return _text(record, asked) + (f"\n\n{_text(record, more)}" if more else "")


def _chat(turns: list[Any], record: Mapping[str, Any]) -> Any:
    if not turns:
        raise ValueError("it has no messages")
    messages, tools = [_message(turn) for turn in turns], _parsed(record.get("tools") or None, "its tools")
    if tools is None:
        return messages
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError("its tools are not a list of objects")
    return {"messages": messages, "tools": tools}


def _message(turn: Any) -> dict[str, Any]:
    """Role and content, and what calls of tools and their results need besides."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"a message is {kind_of(turn)}")
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    role = turn.get("role")
    if role is None and turn.get("from") is not None:
        role, content, calls = _spoken(str(turn["from"]), content)
    if not isinstance(role, str) or not isinstance(calls, list):
        raise ValueError("a message has no role" if isinstance(calls, list) else "the calls of a message are no list")
    role = "tool" if role == "function" else role
    said = _content(content, role)
    if said is None and not calls:
        raise ValueError("the content of a message is null")
    message = {"role": role} | ({} if said is None else {"content": said})
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    if role == "tool":
        message |= {key: turn[key] for key in ("tool_call_id", "name") if isinstance(turn.get(key), str)}
    return message


def _spoken(who: str, content: Any) -> tuple[str, Any, list[Any]]:
    """Role, content and calls of a turn of ShareGPT's."""
    if who.lower() in CALLERS:
        called = _parsed(content, f"a {who}")
        return "assistant", None, called if isinstance(called, list) else [called]
    if who.lower() not in SPEAKERS:
        raise ValueError(f"a message is from {who[:LONGEST_NAME]!r}, which is none of {', '.join(SPEAKERS)}")
    return SPEAKERS[who.lower()], content, []


def _content(content: Any, role: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(map(_is_text, content)):
        # As transformers joins them for models that read text alone.
        return " ".join(part["text"] for part in content) if content else None
    if role == "tool":
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else kind_of(part) for part in content]
        other = str(next((k for k in kinds if k not in TEXT_PARTS), "something"))[:LONGEST_NAME]
        raise ValueError(f"the content of a message holds {other!r}, and only text is read")
    raise ValueError(f"the content of a message is {kind_of(content)}")


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type") in TEXT_PARTS


def _call(call: Any) -> dict[str, Any]:
    """A call of a tool as templates expect it: its arguments are an object, not the JSON of one."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("a tool call does not name its function")
    given = function.get("arguments")
    try:
        arguments = _parsed(given, "") or {}
    except ValueError:
        arguments = given
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {"type": "function", **kept, "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: Any, what: str) -> Any:
    """A value that may be kept as its JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError(f"{what} cannot be read as JSON") from None
