"""How many bytes of text the tokens of a window say, which is the same measure whatever the tokenizer."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

SPACE = "▁"
"""What stands for a space within tokens of SentencePiece."""
BYTE = len("<0xFF>")


def bytes_said(tokens: torch.Tensor, tokenizer: Any) -> np.ndarray:
    """UTF-8 bytes that every window says behind its first token, which nothing predicts; special tokens say none.

    Args:
        tokens: int64 [windows, length].
        tokenizer: theirs.

    Returns:
        int64 [windows].
    """
    used = np.unique(tokens.numpy(), return_inverse=True)
    lengths = np.array(list(_lengths(used[0].tolist(), tokenizer)), np.int64)
    return lengths[used[1].reshape(tokens.shape)][:, 1:].sum(1)


def _lengths(ids: list[int], tokenizer: Any) -> Iterable[int]:
    special, whole = {*tokenizer.all_special_ids}, _writes_bytes(tokenizer)
    for number, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if number in special or token is None:
            yield 0
        elif whole and number not in tokenizer.added_tokens_decoder:
            # Every byte is written as one sign.
            yield len(token)
        elif len(token) == BYTE and token.startswith("<0x") and token.endswith(">"):
            yield 1
        elif SPACE in token:
            yield len(token.replace(SPACE, " ").encode())
        else:
            yield len(tokenizer.decode([number]).encode())


def _writes_bytes(tokenizer: Any) -> bool:
    """Whether its tokens are spelled in the alphabet of bytes, as GPT-2's."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and b"ByteLevel" in decoder.__getstate__()
