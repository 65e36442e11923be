"""What the model says: greedy samples, and how much they repeat themselves.

Perplexity hides collapse; a model that loops shows it here first.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from hf_prune.report.schema.scores import Fluency

REPEATED = 4
"""Length of the n-grams that `repetition` counts."""


def greedy(model: Any, prompts: Sequence[torch.Tensor], new_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Continue every prompt by its likeliest tokens, at most `new_tokens`, cut before the first end-of-text token.

    The model's own sampling settings (temperature, penalties, suppressed tokens) are set aside while it speaks.

    Args:
        model: a transformers causal language model with `generate`.
        prompts: int64 [tokens] each, or one tensor [prompts, tokens]; those of equal length go in one batch.
        new_tokens: most tokens per sample.
    """
    said: dict[int, tuple[int, ...]] = {}
    ends = _ends(model)
    with _plain(model, ends, new_tokens):
        for length in sorted({len(p) for p in prompts}):
            numbers = [i for i, p in enumerate(prompts) if len(p) == length]
            batch = torch.stack([prompts[i] for i in numbers]).to(model.device)
            out = model.generate(batch, attention_mask=torch.ones_like(batch))[:, length:].tolist()
            said |= {i: _until(sample, ends) for i, sample in zip(numbers, out, strict=True)}
    return tuple(said[i] for i in range(len(prompts)))


def fluency(samples: Sequence[Sequence[int]]) -> Fluency:
    """How samples as `greedy` gives them repeat themselves; empty samples count with length 0."""
    rates = [repetition(s) for s in samples]
    lengths = [len(s) for s in samples]
    return Fluency(
        repetition=sum(rates) / len(rates), distinct_2=distinct(samples, 2), mean_length=sum(lengths) / len(lengths)
    )


def repetition(sample: Sequence[int], n: int = REPEATED) -> float:
    """Share of the n-grams of `sample` that occurred before in it; 0 for samples shorter than n."""
    grams = list(_grams(sample, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(samples: Iterable[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams, counted over all samples together; 0 when there are none."""
    grams = [g for s in samples for g in _grams(s, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(sample: Sequence[int], n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(sample[i:] for i in range(n)), strict=False)


def _ends(model: Any) -> tuple[int, ...]:
    end = model.generation_config.eos_token_id
    if end is None:
        end = model.config.get_text_config().eos_token_id
    return () if end is None else tuple(end) if isinstance(end, list | tuple) else (end,)


def _until(sample: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    stop = next((i for i, token in enumerate(sample) if token in ends), len(sample))
    return tuple(sample[:stop])


@contextmanager
def _plain(model: Any, ends: tuple[int, ...], new_tokens: int) -> Iterator[None]:
    # generate() falls back to model.generation_config for whatever its argument leaves open, so that is what must go.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
    )
    try:
        yield
    finally:
        model.generation_config = own
