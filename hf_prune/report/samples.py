"""What the model says: greedy samples, and how much they repeat themselves.

Perplexity hides collapse; a model that loops shows it here first.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig

REPEATED = 4
"""Length of the n-grams that `repetition` counts."""


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """`repetition`: share of 4-grams that repeat an earlier one of their sample (mean over samples, 0 to 1);
    `distinct_2`: distinct over all bigrams of all samples (Li et al. 2016, arXiv:1510.03055);
    `mean_length`: tokens until the end-of-text token, or all that were asked for."""

    repetition: float
    distinct_2: float
    mean_length: float

    def to_dict(self) -> dict[str, float]:
        """The three figures under their own names."""
        return asdict(self)


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


def statistics(samples: Sequence[Sequence[int]]) -> GenerationStats:
    """Figures of `GenerationStats` for samples as `greedy` gives them; empty samples count with length 0."""
    rates = [repetition(s) for s in samples]
    lengths = [len(s) for s in samples]
    return GenerationStats(sum(rates) / len(rates), distinct(samples, 2), sum(lengths) / len(lengths))


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
