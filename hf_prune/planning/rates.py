"""How fast a machine is: measured where the run will be, or known of a device."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hf_prune.models.headers import setting


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model that a forecast counts with.

    depth: layers. layer, outside: parameters of one, and outside of all. hidden: width of the residual stream. inner:
    neurons of an MLP. heads, cached, head_size: of an attention, its key-value heads, numbers of a head. rows: tokens
    of the vocabulary. bytes: of the weights as they are stored.
    """

    depth: int
    layer: int
    outside: int
    hidden: int
    inner: int
    heads: int
    cached: int
    head_size: int
    rows: int
    bytes: int

    @classmethod
    def of(cls, config: Mapping[str, Any], depth: int, layer: int, outside: int, size: int) -> "Shape":
        """From a config; what it does not say is guessed as transformers' families have it.

        Args:
            config: of config.json.
            depth: layers.
            layer: parameters of one, on average.
            outside: parameters outside of the layers.
            size: bytes of all weights.
        """

        def first(default: int, *names: str) -> int:
            value = setting(config, *names)
            return value if isinstance(value, int) and value > 0 else default

        hidden = first(1024, "hidden_size", "n_embd", "d_model")
        heads = first(max(1, hidden // 64), "num_attention_heads", "n_head")
        return cls(
            depth,
            layer,
            outside,
            hidden,
            first(4 * hidden, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
            heads,
            # A synthetic layer shares key-value heads evenly.
            cached if heads % (cached := first(heads, "num_key_value_heads")) == 0 else heads,
            first(max(1, hidden // heads), "head_dim"),
            first(32768, "vocab_size"),
            size,
        )

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.depth * self.layer + self.outside

    @property
    def mixed(self) -> int:
        """What an attention puts into its output map."""
        return self.heads * self.head_size


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds, as `evaluation.throughput.measure_rates` has them; `start` those of a process that loads torch and
    transformers, `disk` those of a byte that is read or written; `passing` those of reading, once, all layers that do
    not fit into memory."""

    layer: float
    trained: float
    step: float
    head: float
    product: float
    factor: float
    start: float = 8.0
    disk: float = 1 / 3e8
    passing: float = 0.0


@lru_cache(maxsize=16)
def rates_here(shape: Shape, length: int, device: str, dtype: str) -> Rates:
    """Measured on this machine, in about a second; loads torch."""
    from hf_prune.evaluation.throughput import measure_rates

    sizes = (shape.hidden, shape.inner, shape.heads, shape.cached, shape.head_size, shape.rows)
    return Rates(**measure_rates(*sizes, length, device, dtype))


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator as its data sheet has it: operations per second in bfloat16 (dense) and float32, and bytes per
    second of its memory."""

    bfloat16: float
    float32: float
    memory: float


DEVICES = {
    "t4": Device(65e12, 8e12, 3.2e11),
    "l4": Device(121e12, 30e12, 3.0e11),
    "a10g": Device(70e12, 31e12, 6.0e11),
    "l40s": Device(362e12, 91e12, 8.6e11),
    "a100": Device(312e12, 19.5e12, 2.0e12),
    "h100": Device(989e12, 67e12, 3.35e12),
    "h200": Device(989e12, 67e12, 4.8e12),
}
"""By name; what their makers' data sheets say."""
REACHED = 0.35
"""Share of these operations that a layer comes to; of a product alone twice that."""


def rates_of(device: Device) -> Rates:
    """What a device should come to, where it cannot be measured."""
    pair = 2 / (REACHED * device.bfloat16)
    return Rates(
        layer=pair,
        trained=3 * pair,
        step=2 / (0.5 * device.memory),
        # A row's logit is written and read a few times in float32, beside its product.
        head=24 / (0.5 * device.memory) + 2 * 4096 / (REACHED * device.bfloat16),
        product=1 / (0.7 * device.float32),
        factor=1 / (0.1 * device.float32),
        start=15.0,
        disk=1 / 1e9,
    )
