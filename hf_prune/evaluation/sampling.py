"""A model that speaks: its own sampling settings set aside, its draws repeatable."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from hf_prune.errors import BaseOverflow

GOING_ON = 8
"""A batch is left when only one row of so many still speaks; what those say is cut off there."""


class Said(NamedTuple):
    """What a model said: tokens, its end among them where it came to one."""

    ids: tuple[int, ...]
    ended: bool


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    seed: int,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Said]:
    """Let a model go on from every prompt at temperature 1, nothing cut off its distribution, with a cache.

    Prompts of one length, or of any where the model looks at a mask (they are padded on the left), are one batch.

    Args:
        model: a transformers causal language model with `generate`.
        prompts: tokens of each, at least one.
        new_tokens: most tokens that are said to one prompt.
        seed: of the draws; the generator of the process is left as it was.
        tick: told after every step of a batch how many of its rows were drawn; what it raises ends the sampling.

    Raises:
        BaseOverflow: the model's logits are no numbers in its precision.
    """
    said: dict[int, Said] = {}
    ends = ends_of(model)
    devices = [model.device] if model.device.type == "cuda" else []
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    explained = drawn_from(
        model, "the base computes of its own samples", "give --dtype float32, or other text than self"
    )
    with speaking(model, new_tokens, **settings), torch.random.fork_rng(devices), explained:
        torch.manual_seed(seed)
        for numbers in _batches(model, prompts):
            some = [prompts[i] for i in numbers]
            width = max(map(len, some))
            padded = [[0] * (width - len(p)) + list(p) for p in some]
            mask = [[0] * (width - len(p)) + [1] * len(p) for p in some]
            watch = StoppingCriteriaList([_Watch(ends, tick)])
            ids, seen = (torch.tensor(rows, device=model.device) for rows in (padded, mask))
            out = model.generate(ids, attention_mask=seen, stopping_criteria=watch)[:, width:].tolist()
            said |= {i: _until(row, ends) for i, row in zip(numbers, out, strict=True)}
    return [said[i] for i in range(len(prompts))]


def ends_of(model: Any) -> tuple[int, ...]:
    """The tokens that end what a model says."""
    end = model.generation_config.eos_token_id
    if end is None:
        end = model.config.get_text_config().eos_token_id
    return () if end is None else tuple(end) if isinstance(end, list | tuple) else (end,)


@contextmanager
def speaking(model: Any, new_tokens: int, **settings: Any) -> Iterator[None]:
    """Within, `generate` follows these settings and none of the model's own."""
    # generate() falls back to model.generation_config for whatever its argument leaves open, so that is what must go.
    own, ends = model.generation_config, ends_of(model)
    model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
        **settings,
    )
    try:
        yield
    finally:
        model.generation_config = own


def _batches(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the prompts that are read side by side."""
    # A state takes in whatever it is shown, padding as well.
    if not getattr(model, "_is_stateful", False):
        return [list(range(len(prompts)))]
    lengths = sorted({len(p) for p in prompts})
    return [[i for i, p in enumerate(prompts) if len(p) == length] for length in lengths]


class _Watch(StoppingCriteria):
    """Counts the rows that still speak, tells of every step, and ends a batch that hardly goes on."""

    def __init__(self, ends: Sequence[int], tick: Callable[[int], None]) -> None:
        self.ends, self.tick = torch.tensor(ends, dtype=torch.long), tick
        self.ended: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        now = torch.isin(input_ids[:, -1].cpu(), self.ends)
        self.tick(len(now) if self.ended is None else int((~self.ended).sum()))
        self.ended = now if self.ended is None else self.ended | now
        left = int((~self.ended).sum())
        return torch.full((len(now),), left * GOING_ON <= len(now) and left < len(now), device=input_ids.device)


def _until(row: list[int], ends: Sequence[int]) -> Said:
    stop = next((i for i, token in enumerate(row) if token in ends), None)
    return Said(tuple(row), False) if stop is None else Said(tuple(row[: stop + 1]), True)


@contextmanager
def drawn_from(model: Any, what: str, help: str) -> Iterator[None]:
    """Raises BaseOverflow where draws fail since logits are no numbers: `what` is computed, `help` is what to do."""
    try:
        yield
    except RuntimeError as e:
        if "probability tensor" not in str(e):
            raise
        raise BaseOverflow(f"What {what} in {str(model.dtype).removeprefix('torch.')} is no number; {help}.") from None
