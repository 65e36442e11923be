"""Measured speed: prefill and cached decoding, every model in turn so that noise hits all alike; and cache sizes."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_prune.metrics.median_interval import LEAST, median_interval

PHASES = ("prefill", "decode")
PREFILL_TOKENS, DECODE_TOKENS = 256, 32
CHUNK = 8
"""Tokens that a model decodes until it is the other one's turn."""
ROUNDS, MOST_ROUNDS, SECONDS = 9, 25, 20.0
"""Rounds that a comparison needs to stop after so many seconds, and those that it stops at in any case."""
DISTURBED = 0.1
"""Share of a round that the process may have waited for a processor."""


def measure(
    models: Mapping[str, Any],
    rng: np.random.Generator,
    prefill_tokens: int = PREFILL_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    repeats: int = 5,
    of_rounds: Callable[[Sequence[float]], float] = statistics.median,
) -> dict[str, Any]:
    """Time every model on the same random tokens at batch 1; `of_rounds` over `repeats` interleaved rounds.

    Prefill is one forward over `prefill_tokens` that makes the last logits only and fills the cache; decode is
    `decode_tokens` greedy steps of one token each on that cache. One round before the first is not counted. Where the
    models have fewer positions than asked for, both numbers shrink to fit.

    Returns:
        {name: {"prefill_tokens_per_s", "decode_tokens_per_s"}} and, of the run as a whole, "prefill_tokens",
        "decode_tokens", "repeats", "device", "threads", "dtype" (of the first model).
    """
    race = _Race.of(models, rng, prefill_tokens, decode_tokens)
    rounds = [race.round(number) for number in range(repeats + 1)][1:]
    return {
        **{name: race.rates([seconds[name] for seconds in rounds], of_rounds) for name in models},
        **race.terms(repeats),
    }


def waited() -> float | None:
    """Seconds that threads of this process have waited for a processor, as Linux counts them; None elsewhere."""
    counts = []
    for path in Path("/proc/self/task").glob("*/schedstat"):
        # Nanoseconds that it ran, nanoseconds that it waited, and how often; a thread may have just ended.
        with suppress(OSError):
            counts.append(int(path.read_text().split()[1]))
    return sum(counts) / 1e9 if counts else None


def compare(
    dense: Any,
    pruned: Any,
    rng: np.random.Generator,
    prefill_tokens: int = PREFILL_TOKENS // 2,
    decode_tokens: int = DECODE_TOKENS // 2,
    queued: Callable[[], float | None] = waited,
) -> dict[str, Any]:
    """How much faster one model is than another: both in turn in many short rounds, and each round is a ratio.

    Tokens are as in `measure`, half as many, since many rounds tell more than long ones. Rounds in which the process
    waited for a processor more than `DISTURBED` of the time do not count; without `LEAST` others nothing is said.

    Args:
        dense: the model that the other is compared with.
        pruned: the other.
        rng: decides the prompt.
        prefill_tokens: of a round.
        decode_tokens: of a round.
        queued: seconds waited so far, see `waited`.

    Returns:
        What `measure` does under "dense" and "pruned" (NaN where nothing is said) and of the run as a whole, "repeats"
        being the rounds that count; "disturbed" rounds; and, where something is said, "prefill" and "decode", each
        {"value": median, "ci"} of the rounds' ratios, 95 % by `median_interval`; above 1, `pruned` is faster.
    """
    race = _Race.of({"dense": dense, "pruned": pruned}, rng, prefill_tokens, decode_tokens)
    race.round(0)
    quiet, disturbed, begin = [], 0, time.perf_counter()
    for number in range(1, MOST_ROUNDS + 1):
        start, before = time.perf_counter(), queued()
        seconds = race.round(number)
        lasted = time.perf_counter() - start
        if before is None or queued() - before <= DISTURBED * lasted:
            quiet.append(seconds)
        else:
            disturbed += 1
        if number >= ROUNDS and start + lasted - begin > SECONDS:
            break
    found = {**race.terms(len(quiet)), "disturbed": disturbed}
    if len(quiet) < LEAST:
        silent = {f"{phase}_tokens_per_s": float("nan") for phase in PHASES}
        return {**found, "dense": silent, "pruned": silent}
    for number, phase in enumerate(PHASES):
        value, ci = median_interval([s["dense"][number] / s["pruned"][number] for s in quiet])
        found[phase] = {"value": value, "ci": ci}
    return {**found, **{name: race.rates([s[name] for s in quiet], statistics.median) for name in race.models}}


