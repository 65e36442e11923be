"""Which architecture of llama.cpp holds a result, and what its file says of every layer.

Most architectures there know one width for all layers. Two have a list with an entry per layer: `deci` (Llama without
norms of queries and keys, biases allowed) and `openelm` (with these norms, one matrix for queries, keys and values, and
no head of its own). `deci` computes something else without an error where a layer has attention but no MLP, and does
not load where the first layer has no attention; these halves become small and zero, which adds nothing to the residual
stream.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from hf_prune.assembly.widths import Widths, widths
from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.auto_classes import head_dim
from hf_prune.models.modeling_pruned import PREFIX

SMALLEST = 32
"""Neurons of an MLP of zeros: rows of Q8_0 are multiples of it."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of what llama.cpp knows.

    name: of the architecture there.
    families: model types whose layers it computes.
    activation: of the MLP.
    several: it has a width per layer.
    halves: those that it takes absent, of a layer that is not the first.
    interleaved: it rotates neighbouring numbers of a head, so rows of queries and keys are put in that order.
    square: queries are as wide as the residual stream.
    tied: it has no head of its own.
    fused: queries, keys and values are one matrix.
    shift: what is added to the norms' weights.
    rope: kinds of positions.
    windows: it knows layers that look back a few tokens only.
    unplaced: every so many layers one has no positions; 0 where all have some.
    partial: a share of a head may be rotated.
    whole: keys are as wide as the residual stream, too.
    normed: whether weights of the chosen experts are divided by their sum; None where nobody asks.
    exact: zeros that fill up would make it another model.
    tolerance: largest difference of two logits of a float32 file, as a share of the largest logit.
    """

    name: str
    families: tuple[str, ...]
    activation: tuple[str, ...] = ("silu",)
    several: bool = False
    halves: tuple[str, ...] = ()
    interleaved: bool = False
    square: bool = False
    tied: bool = False
    fused: bool = False
    shift: float = 0.0
    rope: tuple[str, ...] = ("default", "linear", "yarn")
    windows: bool = False
    unplaced: int = 0
    partial: bool = False
    whole: bool = False
    normed: bool | None = None
    exact: bool = False
    tolerance: float = 1e-4


PAD = "; give --pad, which fills up with zeros"
GELU: dict[str, Any] = {"activation": ("gelu_pytorch_tanh",), "tolerance": 3e-3}
"""llama.cpp looks it up in a table of float16."""
USUAL = {"partial_rotary_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
"""Of what a config says of positions, that which llama.cpp takes for granted."""
ROPE_KEYS = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor",
             "high_freq_factor", "attention_factor", "short_factor", "long_factor"}  # fmt: skip
"""That which a file says too."""
FREQUENCIES = ("default", "linear", "yarn", "llama3")
ARCHITECTURES = (
    Architecture("smollm3", ("smollm3",), interleaved=True, rope=FREQUENCIES, unplaced=4),
    Architecture("llama", ("llama", "mistral", "smollm3"), interleaved=True, rope=FREQUENCIES),
    Architecture("llama", ("mixtral",), interleaved=True, exact=True),
    Architecture("qwen2moe", ("qwen2_moe",), square=True, normed=False, exact=True),
    Architecture("qwen3moe", ("qwen3_moe",), normed=True, exact=True),
    Architecture("olmoe", ("olmoe",), square=True, whole=True, normed=False, exact=True),
    Architecture("phi3", ("phi3",), rope=("default", "longrope"), partial=True, exact=True),
    Architecture("qwen2", ("qwen2",), square=True),
    Architecture("qwen3", ("qwen3",)),
    Architecture("gemma2", ("gemma2",), shift=1.0, tied=True, windows=True, rope=("default",), **GELU),
    Architecture("gemma3", ("gemma3_text",), shift=1.0, windows=True, rope=("default", "linear"), **GELU),
    Architecture(
        "deci",
        ("llama", "mistral", "qwen2", "smollm3"),
        several=True,
        halves=("attention",),
        interleaved=True,
        rope=FREQUENCIES,
    ),
    Architecture("openelm", ("qwen3",), several=True, fused=True, tied=True, rope=("default",)),
)
"""In the order of preference: a result of one width is said as its parent is."""


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    architecture: of llama.cpp.
    before: widths of the result's layers.
    after: widths in the file, filled up with zeros.
    notes: what is not as one expects.
    """

    config: PretrainedConfig
    architecture: Architecture
    before: tuple[Widths, ...]
    after: tuple[Widths, ...]
    notes: tuple[str, ...] = ()

    @property
    def shared(self) -> int:
        """Query heads per group of keys and values."""
        return self.config.num_attention_heads // self.config.num_key_value_heads


