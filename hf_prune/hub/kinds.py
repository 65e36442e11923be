"""What a folder or repo is when it is no causal language model, and what to do then; told from names and configs."""

import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Any

from hf_prune.errors import AdapterAlone, SourceError, UnsupportedArchitecture
from hf_prune.hub.names import shown

LEFT_OUT = ("README.md", ".gitattributes", ".gitignore", "LICENSE")
WITHOUT_CONFIG = (
    (r"model_index\.json", "is a diffusers pipeline; name a causal language model"),
    (r"modules\.json|config_sentence_transformers\.json",
     "is a sentence-transformers model, which embeds text; name a causal language model"),
    (r"checkpoint-\d+/.+", "is a training folder; name one of the checkpoints in it"),
    (r"consolidated\..*|params\.json",
     "has its makers' own format; convert it to transformers' with the script of its family, or name its -hf version"),
    (r".*\.nemo", "is a NeMo model; export it to transformers' format"),
    (r".*\.onnx", "has weights for ONNX only; name the model it was exported from"),
    (r"openvino_.*\.(xml|bin)|.*\.xml", "has weights for OpenVINO only; name the model it was exported from"),
    (r".*\.(mlmodel|mlpackage|mlmodelc).*|weights(\.\d+)?\.npz",
     "has weights for Apple's libraries only; name the model it was made from"),
    (r".*\.(tflite|task|litertlm)", "has weights for LiteRT only; name the model it was made from"),
    (r"tf_model.*\.h5|flax_model.*\.msgpack|rust_model\.ot",
     "has weights for another framework than PyTorch; load it in transformers once and save it as safetensors"),
    (r".*\.(jsonl|parquet|arrow|csv)|dataset_infos\.json|dataset_dict\.json",
     "holds data, not a model; name a model, and give texts with --data"),
)  # fmt: skip
"""Pattern of a file's path, and what a source with such a file and no weights is."""
TASKS = {
    "SequenceClassification": "a classifier or reward model", "TokenClassification": "a token classifier",
    "QuestionAnswering": "a reader of answers", "MaskedLM": "an encoder that fills gaps",
    "ConditionalGeneration": "an encoder with a decoder", "Seq2SeqLM": "an encoder with a decoder",
    "PreTraining": "an encoder", "ImageClassification": "a model of images", "CTC": "a model of speech",
}  # fmt: skip
"""What a class name says behind For."""
SENSES = {"vision_config": "vision", "audio_config": "audio", "speech_config": "speech", "visual": "vision",
          "vision_tower": "vision", "mm_vision_tower": "vision", "vit_config": "vision"}  # fmt: skip


def describe(files: Collection[str]) -> str | None:
    """What a source without config.json or weights is, and what to do; the rest of a sentence."""
    if not [n for n in files if posixpath.basename(n) not in LEFT_OUT]:
        return "is empty; name a folder or repo with config.json and safetensors"
    for pattern, says in WITHOUT_CONFIG:
        if any(re.fullmatch(pattern, n) or re.fullmatch(pattern, posixpath.basename(n)) for n in files):
            return says
    return None


def refuse_adapter(what: str, base: Any) -> AdapterAlone:
    """The error for an adapter that stands where its base should."""
    known = isinstance(base, str) and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base))
    return AdapterAlone(
        f"{what} is an adapter, not a model; write its base in front: {base if known else 'BASE'}+{what}."
    )


def check_causal(what: str, config: Mapping[str, Any]) -> None:
    """Raise UnsupportedArchitecture for a config that is of no causal language model; it names what it is."""
    kind, named = config.get("model_type"), config.get("architectures")
    name = shown(named[0]) if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if not isinstance(kind, str) or not kind:
        raise SourceError(f"config.json of {what} names no model_type, so it is no transformers model; choose another.")
    if config.get("is_encoder_decoder"):
        raise UnsupportedArchitecture(_sentence(what, kind, name, "an encoder with a decoder"))
    sense = next((SENSES[k] for k in SENSES if config.get(k)), None)
    if sense and (not name or re.search(r"For(ConditionalGeneration|CausalLM)", name)):
        if _is_tower(config, kind):
            return
        raise UnsupportedArchitecture(_several(what, config, name or shown(kind), sense))
    if re.search(r"ForCausalLM|LMHead|Decoder$", name):
        return
    task = re.search(r"For(\w+)$", name)
    if name and task:
        raise UnsupportedArchitecture(_sentence(what, kind, name, TASKS.get(task[1], f"made for {_spaced(task[1])}")))
    if re.search(r"Encoder|Reward|Classif|Pipeline|DoubleHeads", name) or not _is_causal(config, kind):
        raise UnsupportedArchitecture(_sentence(what, kind, name, "no causal language model"))


def _is_causal(config: Mapping[str, Any], kind: str) -> bool:
    """Whether transformers has a causal language model of this type, or the source brings one."""
    if config.get("auto_map"):
        return True
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    # An encoder with a decoder's mask is a causal model for transformers, and for nobody else.
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return False
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind not in CONFIG_MAPPING_NAMES


def _is_tower(config: Mapping[str, Any], kind: str) -> bool:
    """Whether the causal language model that transformers makes of a larger model is that of its language tower."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    text = config.get("text_config")
    tower = isinstance(text, Mapping) and (text.get("model_type") or f"{kind}_text")
    return bool(tower) and kind in CLASSES and CLASSES[kind] == CLASSES.get(tower)


def _sentence(what: str, kind: str, name: str, is_a: str) -> str:
    named = name or shown(kind)
    return f"{what} is {is_a} ({named}); hf_prune makes causal language models smaller, so name one of those."


def _several(what: str, config: Mapping[str, Any], name: str, sense: str) -> str:
    text = next((config[k] for k in ("text_config", "llm_config", "language_config") if config.get(k)), None)
    tower = text.get("model_type") if isinstance(text, Mapping) else None
    tower = f"language tower, of type {shown(tower)}" if tower else "language tower"
    return (
        f"{what} ({name}) is {'an' if sense[0] in 'aeiou' else 'a'} {sense}-language model, whose parts hf_prune does "
        f"not prune yet; save its {tower}, as a causal language model of its own, and name that folder."
    )


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
