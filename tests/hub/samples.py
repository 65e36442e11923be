"""Contents to fill the stand-in with: a tiny Llama that transformers loads, a LoRA for it, a text dataset."""

import functools
import io
import json

import numpy as np
from safetensors.numpy import save

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "float32",
}
README = b"---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-generation\ntags: [tiny]\n---\n# Tiny\n"


def tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by name."""
    rng = np.random.default_rng(seed)
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        block = {f"self_attn.{n}_proj": (width if n in "qo" else keys, width) for n in "qkvo"}
        block |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        block |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in block.items()}
    return {
        name: (rng.standard_normal(shape) * 0.05 if len(shape) > 1 else np.ones(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


@functools.cache
def tokenizer() -> bytes:
    """A byte-level BPE without merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made.to_str().encode()


def model(shards: int = 1, seed: int = 0, **config: object) -> dict[str, bytes]:
    """A complete repo: config, weights in `shards` files, tokenizer, README."""
    settings = {**CONFIG, **config}
    weights = tensors(settings, seed)
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    files = {
        "config.json": json.dumps(settings).encode(),
        "generation_config.json": b'{"bos_token_id": 0, "eos_token_id": 1}',
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": json.dumps(special).encode(),
        "README.md": README,
    }
    if shards == 1:
        return {**files, "model.safetensors": save(weights, {"format": "pt"})}
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {name: names[i % shards] for i, name in enumerate(weights)}
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": where}
    parts = {n: save({k: w for k, w in weights.items() if where[k] == n}, {"format": "pt"}) for n in names}
    return {**files, **parts, "model.safetensors.index.json": json.dumps(index).encode()}


def adapter(kind: str = "LORA") -> dict[str, bytes]:
    """A LoRA of rank 2 on the first query projection of `model()`."""
    settings = {"peft_type": kind, "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    rng, stem = np.random.default_rng(7), "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {"lora_A": (2, 64), "lora_B": (64, 2)}
    weights = {f"{stem}.{n}.weight": rng.standard_normal(s).astype(np.float32) for n, s in pair.items()}
    return {"adapter_config.json": json.dumps(settings).encode(), "adapter_model.safetensors": save(weights)}


def dataset(*names: str, rows: int = 20) -> dict[str, bytes]:
    """A dataset repo with a parquet file per configuration and split, laid out as Salesforce/wikitext is."""
    import pyarrow
    from pyarrow import parquet

    files, head = {}, "---\nlicense: cc-by-sa-3.0\nconfigs:\n"
    for name in names:
        head += f"- config_name: {name}\n  data_files:\n"
        for split in ("train", "validation", "test"):
            head += f"  - split: {split}\n    path: {name}/{split}-*\n"
            out = io.BytesIO()
            parquet.write_table(pyarrow.table({"text": [f"{name} {split} {i}" for i in range(rows)]}), out)
            files[f"{name}/{split}-00000-of-00001.parquet"] = out.getvalue()
    return {**files, "README.md": (head + "---\n").encode()}
