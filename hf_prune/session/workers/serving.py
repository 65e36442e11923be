"""A worker's side: open what orders are carried out with, and put what comes of them into words."""

import importlib
from collections.abc import Callable
from typing import Any

from hf_prune import errors
from hf_prune.session.workers.crew import OutOfMemory

READY, ANSWER, MEMORY, REFUSED, BROKEN = b"r", b"a", b"m", b"p", b"x"
"""What an answer begins with."""
Carry = Callable[[bytes, bytes], bytes]
"""(what orders have in common, an order) -> answer."""


class Serving:
    """What a worker opened, and the last it was told of what orders have in common.

    Args:
        opener: `package.module:function`, which makes a `Carry` of the charge.
        charge: for it.
    """

    def __init__(self, opener: str, charge: Any) -> None:
        self._common = b""
        module, _, name = opener.partition(":")
        self._carry: Carry = getattr(importlib.import_module(module), name)(charge)

    def share(self, common: bytes) -> None:
        """Of all orders from now on."""
        self._common = common

    def carry_out(self, order: bytes) -> bytes:
        """The answer, or what went wrong; raises nothing."""
        try:
            return ANSWER + self._carry(self._common, order)
        except Exception as e:
            return told(e)


def told(error: Exception) -> bytes:
    """An error as an answer."""
    if is_out_of_memory(error):
        return MEMORY + " ".join(str(error).split())[:300].encode()
    if isinstance(error, errors.HfPruneError):
        return REFUSED + f"{type(error).__name__}:{error}".encode()
    return BROKEN + f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".encode()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says; torch has several ways to say it."""
    said = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, RuntimeError)
        and ("out of memory" in said or "can't allocate memory" in said)
    )


def understood(message: bytes) -> bytes:
    """What a worker found.

    Raises:
        OutOfMemory, HfPruneError: what it met instead.
    """
    kind, said = message[:1], message[1:]
    if kind in (READY, ANSWER):
        return said
    text = said.decode(errors="replace")
    if kind == MEMORY:
        raise OutOfMemory(text)
    if kind == REFUSED:
        name, _, sentence = text.partition(":")
        known = getattr(errors, name, errors.HfPruneError)
        raise known(sentence)
    raise errors.HfPruneError(f"A worker met an error that is none of the model's or the data's: {text}.")
