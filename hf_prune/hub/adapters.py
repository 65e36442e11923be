"""What an adapter's own files say: whether PEFT merges it, and what it makes of its base."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hf_prune.errors import BrokenCheckpoint, IncompatibleSources, UnsafeSource
from hf_prune.hub.names import shown

if TYPE_CHECKING:
    from hf_prune.hub.folders import TensorInfo

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MERGED = (
    "ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA",
    "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA",
    "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
)  # fmt: skip
"""Types that PEFT 0.21 puts into the weights with merge_and_unload."""
PROMPT, ROUTED = "which puts learnt states before the text", "whose change depends on what is read"
UNMERGED = {
    **dict.fromkeys(
        ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"), PROMPT
    ),
    "ADAPTION_PROMPT": "which adds prompts and gates to attention",
    **dict.fromkeys(("XLORA", "POLY", "LILY", "SHADOW"), ROUTED),
}
"""Types that are in no weights, and why."""
UNMERGED_LORA = {
    "alora_invocation_tokens": "it works behind certain tokens only",
    "arrow_config": "it chooses among experts for every token",
    "layer_replication": "it repeats layers of its base",
    "megatron_config": "it belongs to Megatron's layers",
}
"""Settings of a LoRA that PEFT does not merge, and why."""
OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM")
PLAIN = {
    "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r",
    "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "peft_version", "runtime_config",
}  # fmt: skip
"""Settings that leave a LoRA what its paper says: W + scale * B A."""
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initialisations that leave the base as it is; PiSSA, OLoRA and others subtract their start from it."""
PAIR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save|original_module)(\.default)?(?=\.)")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
HEADS = ("lm_head", "embed_out")


def read_adapter(
    what: str, files: Collection[str], read: Callable[[str], bytes], allow_pickle: bool = False
) -> dict[str, Any]:
    """adapter_config.json of an adapter that PEFT can merge into its base.

    Raises:
        IncompatibleSources: it is no adapter, or one that no weights can express.
        UnsafeSource: its weights are pickles, and they are not allowed.
        BrokenCheckpoint: its config is malformed, or it has no weights.
    """
    if CONFIG not in files:
        raise IncompatibleSources(f"{what} has no {CONFIG}, so it is no PEFT adapter; after + comes an adapter.")
    config = parse_config(what, read(CONFIG))
    check_weights(what, files, allow_pickle)
    return config


def check_weights(what: str, files: Collection[str], allow_pickle: bool) -> None:
    """Raise UnsafeSource for an adapter of pickles that nobody allowed, BrokenCheckpoint for one without weights."""
    if WEIGHTS in files or (allow_pickle and PICKLE in files):
        return
    if PICKLE in files:
        raise UnsafeSource(
            f"{what} has only a pickle of its weights, which can run code when read; save it with "
            "safe_serialization=True, or pass --allow-pickle if you trust its author."
        )
    raise BrokenCheckpoint(f"{what} has no weights; it needs {WEIGHTS}.")


def parse_config(what: str, content: bytes) -> dict[str, Any]:
    """The settings of an adapter that PEFT can merge.

    Raises:
        BrokenCheckpoint: they are malformed.
        IncompatibleSources: no weights can express what it does.
    """
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise BrokenCheckpoint(f"{what}/{CONFIG} is missing or malformed; download the adapter again.")
    kind = config["peft_type"]
    if kind not in MERGED:
        why = UNMERGED.get(kind, "which this version of hf_prune does not know")
        raise IncompatibleSources(
            f"{what} is an adapter of type {shown(kind)}, {why}; it cannot be merged into "
            "weights: choose a LoRA or another type that PEFT merges."
        )
    if odd := next((k for k in UNMERGED_LORA if config.get(k)), None):
        raise IncompatibleSources(
            f"{what} uses {odd}, so {UNMERGED_LORA[odd]} and PEFT cannot merge it; choose another adapter."
        )
    if (task := config.get("task_type")) in OTHER_TASKS:
        raise IncompatibleSources(
            f"{what} is an adapter for {task}, not for a causal language model; choose one of task CAUSAL_LM."
        )
    _check_values(what, config)
    return config


