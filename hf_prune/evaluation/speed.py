"""Measured speed: prefill and cached decoding, every model in turn so that noise hits all alike; and cache sizes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Speeds = dict[str, dict[str, float]]


def measure(
    models: Mapping[str, Any],
    rng: np.random.Generator,
    prefill_tokens: int = 256,
    decode_tokens: int = 32,
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
    first = next(iter(models.values()))
    prefill_tokens, decode_tokens = _fitting(models, prefill_tokens, decode_tokens)
    vocabulary = min(m.get_input_embeddings().weight.shape[0] for m in models.values())
    prompt = torch.from_numpy(rng.integers(0, vocabulary, (1, prefill_tokens)))
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(repeats + 1):
        for name in list(models)[:: 1 if number % 2 else -1]:
            seconds = _round(models[name], prompt.to(models[name].device), decode_tokens)
            if number:
                rounds[name].append(seconds)
    return {
        **{name: _speeds(times, prefill_tokens, decode_tokens, of_rounds) for name, times in rounds.items()},
        "prefill_tokens": prefill_tokens,
        "decode_tokens": decode_tokens,
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


@torch.inference_mode()
def _round(model: Any, prompt: torch.Tensor, decode_tokens: int) -> tuple[float, float]:
    """Seconds of one prefill and of the decode steps after it."""
    _wait(model.device)
    begin = time.perf_counter()
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    _wait(model.device)
    between = time.perf_counter()
    for _ in range(decode_tokens):
        token = out.logits[:, -1:].argmax(-1)
        # State-space models call it otherwise.
        cache = next(n for n in ("past_key_values", "cache_params") if getattr(out, n, None) is not None)
        out = model(input_ids=token, use_cache=True, logits_to_keep=1, **{cache: getattr(out, cache)})
    _wait(model.device)
    return between - begin, time.perf_counter() - between


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _speeds(
    times: list[tuple[float, float]], prefill_tokens: int, decode_tokens: int, of_rounds: Callable[..., float]
) -> dict[str, float]:
    prefill, decode = map(of_rounds, zip(*times, strict=True))
    return {"prefill_tokens_per_s": prefill_tokens / prefill, "decode_tokens_per_s": decode_tokens / decode}


def product_rates(size: int = 1024, repeats: int = 5) -> tuple[float, float]:
    """Operations per second of a matrix product on the device that a run would take.

    Returns:
        In the precision in which a bfloat16 model is searched there, and in that of its training.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    search = torch.bfloat16 if device.type != "cpu" or computes_bfloat16() else torch.float32
    training = torch.float32 if device.type == "cpu" else torch.bfloat16
    return tuple(_product_rate(torch.ones(size, size, dtype=d, device=device), repeats) for d in (search, training))


def _product_rate(matrix: torch.Tensor, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        _wait(matrix.device)
        begin = time.perf_counter()
        matrix @ matrix
        _wait(matrix.device)
        seconds.append(time.perf_counter() - begin)
    return 2 * matrix.shape[0] ** 3 / statistics.median(seconds[1:])


def computes_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; others emulate it, slower than float32."""
    # torch before 2.11 cannot say.
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
