"""What a smaller vocabulary alone costs: the base with all its tokens beside itself with the kept, in bits per byte.

Both read the same text, each in its own tokens, so no other measure compares them.
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from hf_prune.assembly.base_check import stock_model
from hf_prune.data.windows import Windows
from hf_prune.models.parent import Parent
from hf_prune.report.statistics import by_corpus

LONGEST = 4
"""Bytes of a character, in so many tokens at most."""
UNKNOWN = "\ufffd"
"""What part of a character is decoded to."""


def bits_with_all_tokens(
    base: Parent, windows: Windows, said: np.ndarray, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Bits per byte by corpus, and over `all` text, of a source that has lost tokens, if it had not.

    Args:
        base: with its kept tokens.
        windows: in these.
        said: int64 [windows], bytes of text behind the first token of each.
        dtype: that the model computes in.
        device: where it does.
    """
    model = stock_model(base.original, dtype, device).eval()
    nll = np.array([_nats(model, whole_tokens(base, row.tolist())) for row in windows.tokens])
    return by_corpus(nll, said, windows)


def whole_tokens(base: Parent, window: list[int]) -> list[int]:
    """The text of a window in all tokens of its source; the first token, and parts of characters at the ends, are what
    they were.

    Args:
        base: with its kept tokens.
        window: ids of these.
    """
    old = [base.kept[i] for i in window]

    def text(first: int, last: int) -> str:
        return base.tokenizer.decode(window[first:last], clean_up_tokenization_spaces=False)

    size = len(window)
    first = next((i for i in range(1, min(LONGEST, size)) if not text(i, size).startswith(UNKNOWN)), size)
    last = next((i for i in range(size, max(first, size - LONGEST), -1) if not text(first, i).endswith(UNKNOWN)), first)
    middle = base.original.tokenizer(text(first, last), add_special_tokens=False, verbose=False)["input_ids"]
    return [*old[:first], *middle, *old[last:]]


@torch.inference_mode()
def _nats(model: torch.nn.Module, ids: list[int]) -> float:
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
    return sum(
        float(cross_entropy(some.float(), wanted, reduction="sum"))
        for some, wanted in zip(logits.split(256), tokens[0, 1:].split(256), strict=True)
    )
