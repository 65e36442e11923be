"""What the model says: greedy samples, and how much they repeat themselves.

Perplexity hides collapse; a model that loops shows it here first.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from hf_prune.evaluation.sampling import ends_of, speaking
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
    ends = ends_of(model)
    with speaking(model, new_tokens, do_sample=False):
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


def _until(sample: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    stop = next((i for i, token in enumerate(sample) if token in ends), len(sample))
    return tuple(sample[:stop])
