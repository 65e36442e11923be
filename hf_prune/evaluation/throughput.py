"""How fast this machine computes what a run is made of: a layer forwards and backwards, the head, single steps."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax, rms_norm, scaled_dot_product_attention, silu

from hf_prune.evaluation.speed import computes_bfloat16
from hf_prune.models.devices import device_of

PATIENCE = 0.1
"""Seconds a measurement may be repeated for; every one is done twice at least, and the first does not count."""
OPERATIONS, GPU_OPERATIONS = 5e9, 4e12
"""Of one call that is timed, about."""
MOST_ROWS = 1 << 15
"""Of a head that is timed."""
BATCH = 24
"""Texts that go on side by side in a step."""


def measure_rates(
    hidden: int, inner: int, heads: int, cached: int, head_size: int, rows: int, length: int, device: str, dtype: str
) -> dict[str, float]:
    """Seconds that the parts of a run take, on a layer of these sizes (of Llama's shape) with weights of no meaning.

    Args:
        hidden: width of the residual stream.
        inner: neurons of the MLP.
        heads: of the attention.
        cached: its key-value heads.
        head_size: numbers of a head.
        rows: tokens of the vocabulary.
        length: tokens of a window.
        device: as a recipe says it; auto is the accelerator, where there is one.
        dtype: as a recipe says it; auto is bfloat16 where the device computes in it, else float32.

    Returns:
        `layer`, `trained`: a token and a parameter of a layer, forwards; forwards and backwards to its input. `step`: a
        parameter of a layer in one step of `BATCH` texts. `head`: a token and a row of the head, with its softmax.
        `product`, `factor`: an operation of a product in float32, and of a Cholesky decomposition in float64.
    """
    where = device_of(device)
    native = where.type != "cpu" or computes_bfloat16()
    kind = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16 if native else torch.float32
    layer = _Layer(hidden, inner, heads, cached, head_size, where, kind)
    operations = OPERATIONS if where.type == "cpu" else GPU_OPERATIONS
    windows = max(1, min(round(operations / (2 * layer.parameters * length)), 4096 // length or 1))
    state = torch.randn(windows, length, hidden, device=where, dtype=kind)
    trained = state[: -(-windows // 2)].clone().requires_grad_()
    step = torch.randn(BATCH, 1, hidden, device=where, dtype=kind)
    rows = min(rows, MOST_ROWS)
    table = torch.full((rows, hidden), 1 / hidden, device=where, dtype=kind)
    few = max(1, min(256, (1 << 22) // rows)) if where.type == "cpu" else 1024
    said, square = state.reshape(-1, hidden)[:few], torch.randn(min(inner, 2048), 2048, device=where)
    gram = (square @ square.T).double() + torch.eye(len(square), device=where, dtype=torch.float64) * 1e4
    with torch.no_grad():
        forward = timed(lambda: layer(state), where) / (layer.parameters * windows * length)
        stepping = timed(lambda: layer(step), where) / layer.parameters
        head = timed(lambda: log_softmax(linear(said, table).float(), -1), where) / (rows * len(said))
        product = timed(lambda: square @ square.T, where) / (2 * square.numel() * len(square))
        factor = timed(lambda: torch.linalg.cholesky(gram), where) / (len(gram) ** 3 / 3)
    back = timed(lambda: layer(trained).sum().backward(), where) / (layer.parameters * len(trained) * length)
    return {
        "layer": forward,
        "trained": back,
        "step": stepping,
        "head": head,
        "product": product,
        "factor": factor,
    }


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a few calls."""
    found: list[float] = []
    until = time.perf_counter() + PATIENCE
    while len(found) < 2 or time.perf_counter() < until and len(found) < 20:
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _Layer:
    """Attention and a gated MLP, each behind a norm."""

    def __init__(
        self, hidden: int, inner: int, heads: int, cached: int, size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        def made(outputs: int, inputs: int) -> Tensor:
            return torch.full((outputs, inputs), 1 / inputs, device=device, dtype=dtype)

        self.heads, self.cached, self.size = heads, cached, size
        self.into, self.out = made((heads + 2 * cached) * size, hidden), made(hidden, heads * size)
        self.gate, self.up, self.down = made(inner, hidden), made(inner, hidden), made(hidden, inner)
        self.scale = torch.ones(hidden, device=device, dtype=dtype)
        self.parameters = sum(t.numel() for t in (self.into, self.out, self.gate, self.up, self.down))

    def __call__(self, state: Tensor) -> Tensor:
        rows, length, hidden = state.shape
        entered = linear(rms_norm(state, (hidden,), self.scale), self.into)
        parts = entered.unflatten(-1, (-1, self.size)).transpose(1, 2).split([self.heads, self.cached, self.cached], 1)
        mixed = scaled_dot_product_attention(*parts, is_causal=length > 1, enable_gqa=True)
        state = state + linear(mixed.transpose(1, 2).flatten(2), self.out)
        entered = rms_norm(state, (hidden,), self.scale)
        return state + linear(silu(linear(entered, self.gate)) * linear(entered, self.up), self.down)