def _check_values(what: str, config: Mapping[str, Any]) -> None:
    """Ranks and scales must be numbers, the patterns that override them regular expressions, modules a list."""
    if not isinstance(kept := config.get("modules_to_save") or [], list) or not all(isinstance(k, str) for k in kept):
        raise BrokenCheckpoint(f"{what}/{CONFIG} is malformed: modules_to_save is no list; download it again.")
    ranks = [config.get("r", 8), *_values(what, config, "rank_pattern")]
    scales = [config.get("lora_alpha", 8), *_values(what, config, "alpha_pattern")]
    if config["peft_type"] != "LORA":
        return
    if bad := [n for n in ranks if not isinstance(n, int) or n < 1] + [n for n in scales if not _is_number(n)]:
        raise BrokenCheckpoint(
            f"{what}/{CONFIG} is malformed: {shown(repr(bad[0]))} is no rank or scale; download it again."
        )


def _values(what: str, config: Mapping[str, Any], name: str) -> list[Any]:
    patterns = config.get(name) or {}
    try:
        for pattern in patterns:
            re.compile(pattern)
        return list(patterns.values())
    except (re.error, TypeError, AttributeError):
        raise BrokenCheckpoint(f"{what}/{CONFIG} is malformed: its {name} cannot be read; download it again.") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a LoRA's settings say no more than W + scale * B A and whole tensors in place of the base's."""
    if config["peft_type"] != "LORA" or config.get("bias", "none") != "none":
        return False
    return config.get("init_lora_weights") in PLAIN_STARTS and not any(v for k, v in config.items() if k not in PLAIN)


def reads_plainly(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Whether an adapter is merged tensor by tensor as it is read, as far as its config and names tell."""
    saved = tuple(config.get("modules_to_save") or ())
    known = all(PAIR.fullmatch(n) or any(f".{m}." in n for m in saved) for n in tensors)
    return bool(tensors) and is_plain(config) and known


def public(name: str) -> str:
    """A base's name as an adapter spells it: of a path the last part."""
    return shown(name if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) else name.rstrip("/").rpartition("/")[2])


def target(name: str) -> str:
    """The base's name of a whole tensor that an adapter holds: `model.embed_tokens.weight`."""
    return WRAPPERS.sub("", name.removeprefix("base_model.model."))


def has_rows(module: str) -> bool:
    """Whether a module has a row per token."""
    return module.rpartition(".")[2] in (*EMBEDDINGS, *HEADS)


def unties(config: Mapping[str, Any]) -> bool:
    """Whether PEFT trains embedding or head by itself, so that a base has two matrices where it had one."""
    return not config.get("ensure_weight_tying") and any(has_rows(str(k)) for k in config.get("modules_to_save") or ())


def resized(adapter: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the vocabulary that an adapter was made for, as far as its tensors tell.

    Args:
        adapter: shape of every tensor.
    """
    for name, shape in adapter.items():
        module, _, part = target(name).rpartition(".")
        owner = re.sub(r"\.lora_.*", "", target(name)).rpartition(".")[2]
        if part == "weight" and has_rows(module) and len(shape) == 2:
            return shape[0]
        if "lora_embedding_A" in name and owner in EMBEDDINGS:
            return shape[1]
        if ".lora_B" in name and owner in HEADS:
            return shape[0]
    return None


def applied(
    config: Mapping[str, Any],
    tensors: "Mapping[str, TensorInfo]",
    settings: Mapping[str, Any],
    adapter: "Mapping[str, TensorInfo]",
) -> "tuple[Mapping[str, Any], Mapping[str, TensorInfo]]":
    """Config and tensors of a base once an adapter is merged into it: a resized vocabulary, a head of its own.

    Args:
        config: of the base.
        tensors: of the base.
        settings: adapter_config.json.
        adapter: the adapter's tensors.
    """
    rows = resized({n: t.shape for n, t in adapter.items()})
    old = config.get("vocab_size")
    ends = {n: t for n, t in tensors.items() if has_rows(n.removesuffix(".weight"))}
    if rows and old and rows != old:
        ends = {n: replace(t, shape=(rows, *t.shape[1:])) for n, t in ends.items() if t.shape[0] == old}
        config = {**config, "vocab_size": rows}
        tensors = {**tensors, **ends}
    if config.get("tie_word_embeddings") and unties(settings):
        config = {**config, "tie_word_embeddings": False}
        tensors = {**{f"{HEADS[0]}.weight": t for t in ends.values()}, **tensors}
    return config, tensors
