"""Layouts of checkpoints that people really have: how each is built, and the words of those that are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.families import DEPTH
from tests.foreign.builders import files, put, reconfigure, restate, settings, state, stored

Edit = Callable[[Path], object]
HALF, SHORT, FULL = torch.float16, torch.bfloat16, torch.float32
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def random_head(folder: Path, like: str = EMBED, name: str = HEAD) -> None:
    restate(folder, lambda s: s.update({name: torch.randn_like(s[like])}))


def same_head(folder: Path, dtype: torch.dtype = FULL) -> None:
    restate(folder, lambda s: s.update({HEAD: s[EMBED].to(dtype, copy=True)}))


def swapped(folder: Path) -> None:
    """The head is stored, the embedding is not."""
    restate(folder, lambda s: s.update({HEAD: s.pop(EMBED)}))


def pickled(folder: Path, name: str = "pytorch_model.bin") -> None:
    torch.save({n: torch.zeros_like(t) for n, t in state(folder).items()}, folder / name)


def spoiled_copy(folder: Path, name: str) -> None:
    """Another model of the same shape, under a name that nobody reads."""
    save_file({n: torch.zeros_like(t) for n, t in state(folder).items()}, folder / name, metadata={"format": "pt"})


def stale_index(folder: Path) -> None:
    """An index of shards that hold nothing but zeros, beside the one file."""
    spoiled_copy(folder, "model-00001-of-00001.safetensors")
    where = dict.fromkeys(state(folder), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def stale_shard(folder: Path) -> None:
    spoiled_copy(folder, "model-00009-of-00009.safetensors")


def renamed_weights(folder: Path) -> None:
    """Another file is named by the config, and the usual one is somebody else's."""
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    found = load_file(folder / "weights.safetensors")
    save_file({n: t + 1 for n, t in found.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    reconfigure(folder, transformers_weights="weights.safetensors")


def with_code(folder: Path) -> None:
    auto = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "other/repo--modeling_x.XForCausalLM"}
    reconfigure(folder, auto_map=auto, custom_pipelines={"x": {"impl": "x.X", "pt": ["AutoModel"]}})
    reconfigure(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    for name in ("configuration_x", "modeling_x", "tokenization_x", "x"):
        (folder / f"{name}.py").write_text("raise SystemExit('it ran')")


def extra(*names: str) -> Edit:
    return lambda folder: restate(folder, lambda s: s.update({n: torch.ones(3) for n in names}))


def typed(*dtypes: tuple[str, torch.dtype]) -> Edit:
    return lambda folder: restate(folder, stored(*dtypes))


def nothing(folder: Path) -> None:
    pass


WORKS: dict[str, tuple[dict, Edit]] = {
    "as transformers writes it": ({}, nothing),
    "in shards": ({"shards": 4}, nothing),
    # Tying.
    "tied, with a head of its own": ({"tie_word_embeddings": True}, random_head),
    "tied, with a head of its own, qwen3": ({"family": "qwen3", "tie_word_embeddings": True}, random_head),
    "tied by its class, with a head of its own": (
        {"family": "gpt2"},
        lambda f: random_head(f, "transformer.wte.weight"),
    ),
    "tied by its class, which the config leaves out": (
        {"family": "gemma2"},
        lambda f: reconfigure(f, tie_word_embeddings=None),
    ),
    "tied, in bfloat16, with a head that differs there": (
        {"tie_word_embeddings": True, "dtype": SHORT},
        lambda f: restate(f, lambda s: s.update({HEAD: (s[EMBED] * 1.5).to(SHORT)})),
    ),
    "tied, with a head that differs in float32 alone": ({"tie_word_embeddings": True}, lambda f: same_head(f, SHORT)),
    "tied, with the same head again": ({"tie_word_embeddings": True}, same_head),
    "tied, with the same numbers in another dtype": (
        {"tie_word_embeddings": True, "dtype": SHORT},
        lambda f: same_head(f, FULL),
    ),
    "tied, with the head alone": ({"tie_word_embeddings": True}, swapped),
    "untied, with equal matrices": (
        {"tie_word_embeddings": False},
        lambda f: restate(f, lambda s: s.update({HEAD: s[EMBED].clone()})),
    ),
    # Which file is the model.
    "one file and pickles": ({}, pickled),
    "one file and an index": ({}, stale_index),
    "one file, an index and pickles": ({}, lambda f: (stale_index(f), pickled(f))),
    "shards and pickles": ({"shards": 3}, pickled),
    "shards and one that no index names": ({"shards": 3}, stale_shard),
    "one file and a variant": ({}, lambda f: spoiled_copy(f, "model.fp16.safetensors")),
    "one file and a consolidated one": ({}, lambda f: spoiled_copy(f, "consolidated.safetensors")),
    "a file that the config names": ({}, renamed_weights),
    # A dtype per tensor.
    "bfloat16 with float32 embeddings": ({"dtype": SHORT}, typed(("embed_tokens", FULL))),
    "bfloat16 with float32 norms": ({"dtype": SHORT, "family": "qwen3"}, typed(("norm", FULL))),
    "float16 with a bfloat16 head": ({"dtype": HALF}, typed(("lm_head", SHORT))),
    "layers in turn": ({"dtype": SHORT}, typed((".1.", HALF), (".2.", FULL), (".4.", torch.float64))),
    "experts in float32": ({"dtype": SHORT, "family": "qwen3_moe"}, typed(("experts.1.", FULL))),
    "float32 files of a bfloat16 config": ({}, lambda f: reconfigure(f, dtype="bfloat16")),
    "bfloat16 files of a float32 config": ({"dtype": SHORT}, lambda f: reconfigure(f, dtype="float32")),
    "no dtype in the config": ({"dtype": SHORT}, lambda f: reconfigure(typed(("norm", FULL))(f), dtype=None)),
    "the dtype by its old name": ({"dtype": SHORT}, lambda f: reconfigure(f, dtype=None, torch_dtype="bfloat16")),
    # Config against weights.
    "fewer layers than stored": ({}, lambda f: reconfigure(f, num_hidden_layers=4)),
    "a layer for several tokens, by name": (
        {"family": "qwen3"},
        extra("mtp.layers.0.mlp.up_proj.weight", "mtp.norm.weight"),
    ),
    "a layer for several tokens, by number": ({}, extra(f"model.layers.{DEPTH}.eh_proj.weight")),
    "biases that the config denies": ({}, lambda f: reconfigure(f, attention_bias=False, mlp_bias=False)),
    "tables of old": ({}, extra("model.layers.0.self_attn.rotary_emb.inv_freq")),
    "a list for more layers than there are": (
        {"family": "smollm3"},
        lambda f: reconfigure(f, no_rope_layers=[1, 0, 1, 0, 0, 1, 0, 1, 1]),
    ),
    "generation in the config": ({}, lambda f: reconfigure(f, temperature=0.6, max_length=99, do_sample=True)),
    # Code beside the weights.
    "code that nobody needs": ({}, with_code),
}
"""What is built, and how it is edited."""
REFUSED: dict[str, tuple[dict, Edit, str]] = {
    "untied, without a head": ({}, lambda f: restate(f, put(lm_head__weight=None)), "says tie_word_embeddings False"),
    "tied, without either": (
        {"tie_word_embeddings": True},
        lambda f: restate(f, put(model__embed_tokens__weight=None)),
        f"{EMBED} is missing",
    ),
    "more layers than stored": (
        {},
        lambda f: reconfigure(f, num_hidden_layers=8),
        f"says num_hidden_layers 8, but its tensors fit {DEPTH}",
    ),
    "too many layer types": (
        {"family": "qwen3"},
        lambda f: reconfigure(f, layer_types=[*settings(f)["layer_types"], "full_attention"]),
        "`num_hidden_layers` .6. must be equal to the number of `layer_types` .7.",
    ),
    "too few layer types": (
        {"family": "qwen3"},
        lambda f: reconfigure(f, layer_types=settings(f)["layer_types"][1:]),
        "the number of `layer_types` .5.",
    ),
    "a list for fewer layers than there are": (
        {"family": "smollm3"},
        lambda f: reconfigure(f, no_rope_layers=[1, 0, 1]),
        "no_rope_layers has 3 entries",
    ),
    "no layers": ({}, lambda f: reconfigure(f, num_hidden_layers=0), "says num_hidden_layers 0"),
    "fewer than no layers": ({}, lambda f: reconfigure(f, num_hidden_layers=-1), "num_hidden_layers -1"),
    "another vocabulary": (
        {},
        lambda f: reconfigure(f, vocab_size=300),
        "says vocab_size 300, but its tensors fit 320",
    ),
    "another vocabulary, tied": (
        {"family": "gemma2"},
        lambda f: reconfigure(f, vocab_size=321),
        "says vocab_size 321, but its tensors fit 320",
    ),
    "another head size": ({}, lambda f: reconfigure(f, head_dim=16), "says head_dim 16, but its tensors fit 8"),
    "another width": ({}, lambda f: reconfigure(f, hidden_size=64), "says hidden_size 64, but its tensors fit 32"),
    "other neurons": ({}, lambda f: reconfigure(f, intermediate_size=99), "says intermediate_size 99, but .* fit 48"),
    "other groups": ({}, lambda f: reconfigure(f, num_key_value_heads=4), "says num_key_value_heads 4, but .* fit 2"),
    "other experts": (
        {"family": "qwen3_moe"},
        lambda f: reconfigure(f, num_local_experts=8),
        "says num_local_experts 8, but its tensors fit 4",
    ),
    "biases that are not there": (
        {"family": "qwen3"},
        lambda f: reconfigure(f, attention_bias=True),
        "says attention_bias True, but its tensors fit False: .*bias is missing",
    ),
    "heads that do not add up": ({}, lambda f: reconfigure(f, num_attention_heads=3), "multiple of the number of att"),
    "an activation of nobody": ({}, lambda f: reconfigure(f, hidden_act="swoosh"), "hidden_act: 'swoosh'"),
    "a rope of nobody": (
        {},
        lambda f: reconfigure(f, rope_parameters={"rope_type": "zork", "rope_theta": 1e4}),
        "rope_parameters.rope_type: 'zork'",
    ),
    "a dtype of nobody": ({}, lambda f: reconfigure(f, dtype="bf16"), "dtype: module 'torch' has no attribute 'bf16'"),
    "weights that are no name": ({}, lambda f: reconfigure(f, transformers_weights=[1]), r"transformers_weights \[1\]"),
    "words for a number": ({}, lambda f: reconfigure(f, hidden_size="wide"), "'hidden_size' expected int, got str"),
    "a tensor that is gone": (
        {"shards": 2},
        lambda f: _rewritten(f, "model.layers.3.mlp.up_proj.weight"),
        "model.layers.3.mlp.up_proj.weight is missing",
    ),
    "a shard that is gone": ({"shards": 3}, lambda f: files(f)[1].unlink(), "lacks model-00002-of"),
    "a variant alone": (
        {},
        lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors"),
        "model.fp16.safetensors is there, but has neither name",
    ),
    "shards without an index": (
        {"shards": 2},
        lambda f: (f / "model.safetensors.index.json").unlink(),
        "of-0000..safetensors is there, but has neither name",
    ),
    "a named file that is gone": (
        {},
        lambda f: reconfigure(f, transformers_weights="x.safetensors"),
        "transformers_weights 'x.safetensors', and no safetensors file of that name",
    ),
    "a named pickle": (
        {},
        lambda f: (pickled(f), reconfigure(f, transformers_weights="pytorch_model.bin")),
        "_weights",
    ),
    "an adapter in the same folder": (
        {},
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        "holds a model and an adapter",
    ),
    "a family of nobody": ({}, lambda f: reconfigure(f, model_type="zork"), "upgrade transformers.$"),
}


def _rewritten(folder: Path, gone: str) -> None:
    for path in files(folder):
        found = load_file(path)
        save_file({n: t for n, t in found.items() if n != gone}, path, metadata={"format": "pt"})