def layout(config: PretrainedConfig, *, pad: bool = False) -> Layout:
    """How a result is said.

    Args:
        config: of the result.
        pad: fill narrow layers and missing halves up with zeros where nothing else works.

    Raises:
        UnsupportedArchitecture: nothing holds it; says which layer, why, and what would work.
    """
    rows, refusals = _rows(config), []
    before, shared = tuple(widths(config)), config.num_attention_heads // config.num_key_value_heads
    for row, fill in [(row, False) for row in rows] + [(row, True) for row in rows if pad and not row.exact]:
        after = tuple(_filled(row, number, layer) for number, layer in enumerate(before))
        if fill and not row.several:
            widest = Widths(max(x.groups for x in after), max(x.neurons for x in after), 0)
            after = tuple(widest for _ in after)
        why = f"{fixed}; serve it with transformers" if (fixed := _settings(config, row)) else None
        if narrow := _layers(row, after, shared * head_dim(config), config.hidden_size):
            why = why or narrow + ("; serve it with transformers" if row.exact else PAD)
        if why is None:
            return replace(_windows(config, row), before=before, after=after)
        refusals.append(why)
    why = refusals[len(rows) - 1 if len({*before}) > 1 else 0]
    raise UnsupportedArchitecture(f"No architecture of llama.cpp holds this {config.model_type}: {why}.")


def check_layout(config: PretrainedConfig, *, uneven: bool) -> None:
    """Refuse a base whose results nothing would hold.

    Args:
        config: of the base.
        uneven: whether layers of the result have widths of their own.

    Raises:
        UnsupportedArchitecture: as `layout`.
    """
    layout(config)
    refusals = [_settings(config, row) for row in _rows(config) if row.several]
    if uneven and all(refusals):
        why = f": {refusals[0]}" if refusals else ""
        later = " and give export --pad, which fills up with zeros" * any(not row.exact for row in _rows(config))
        raise UnsupportedArchitecture(
            f"No architecture of llama.cpp holds a {config.model_type} whose layers have widths of their own{why}; "
            f"leave out --gguf{later}."
        )


def _rows(config: PretrainedConfig) -> list[Architecture]:
    rows = [a for a in ARCHITECTURES if config.model_type.removeprefix(PREFIX) in a.families]
    if not rows:
        known = ", ".join(dict.fromkeys(f for a in ARCHITECTURES for f in a.families))
        raise UnsupportedArchitecture(
            f"A {config.model_type} is not written as GGUF here (known: {known}); where its layers have one width, "
            "convert_hf_to_gguf.py of llama.cpp may know it."
        )
    return rows


def _filled(row: Architecture, number: int, layer: Widths) -> Widths:
    """A half that the architecture needs and the layer does not have becomes small; of one width, nothing changes."""
    if not row.several:
        return layer
    gone = "attention" in row.halves and number
    return Widths(layer.groups or (0 if gone else 1), layer.neurons or SMALLEST, layer.experts)


def _settings(config: PretrainedConfig, row: Architecture) -> str | None:
    """What of a config an architecture does not compute."""
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    kinds = {x["rope_type"] for x in rope_by_type(config).values()}
    if activation not in row.activation:
        return f"this model has the activation {activation}, which {row.name} does not compute"
    if strange := kinds - {*row.rope}:
        return f"this model has positions of type {min(strange)}, which {row.name} does not compute"
    said = {k for x in rope_by_type(config).values() for k, v in x.items() if v not in (None, USUAL.get(k))}
    if strange := said - ROPE_KEYS - ({"partial_rotary_factor"} if row.partial else set()):
        return f"this model's positions say {min(strange)}, which {row.name} does not compute"
    if row.tied and not config.tie_word_embeddings:
        return f"this model has a head of its own, and {row.name} takes the embeddings"
    if row.shift and (scalar := getattr(config, "query_pre_attn_scalar", None)) != head_dim(config):
        return f"this model divides scores by the root of {scalar}, and {row.name} by that of {head_dim(config)}"
    if row.windows and period(config) is None:
        return f"its layers that look back {config.sliding_window} tokens stand in no period, which {row.name} needs"
    if (placed := getattr(config, "no_rope_layers", None)) and list(map(bool, placed)) != _placed(row, len(placed)):
        known = f"every {row.unplaced}th layer" if row.unplaced else "no layer"
        return f"it has other layers without positions than {row.name} knows ({known})"
    return _experts(config, row)


