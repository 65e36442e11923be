"""A chat as the base was taught to read it: rendered by its tokenizer's template, or refused by file and line."""

import contextlib
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_prune.data.documents import Chat
from hf_prune.errors import InvalidData

Messages = Sequence[dict[str, Any]]
LONGEST_REASON = 200
"""Characters of what a template says when it refuses."""
SECONDS = 10.0
"""That a template may take for one chat."""
COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("template_probe.py")))
TOOLS = "leave such chats out, or take a base that was taught to call tools"
USER = "A-user-turn-0"
"""Stands for what a user says, where a template is looked at."""


def rendered(document: str, tokenizer: Any, *, ask: bool = False) -> str:
    """A chat as text, special tokens written out; a text as it is.

    Args:
        document: the chat or text.
        tokenizer: of the base.
        ask: begin the turn of the model behind it.

    Raises:
        InvalidData: there is no template, or it does not take this chat, or leaves out its tools or all of it.
    """
    if not isinstance(document, Chat):
        return document
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidData(
            f"{document.where} is a chat, but the base's tokenizer has no chat template; give plain text, or take a "
            "base that was taught to chat."
        )
    messages, tools = document.parts
    try:
        text = _render(tokenizer, messages, tools, ask)
    except Exception as e:
        # Whatever a template does wrong comes up here, in as many kinds of errors as there are operations.
        raise _refused(document, f"refuses {document.where} ({_reason(e)})", _advice(tokenizer, messages)) from None
    if not text.strip():
        raise _refused(document, f"makes nothing of {document.where}", _advice(tokenizer, messages))
    if _leaves_out_tools(tokenizer, messages, tools, text, ask):
        raise _refused(document, f"leaves out the tool calls or results of {document.where}", TOOLS)
    return text


def opening(tokenizer: Any) -> str:
    """How a chat begins, up to where its user speaks, special tokens written out; empty without such a template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        text = _render(tokenizer, [{"role": "user", "content": USER}], None)
    except Exception:
        # A stranger's template; without it the base is let speak freely, and its origin says so.
        return ""
    before, found, _ = text.partition(USER)
    return before if found else ""


def _refused(document: Chat, what: str, advice: str) -> InvalidData:
    return InvalidData(f"The base's chat template {what}; {advice}.")


def _render(tokenizer: Any, messages: Messages, tools: Any, ask: bool = False) -> str:
    """As `apply_chat_template` does, in a process with limits; raises ValueError with what went wrong."""
    if type(tokenizer).apply_chat_template is not _base().apply_chat_template:
        # That of mistral_common is code of its own, and no template.
        return tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, add_generation_prompt=ask)
    if not messages:
        raise ValueError("there is no message")
    asked = {
        "conversations": [[{k: v for k, v in message.items() if v is not None} for message in messages]],
        "tools": tools,
        "chat_template": tokenizer.get_chat_template(None, tools),
        "add_generation_prompt": ask,
        **tokenizer.special_tokens_map,
    }
    said = _asked(json.dumps(asked))
    if "error" in said:
        raise ValueError(said["error"])
    return said["text"]


def _base() -> Any:
    from transformers import PreTrainedTokenizerBase

    return PreTrainedTokenizerBase


_ONE_AT_A_TIME = threading.Lock()


def _asked(question: str) -> dict[str, str]:
    """The answer of the process that renders; it is ended when it thinks too long, and started when it is not there."""
    with _ONE_AT_A_TIME:
        for _ in range(2):
            process, late = _renderer(), threading.Event()
            watch = threading.Timer(SECONDS, lambda process=process, late=late: (late.set(), process.kill()))
            watch.start()
            line = ""
            with contextlib.suppress(OSError):
                process.stdin.write(question + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            watch.cancel()
            if line.endswith("\n"):
                return json.loads(line)
            _renderer.cache_clear()
            process.kill()
            process.communicate()
            if late.is_set():
                return {"error": f"it takes longer than {SECONDS:.0f} seconds"}
        return {"error": "it ends the process that renders it"}


@functools.cache
def _renderer() -> "subprocess.Popen[str]":
    """Ready to be asked; ends with this process, which holds its stdin."""
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    )
    # Importing what renders takes longer than a chat may.
    process.stdin.write(json.dumps({"conversations": [[]], "chat_template": ""}) + "\n")
    process.stdin.flush()
    process.stdout.readline()
    return process


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter for letter in said if letter.isprintable())[:LONGEST_REASON].rstrip(".")


def _advice(tokenizer: Any, messages: Messages) -> str:
    """What would make the template take these messages."""
    others = [m for m in messages if m["role"] not in ("system", "developer")]
    if len(others) < len(messages) and _takes(tokenizer, others):
        return "it knows no system messages: put their words into the first message of the user"
    if any(one["role"] == next_["role"] for one, next_ in zip(others, others[1:], strict=False)):
        return "make one message of those that follow each other with the same role"
    if any(m["role"] == "tool" or "tool_calls" in m for m in messages):
        return TOOLS
    return 'change the chat as it asks, or give it as {"text": ...}'


def _takes(tokenizer: Any, messages: Messages) -> bool:
    try:
        return bool(messages) and bool(_render(tokenizer, messages, None).strip())
    except Exception:
        return False


def _leaves_out_tools(tokenizer: Any, messages: Messages, tools: Any, text: str, ask: bool) -> bool:
    """Whether the rendered text would be the same without any tool call, or with other results of tools."""
    others = []
    if any("tool_calls" in m for m in messages):
        others.append([{"content": "", **{k: v for k, v in m.items() if k != "tool_calls"}} for m in messages])
    if any(m["role"] == "tool" for m in messages):
        others.append([{**m, "content": f"{m.get('content')}."} if m["role"] == "tool" else m for m in messages])
    for other in others:
        try:
            if _render(tokenizer, other, tools, ask) == text:
                return True
        except Exception:
            # It looks at them, or it would not miss them.
            continue
    return False
