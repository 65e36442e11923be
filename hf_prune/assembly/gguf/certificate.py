"""Two certificates of a GGUF file: a llama.cpp reads text in the same tokens, and computes the same logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from hf_prune.assembly.gguf.llama_cpp import Heard, heard
from hf_prune.data.hard_texts import hard_texts
from hf_prune.errors import ReloadMismatch

LOSS = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 5e-2}
"""Largest allowed mean divergence in nats per token of a file whose matrices are of this type."""
COARSE = 2.0
"""The same for all other types: those lose something, and a file that is wrong loses more."""
WINDOWS = (2, 48)
"""Windows and tokens per window that are compared."""
GREEDY = 12
"""Tokens that are said."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What transformers says, in float32.

    texts: hard ones.
    tokens: of each.
    windows: [N, T] int32.
    logits: [N, T, V] float32.
    greedy: tokens behind the first window.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    windows: np.ndarray
    logits: np.ndarray
    greedy: tuple[int, ...]


def expected(folder: Path, tokenizer: Any, length: int) -> Expected:
    """Load the result as transformers does, without code beside it, and let it read.

    Args:
        folder: of the result.
        tokenizer: its own.
        length: tokens of the context that the file promises.
    """
    texts = hard_texts(tokenizer)
    tokens = tuple(tuple(tokenizer.encode(t)) for t in texts)
    count, size = WINDOWS
    size = min(size, length - GREEDY)
    ids = [i for text in reversed(tokens) for i in text]
    windows = np.array(ids[: count * size], np.int32).reshape(count, size)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(windows).long()).logits.numpy()
        spoken = windows[0].tolist()
        for _ in range(GREEDY):
            spoken.append(int(model(torch.tensor([spoken])).logits[0, -1].argmax()))
    return Expected(texts, tokens, windows, logits, tuple(spoken[size:]))


def certify(file: Path, library: Path, wanted: Expected, kind: str, tolerance: float) -> dict[str, Any]:
    """Compare.

    Args:
        file: GGUF.
        library: of a llama.cpp.
        wanted: what transformers says.
        kind: type of the matrices.
        tolerance: largest difference of two logits of a float32 file, as a share of the largest logit.

    Raises:
        ReloadMismatch: a text has other tokens, or the logits are those of another model.
    """
    found = heard(library, file, wanted.texts, wanted.windows, GREEDY)
    for text, ours, theirs in zip(wanted.texts, wanted.tokens, found.tokens, strict=True):
        if ours != theirs:
            raise ReloadMismatch(
                f"llama.cpp reads {text[:60]!r} as {list(theirs[:12])} and the tokenizer as {list(ours[:12])}; this "
                "file would speak another language. Nothing was written."
            )
    return {"tokens": {"ok": True, "texts": len(wanted.texts)}, **_logits(found, wanted, kind, tolerance)}


def _logits(found: Heard, wanted: Expected, kind: str, tolerance: float) -> dict[str, Any]:
    if found.logits.shape != wanted.logits.shape:
        raise ReloadMismatch(f"llama.cpp has logits of shape {found.logits.shape}, not {wanted.logits.shape}.")
    largest = max(1.0, float(np.abs(wanted.logits).max()))
    difference = float(np.abs(found.logits - wanted.logits).max()) / largest
    loss = divergence(wanted.logits, found.logits)
    if kind == "F32":
        wrong, said = not difference <= tolerance, f"logits differ by {difference:.2g} of the largest ({tolerance:g})"
    else:
        most = LOSS.get(kind, COARSE)
        wrong, said = not loss <= most, f"its divergence is {loss:.3g} nats a token (allowed {most:g})"
    if wrong:
        raise ReloadMismatch(f"llama.cpp computes another model of this {kind} file: {said}. Nothing was written.")
    same = sum(a == b for a, b in zip(found.greedy, wanted.greedy, strict=True))
    top = float((found.logits.argmax(-1) == wanted.logits.argmax(-1)).mean())
    return {"logits": {"ok": True, "difference": difference, "kl": loss, "same_top": top, "same_spoken": same,
                       "spoken": len(wanted.greedy)}}  # fmt: skip


def divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence in nats per token, of logits [..., V]."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (ours, theirs))
    return float((p.exp() * (p - q)).sum(-1).mean())
