"""A source's config.json as transformers reads it, and the model that it makes of that, without weights."""

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hf_prune.errors import BrokenCheckpoint, HfPruneError, UnsupportedArchitecture

CODE = ("auto_map", "custom_pipelines")
"""Config keys that point at Python files beside the weights."""


def read_config(folder: Any, trust_remote_code: bool = False, what: str | None = None) -> PretrainedConfig:
    """The transformers config in a local folder (`what`, in errors); without pointers to code where none is run.

    Of a model of more than language it is that of its language tower, where transformers makes a model of that alone.

    Raises:
        UnsupportedArchitecture: transformers does not know the model type.
        BrokenCheckpoint: it does, and refuses what the config says.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    # What transformers raises on a value of the wrong type derives from Exception alone.
    except Exception as e:
        raise _refusal(Path(folder), what or Path(folder).name, e, trust_remote_code) from None
    config = language_tower(config)
    if type(config).__module__.startswith("transformers."):
        for key in CODE:
            vars(config).pop(key, None)
    return config


def config_of(settings: Mapping[str, Any], what: str | None = None) -> PretrainedConfig:
    """The same from what a config.json says."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dict(settings)), encoding="utf-8")
        return read_config(folder, what=what)


def language_tower(config: PretrainedConfig) -> PretrainedConfig:
    """The config that AutoModelForCausalLM builds its model from."""
    tower = config.sub_configs.get("text_config")
    # As a model of its own it has to load like any other.
    if tower in MODEL_FOR_CAUSAL_LM_MAPPING and _class_of(config).config_class == tower:
        return config.get_text_config()
    return config


def _class_of(config: PretrainedConfig) -> Any:
    """What transformers makes of a config; of one it makes nothing of, the config's own class."""
    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # Where a package that some other tower needs is not installed.
    except (KeyError, ImportError):
        return type("Nothing", (), {"config_class": type(config)})


def skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights (meta device).

    Raises:
        UnsupportedArchitecture: transformers has no causal language model for this family.
        BrokenCheckpoint: it has one, and does not build it from what this config says.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    # Modelling code trips over a config it does not expect in any error there is.
    except Exception as e:
        if "Unrecognized configuration class" not in str(e):
            raise BrokenCheckpoint(
                f"transformers builds no {config.model_type} from this config.json ({_reason(e, config.to_dict())}); "
                "correct it, or fetch the source afresh."
            ) from None
        raise UnsupportedArchitecture(
            f"transformers has no causal language model for model_type {config.model_type!r}; choose another base."
        ) from None


def _refusal(folder: Path, what: str, error: Exception, trusted: bool) -> HfPruneError:
    """Why a config.json cannot be read, whole, and what helps; trusting code only where that is what is missing."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        return BrokenCheckpoint(f"config.json of {what} is missing or no JSON object; fetch the source afresh.")
    if raw.get("model_type") in CONFIG_MAPPING or raw.get("auto_map") and trusted:
        reason = _reason(error, raw)
        return BrokenCheckpoint(
            f"config.json of {what} is not what transformers accepts ({reason}); correct it, or fetch the "
            "source afresh."
        )
    trust = ", or pass --trust-remote-code if you trust the code beside it" * bool(raw.get("auto_map"))
    return UnsupportedArchitecture(
        f"config.json of {what} is of no family this transformers version knows (model_type "
        f"{raw.get('model_type')!r}); upgrade transformers{trust}."
    )


def _reason(error: Exception, raw: Mapping[str, Any]) -> str:
    """An error in one line, and the entry of the config whose value it stumbled over, where that is all it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first line of a failed validation names the validator.
    text = " ".join(lines[1:] if len(lines) > 1 and "alidation error" in lines[0] else lines)
    match = re.search(r"for field '(\w+)'", str(error))
    # A value that is the name of nothing: an activation, a dtype.
    value = {KeyError: error.args[:1], AttributeError: (getattr(error, "name", None),)}.get(type(error), ())
    field = match[1] if match else next((f for v in value if v and (f := _holder(raw, v))), None)
    if isinstance(error, IndexError):
        text += "".join(f"; {k} has {len(v)} entries" for k, v in raw.items() if _is_short(v, raw))
    return f"{field}: {text}" if field and field not in text else text[:400]


def _is_short(value: Any, raw: Mapping[str, Any]) -> bool:
    """Whether a list has something for some layers, and not for all."""
    depth = raw.get("num_hidden_layers") or raw.get("n_layer") or 0
    return isinstance(value, list | tuple) and 1 < len(value) < depth


def _holder(raw: Mapping[str, Any], value: Any) -> str | None:
    """The entry that has a value, `rope_parameters.rope_type` where it is further down."""
    for key, found in raw.items():
        if found == value:
            return key
        if isinstance(found, Mapping) and (inner := _holder(found, value)):
            return f"{key}.{inner}"
    return None
