"""Which files of a source are needed, and what makes a source unfit; the same for repos and folders."""

import fnmatch
import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from hf_prune.blueprint import MOST_LAYERS
from hf_prune.errors import BrokenCheckpoint, SourceError, UnsafeSource
from hf_prune.hub import adapters
from hf_prune.hub.kinds import describe, refuse_adapter
from hf_prune.hub.names import shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
SPEECH = (
    *VOCABULARIES,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
RESULT = ("*.json", "*.jsonl", "*.yaml", "repairs/*.safetensors", "figures/*.png", "adapter/*.json",
          "adapter/*.safetensors")  # fmt: skip
"""What hf_prune publishes beside a model."""
REPORT = ("report.json", "front.json", "README.md", "figures/*.png")
"""Of that what people look at."""
ABOUT = ("README.md", "LICENSE*", "NOTICE*")
MOST = (
    (r"(num_hidden_layers|n_layers?|num_layers|coder_layers|num_blocks)$", MOST_LAYERS),
    (r"(num|n)_(\w+_)?experts$", 1 << 16),
    (r"(vocab_size|_size|_dim|_positions?(_embeddings)?|_heads)$", 1 << 31),
)
"""Of what a config counts, by its name: the first pattern that fits."""
MOST_OF_ALL = 1 << 62
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def matching(files: Collection[str], patterns: Collection[str]) -> list[str]:
    """Names that match a pattern, in the folder the pattern names."""

    def fits(name: str, pattern: str) -> bool:
        same_folder = posixpath.dirname(name) == posixpath.dirname(pattern)
        return same_folder and fnmatch.fnmatchcase(posixpath.basename(name), posixpath.basename(pattern))

    return sorted(name for name in files if any(fits(name, p) for p in patterns))


def weights(
    what: str, files: Collection[str], read: Callable[[str], bytes], allow_pickle: bool, named: Any = None
) -> tuple[str, ...]:
    """Names of the weight files that transformers loads, index first: of several candidates the one that it takes.

    Args:
        what: the source, for errors.
        files: names of its files.
        read: gives a small one.
        allow_pickle: accept weights that can run code when read.
        named: the file that its config names as `transformers_weights`; None as nearly always.

    Raises:
        UnsafeSource: only pickles and they are not allowed, or an index that names files elsewhere.
        BrokenCheckpoint: a file named by the config or the index is missing, or the index cannot be read.
        SourceError: no weights at all.
    """
    if named:
        return _named(what, files, read, named)
    for single, index in ((SINGLE, INDEX), (PICKLE, PICKLE_INDEX)):
        if single == PICKLE and not allow_pickle:
            break
        if single in files:
            return (single,)
        if index in files:
            return (index, *_shards(what, index, files, read))
    if not allow_pickle and matching(files, PICKLES):
        raise UnsafeSource(
            f"{what} holds no safetensors, only pickles, which can run code when read; "
            "choose a source with safetensors, or pass --allow-pickle if you trust it."
        )
    if adapters.CONFIG in files:
        raise refuse_adapter(what, _json(what, adapters.CONFIG, read).get("base_model_name_or_path"))
    if found := describe([n for n in files if n != "config.json"]):
        raise SourceError(f"{what} {found}.")
    others = candidates(files)
    beside = f"; {others[0]} is there, but has neither name" if others else ""
    raise SourceError(f"{what} holds no weights that transformers loads; it needs {SINGLE} or {INDEX}{beside}.")


def candidates(files: Collection[str]) -> list[str]:
    """Every file that looks like weights of the model."""
    found = matching(files, ("*.safetensors", *PICKLES, "*.gguf", "*.h5", "*.msgpack"))
    return [n for n in found if not n.startswith("adapter_model.") and n != "training_args.bin"]


def _named(what: str, files: Collection[str], read: Callable[[str], bytes], named: Any) -> tuple[str, ...]:
    known = isinstance(named, str) and named.endswith((".safetensors", ".safetensors.index.json"))
    if not known or named not in files:
        raise BrokenCheckpoint(
            f"config.json of {what} says transformers_weights {named!r}, and no safetensors file of that name is "
            "there; fetch the source afresh, or take the entry out."
        )
    return (named, *_shards(what, named, files, read)) if named.endswith(".json") else (named,)


def _shards(what: str, index: str, files: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    try:
        shards = sorted(set(json.loads(read(index))["weight_map"].values()))
        outside = [s for s in shards if posixpath.basename(s) != s or s in ("", ".", "..")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenCheckpoint(f"{index} of {what} is not a readable index of shards; fetch it afresh.") from None
    if outside:
        raise UnsafeSource(
            f"{index} of {what} points outside its folder ({shown(outside[0])}); do not use this source."
        )
    if missing := [s for s in shards if s not in files]:
        raise BrokenCheckpoint(f"{what} lacks {shown(missing[0])}, which its {index} names; fetch the source afresh.")
    if not shards:
        raise BrokenCheckpoint(f"{index} of {what} names no shards; fetch it afresh.")
    return shards


def config(what: str, files: Collection[str], read: Callable[[str], bytes]) -> dict[str, Any]:
    """config.json as a dict.

    Raises:
        SourceError: there is none, or the source is an adapter.
        BrokenCheckpoint: it is not JSON, or counts more layers or experts than any model has.
        UnsafeSource: it names code on the Hub.
    """
    if "config.json" not in files:
        if adapters.CONFIG in files:
            raise refuse_adapter(what, _json(what, adapters.CONFIG, read).get("base_model_name_or_path"))
        found = describe(files)
        raise SourceError(
            f"{what} {found}."
            if found
            else f"{what} has no config.json, so it is no transformers model; choose another source."
        )
    raw = _json(what, "config.json", read)
    for key, number in _numbers(raw):
        if number > next((most for pattern, most in MOST if re.search(pattern, key)), MOST_OF_ALL):
            raise BrokenCheckpoint(
                f"config.json of {what} says {shown(key)} {str(number)[:20]}, and no model has as many; correct it, or "
                "fetch the source afresh."
            )
    _check_kernels(what, raw)
    return raw


def _numbers(raw: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers of a config and of the configs in it, by their names."""
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{within}{key}.")
        elif isinstance(value, int):
            yield f"{within}{key}", value


def _check_kernels(what: str, raw: Mapping[str, Any]) -> None:
    """Raise UnsafeSource for a config.json that would have transformers fetch kernels from the Hub, which are code."""
    for key, value in raw.items():
        if isinstance(value, Mapping):
            _check_kernels(what, value if "implementation" not in key else {f"{key}.{k}": v for k, v in value.items()})
        elif "implementation" in key and isinstance(value, str) and "/" in value:
            raise UnsafeSource(
                f"config.json of {what} names code on the Hub as its {key} ({shown(value)}); remove that entry."
            )


def _json(what: str, name: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        raw = json.loads(read(name))
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise BrokenCheckpoint(f"{name} of {what} is not a JSON object; fetch the source afresh.")
    return raw


def needs_code(raw: Mapping[str, Any]) -> bool:
    """Whether transformers has no class of its own for this model and would run the source's."""
    if not raw.get("auto_map"):
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return raw.get("model_type") not in CONFIG_MAPPING_NAMES


def tokenizer_code(files: Collection[str], read: Callable[[str], bytes]) -> bool:
    """Whether a tokenizer is known to the source's own code alone: it points there, and has no file of its rules."""
    if "tokenizer_config.json" not in files or "tokenizer.json" in files:
        return False
    auto = _json("the tokenizer", "tokenizer_config.json", read).get("auto_map")
    return bool(auto.get("AutoTokenizer") if isinstance(auto, dict) else auto)


def check_model(what: str, files: Collection[str], raw: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Raise UnsafeSource for code nobody allowed, SourceError when there is no tokenizer or an adapter too many."""
    if adapters.CONFIG in files:
        raise SourceError(
            f"{what} holds a model and an adapter ({adapters.CONFIG}), and transformers loads both as one; keep the "
            "one that you mean there, or name the adapter's own place: BASE+ADAPTER."
        )
    if needs_code(raw) and not trust_remote_code:
        raise UnsafeSource(
            f"{what} ({raw.get('model_type')}) runs its own Python code; "
            "read the code, and pass --trust-remote-code if you trust it."
        )
    if not matching(files, VOCABULARIES):
        raise SourceError(f"{what} has no tokenizer files; copy those of its base model next to the weights.")


def needed(files: Collection[str], weight_files: Collection[str], code: bool) -> list[str]:
    """Everything worth downloading of a model."""
    extra = (*SPEECH, *ABOUT, "config.json") + (("*.py",) if code else ())
    return sorted({*weight_files, *matching(files, extra)})


def needed_of_adapter(files: Collection[str], allow_pickle: bool) -> list[str]:
    """Everything worth downloading of an adapter: a vocabulary of its own goes with resized embeddings."""
    weights = adapters.WEIGHTS if adapters.WEIGHTS in files or not allow_pickle else adapters.PICKLE
    return matching(files, (adapters.CONFIG, weights, *SPEECH, *ABOUT))
