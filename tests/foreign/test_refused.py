"""What is no causal language model is named for what it is, by plan and compress alike, before a weight is read."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_prune import errors
from hf_prune.hub import peek, pull
from hf_prune.hub.names import parse
from tests.families import SHARED, save_tiny
from tests.hub.samples import dataset, model

WEIGHTS = {"model.safetensors": model()["model.safetensors"]}
TEXT = {**SHARED, "model_type": "llama"}
VISION = {"vision_config": {"hidden_size": 8}}


def config(kind: str, *architectures: str, **more) -> dict[str, bytes]:
    raw = {"model_type": kind, **more} | ({"architectures": list(architectures)} if architectures else {})
    return {**model(), "config.json": json.dumps(raw).encode()}


MODELS = {
    "encoder": (config("bert", "BertForMaskedLM"), r"an encoder that fills gaps \(BertForMaskedLM\)"),
    "bare encoder": (config("bert", "BertModel"), r"no causal language model \(BertModel\)"),
    "encoder without a class": (config("roberta"), r"no causal language model \(roberta\)"),
    "seq2seq": (config("t5", "T5ForConditionalGeneration", is_encoder_decoder=True), "an encoder with a decoder"),
    "seq2seq by class": (config("bart", "BartForConditionalGeneration"), "an encoder with a decoder"),
    "t5 encoder": (config("t5", "T5EncoderModel"), r"no causal language model \(T5EncoderModel\)"),
    "images": (config("vit", "ViTForImageClassification"), r"a model of images \(ViT"),
    "images and text": (config("clip", "CLIPModel", **VISION, text_config={"model_type": "clip_text_model"}),
                        r"no causal language model \(CLIPModel\)"),
    "speech": (config("wav2vec2", "Wav2Vec2ForCTC"), "a model of speech"),
    "whisper": (config("whisper", "WhisperForConditionalGeneration", is_encoder_decoder=True), "with a decoder"),
    "classifier": (config("llama", "LlamaForSequenceClassification"), "a classifier or reward model"),
    "reward": (config("qwen2", "Qwen2ForRewardModel", auto_map={"AutoModel": "x.Y"}), "reward model"),
    "tokens": (config("llama", "LlamaForTokenClassification"), "a token classifier"),
    "objects": (config("detr", "DetrForObjectDetection"), "made for object detection"),
    "llava": (config("llava", "LlavaForConditionalGeneration", **VISION, text_config=TEXT),
              r"a vision-language model.*language tower, of type llama"),
    "gemma3": (config("gemma3", "Gemma3ForConditionalGeneration", **VISION, text_config={"model_type": "gemma3_text"}),
               r"a vision-language model.*of type gemma3_text, as a causal language model"),
    "qwen2_vl": (config("qwen2_vl", "Qwen2VLForConditionalGeneration", **VISION), "save its language tower, as"),
    "audio": (config("qwen2_audio", "Qwen2AudioForConditionalGeneration", audio_config={"d_model": 8},
                     text_config={"model_type": "qwen2"}), r"an audio-language model.*of type qwen2"),
    "no type": (config(""), "names no model_type"),
    "timm": ({"config.json": b'{"architecture": "resnet50"}', **WEIGHTS}, "names no model_type"),
}  # fmt: skip
OTHERS = {
    "empty": ({}, "is empty"),
    "readme alone": ({"README.md": b"x", ".gitattributes": b"y"}, "is empty"),
    "diffusers": ({"model_index.json": b"{}", "unet.json": b"{}"}, "a diffusers pipeline"),
    "sentences": ({"modules.json": b"[]", "config_sentence_transformers.json": b"{}"}, "a sentence-transformers model"),
    "onnx": ({"config.json": model()["config.json"], "model.onnx": b"x"}, "weights for ONNX only"),
    "onnx without config": ({"model.onnx": b"x"}, "weights for ONNX only"),
    "openvino": ({"config.json": model()["config.json"], "openvino_model.xml": b"x"}, "weights for OpenVINO only"),
    "tensorflow": ({"config.json": model()["config.json"], "tf_model.h5": b"x"}, "another framework than PyTorch"),
    "flax": ({"config.json": model()["config.json"], "flax_model.msgpack": b"x"}, "another framework than PyTorch"),
    "mlx": ({"config.json": model()["config.json"], "weights.npz": b"x"}, "Apple's libraries only"),
    "core ml": ({"Model.mlmodel": b"x"}, "Apple's libraries only"),
    "original llama": ({"params.json": b"{}", "consolidated.00.pth": b"x"}, "its makers' own format"),
    "original mistral": ({"params.json": b"{}", "consolidated.safetensors": b"x"}, "its makers' own format"),
    "nemo": ({"model.nemo": b"x"}, "a NeMo model"),
    "data": ({"train.jsonl": b"{}", "README.md": b"x"}, "holds data, not a model.*--data"),
    "training folder": ({"checkpoint-100/model.safetensors": b"x"}, "name one of the checkpoints in it"),
}


def sentence(caught: pytest.ExceptionInfo) -> str:
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 300, text
    return text


def both(base: str, says: str) -> None:
    """Plan's look and compress's pull refuse alike."""
    said = []
    for look in (peek, pull):
        with pytest.raises((errors.SourceError, errors.UnsupportedArchitecture), match=says) as caught:
            look(base)
        said.append(sentence(caught))
    assert said[0] == said[1]


def laid(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


@pytest.mark.parametrize("case", [*MODELS, *OTHERS])
def test_it_is_named_for_what_it_is(hub_server, tmp_path, case):
    files, says = {**MODELS, **OTHERS}[case]
    both(laid(tmp_path / "base", files), says)
    hub_server.seed("ns/base", files)
    both("ns/base", says)
    assert not hub_server.seen("/cdn/"), "weights were downloaded"


def test_real_heads_of_other_tasks(tmp_path):
    small = AutoConfig.for_model("llama", **SHARED)
    AutoModelForSequenceClassification.from_config(small).save_pretrained(tmp_path)
    both(str(tmp_path), "a classifier or reward model")


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel", None])
def test_causal_language_models_pass_whatever_their_class_is_called(tmp_path, name):
    save_tiny("llama", tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(model()["tokenizer.json"])
    raw = json.loads((tmp_path / "config.json").read_text())
    raw = {**raw, "architectures": [name]} if name else {k: v for k, v in raw.items() if k != "architectures"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert peek(str(tmp_path)).source == pull(str(tmp_path)).source


@pytest.mark.parametrize(
    ("kind", "says"), [("dataset", "a dataset on the Hub.*--data"), ("space", "a space on the Hub")]
)
def test_names_of_datasets_and_spaces(hub_server, kind, says):
    hub_server.seed("ns/other", dataset("plain"), kind=kind)
    both("ns/other", says)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_is_not_its_folder(tmp_path, name):
    path = Path(laid(tmp_path / "base", model())) / name
    with pytest.raises(
        errors.SourceNotFound, match="is a file, not a model's folder; name the folder it lies in"
    ) as caught:
        parse(str(path))
    sentence(caught)