def _placed(row: Architecture, depth: int) -> list[bool]:
    return [not row.unplaced or (i + 1) % row.unplaced != 0 for i in range(depth)]


def _experts(config: PretrainedConfig, row: Architecture) -> str | None:
    """What of experts and of what stands before them an architecture does not compute."""
    if row.normed is not None and config.norm_topk_prob != row.normed:
        does = "divides" if row.normed else "does not divide"
        return f"{row.name} {does} the weights of the chosen experts by their sum, unlike this model"
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        return f"some of its layers have no experts, which {row.name} does not know"
    if row.whole and config.num_key_value_heads != config.num_attention_heads:
        return f"this model has fewer heads of keys than of queries, which {row.name} does not know"
    if getattr(config, "clip_qkv", None):
        return f"this model clips queries, keys and values, which {row.name} does not do"
    return None


def _layers(row: Architecture, after: Sequence[Widths], group: int, hidden: int) -> str | None:
    """What of the layers an architecture cannot say."""
    for number, layer in enumerate(after):
        half = "attention" if not layer.groups else "MLP" if not layer.neurons else None
        if half and not row.several:
            return f"layer {number} has no {half}, which {row.name} needs"
        if layer.experts != (known := after[0].experts):
            return f"layer {number} has {layer.experts} experts and layer 0 {known}, and {row.name} knows one number"
        if not row.several and layer != after[0]:
            return f"layer {number} has another width than layer 0, and {row.name} knows one for all"
        if row.square and layer.groups * group != hidden:
            return f"layer {number} has queries of {layer.groups * group} numbers, and {row.name} needs {hidden}"
    return None


def rope_by_type(config: PretrainedConfig) -> Mapping[str, Mapping[str, Any]]:
    """Position encodings by the type of layer they are for; those of all layers are `full_attention`."""
    found = config.rope_parameters
    return {"full_attention": found} if "rope_type" in found else found


def _sliding(config: PretrainedConfig) -> list[bool]:
    """Which layers look back `sliding_window` tokens only."""
    if not getattr(config, "sliding_window", None):
        return [False] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [kind == "sliding_attention" for kind in kinds]


def period(config: PretrainedConfig) -> int | None:
    """n where every n-th layer alone looks back on everything; 0 if none does; None if there is no such n."""
    found = _sliding(config)
    if all(found):
        return 0
    return next(
        (n for n in range(1, len(found) + 1) if found == [i % n < n - 1 for i in range(len(found))]),
        None,
    )


def _windows(config: PretrainedConfig, row: Architecture) -> Layout:
    """Texts as long as the window are the same for all layers; longer ones the file does not promise."""
    length, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    notes: tuple[str, ...] = ()
    if not row.windows and any(_sliding(config)) and window < length:
        notes = (f"It says a context of {window} tokens: beyond, its layers look back less far than {row.name} does.",)
    return Layout(config, row, (), (), notes)


def context_length(config: PretrainedConfig, row: Architecture) -> int:
    """Tokens for which the file computes what the model does."""
    within = not row.windows and any(_sliding(config))
    return min(config.max_position_embeddings, config.sliding_window) if within else config.max_position_embeddings


def longrope_scale(config: PretrainedConfig, rope: Mapping[str, Any]) -> float:
    """What cosines and sines are multiplied by; as transformers computes it."""
    if (stated := rope.get("attention_factor")) is not None:
        return stated
    old = original_length(config, rope)
    factor = rope.get("factor") or config.max_position_embeddings / old
    return math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0


def original_length(config: PretrainedConfig, rope: Mapping[str, Any]) -> int:
    """Tokens up to which the short factors of longrope hold."""
    return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings


def rope_factors(rope: Mapping[str, Any], size: int) -> list[float]:
    """What llama3 divides the frequencies of a head of `size` numbers by; as transformers computes them."""
    old, low, high = (rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    found = []
    for i in range(0, size, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / size)
        smooth = min(1.0, max(0.0, (old / length - low) / (high - low)))
        found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return found