@dataclass(frozen=True, eq=False)
class _Race:
    """Models that take turns on one prompt, int64 [1, prefill tokens]."""

    models: Mapping[str, Any]
    prompt: torch.Tensor
    decode_tokens: int

    @classmethod
    def of(cls, models: Mapping[str, Any], rng: np.random.Generator, prefill: int, decode: int) -> "_Race":
        """With as many tokens as all of them read."""
        prefill, decode = _fitting(models, prefill, decode)
        vocabulary = min(m.get_input_embeddings().weight.shape[0] for m in models.values())
        return cls(models, torch.from_numpy(rng.integers(0, vocabulary, (1, prefill))), decode)

    @torch.inference_mode()
    def round(self, number: int) -> dict[str, tuple[float, float]]:
        """Seconds of a prefill and of the decoding after it, by name; who begins alternates."""
        order = list(self.models)[:: 1 if number % 2 else -1]
        turns = {name: self._turns(self.models[name]) for name in order}
        prefill = {name: next(turns[name]) for name in order}
        decode = dict.fromkeys(order, 0.0)
        for _ in range(-(-self.decode_tokens // CHUNK)):
            for name in order:
                decode[name] += next(turns[name])
        return {name: (prefill[name], decode[name]) for name in self.models}

    def _turns(self, model: Any) -> Iterator[float]:
        """Seconds of a prefill, and then of every chunk of decoding."""
        prompt, device = self.prompt.to(model.device), model.device
        begin = _time(device)
        out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        yield _time(device) - begin
        for first in range(0, self.decode_tokens, CHUNK):
            begin = _time(device)
            for _ in range(min(CHUNK, self.decode_tokens - first)):
                token = out.logits[:, -1:].argmax(-1)
                # State-space models call it otherwise.
                cache = next(n for n in ("past_key_values", "cache_params") if getattr(out, n, None) is not None)
                out = model(input_ids=token, use_cache=True, logits_to_keep=1, **{cache: getattr(out, cache)})
            yield _time(device) - begin

    def rates(
        self, times: Sequence[tuple[float, float]], of_rounds: Callable[[Sequence[float]], float]
    ) -> dict[str, float]:
        """Tokens per second of one model."""
        prefill, decode = map(of_rounds, zip(*times, strict=True))
        return {
            "prefill_tokens_per_s": self.prompt.shape[1] / prefill,
            "decode_tokens_per_s": self.decode_tokens / decode,
        }

    def terms(self, repeats: int) -> dict[str, Any]:
        """What was measured, and on what."""
        first = next(iter(self.models.values()))
        return {
            "prefill_tokens": self.prompt.shape[1],
            "decode_tokens": self.decode_tokens,
            "repeats": repeats,
            "device": str(first.device),
            "threads": torch.get_num_threads(),
            "dtype": str(first.dtype).removeprefix("torch."),
        }


KEYLESS = ("linear_attention", "conv", "mamba", "mlp", "moe")
"""Types of layers that cache no keys, however long the text."""


def kv_bytes_per_token(config: Any, dtype_bytes: int, layers: Sequence[int] | None = None) -> int:
    """Bytes of key-value cache that one more token costs: 2 x key-value heads x head size x `dtype_bytes` a layer.

    Sliding-window layers are counted as if every token stayed, which holds up to the window's length. Layers that carry
    a state instead cost nothing.

    Args:
        config: a transformers config, or the dict of a config.json.
        dtype_bytes: bytes of one cache element, 2 for bfloat16.
        layers: numbers of the layers that are counted; all of them by default.
    """
    text = _field(config, "text_config") or config
    numbers = range(_field(text, "num_hidden_layers", "n_layer")) if layers is None else layers
    return dtype_bytes * sum(_cached(text, i) for i in numbers)


def _cached(config: Any, layer: int) -> int:
    """Numbers that a layer keeps of a token."""
    types = _field(config, "layer_types", "layers_block_type")
    if getattr(config, "is_heterogeneous", False):
        config = config.per_layer_config[layer]
    heads = _field(config, "num_attention_heads", "n_head")
    if not heads or types and types[layer] in KEYLESS:
        return 0
    if latent := _field(config, "kv_lora_rank"):
        return latent + _field(config, "qk_rope_head_dim")
    size = _field(config, "head_dim") or _field(config, "hidden_size", "n_embd") // heads
    if _field(config, "multi_query") and not _field(config, "new_decoder_architecture"):
        return 2 * size
    heads = _field(config, "num_key_value_heads", "num_kv_heads") or heads
    return heads * (size + (_field(config, "v_head_dim") or size))


def _field(config: Any, *names: str) -> Any:
    for name in names:
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if value is not None:
            return value
    return None


def _fitting(models: Mapping[str, Any], prefill: int, decode: int) -> tuple[int, int]:
    limits = [_field(m.config.get_text_config(), "max_position_embeddings", "n_positions") for m in models.values()]
    room = min([n for n in limits if n] or [prefill + decode])
    if prefill + decode <= room:
        return prefill, decode
    decode = max(1, min(decode, room // 4))
    return room - decode, decode


def _time(device: torch.device) -> float:
    """Of the clock, once the device has done what it was told."""
    _wait(device)
    return time.perf_counter()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def computes_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; others emulate it, slower than float32."""
    # torch before 2.11 cannot say.
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
