"""A Llama-shaped result of several widths as a nemotron-nas (DeciLM) checkpoint, which serving programs read.

The config has one number of query heads for all layers, keys and values are shared by groups of one size, and an MLP
has ffn_mult * hidden_size * 2/3 neurons, rounded up to a multiple of 256, or where ffn_mult is absent (which vLLM
knows) intermediate_size. What a layer has beyond that is refused, or filled up with zeros, which changes no
logit. Two more rules come from programs that would load a checkpoint and compute something else: layer 0 needs its
attention (vLLM, SGLang start the residual stream there), and a layer that has attention needs an MLP (llama.cpp drops
both). Of programs that derive the size of a head from the hidden size (llama.cpp, mlx-lm), those refuse fewer heads
than the dense model has.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from hf_prune.assembly import modeling_decilm
from hf_prune.assembly.modeling_decilm import MULTIPLE
from hf_prune.assembly.widths import Widths, widths
from hf_prune.atomic_files import claimed, staged
from hf_prune.errors import InvalidRecipe, UnsupportedArchitecture
from hf_prune.models.auto_classes import head_dim
from hf_prune.models.checkpoint import Checkpoint, write_shards
from hf_prune.models.configs import read_config
from hf_prune.models.modeling_pruned import PREFIX
from hf_prune.models.plain_checkpoint import copy_beside, forget_tokenizer_code

FAMILIES = ("llama", "mistral")
"""Families whose layers are those of Llama."""
LAYERS = "model.layers."
ROPE = ("default", "llama3")
"""Position encodings that every reader knows."""
SAME = ("vocab_size", "hidden_size", "num_hidden_layers", "hidden_act", "max_position_embeddings", "initializer_range",
        "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
        "attention_dropout")  # fmt: skip
"""Config keys that are taken over."""


def export_nemotron_nas(folder: Path, output: Path, *, pad: bool = False) -> tuple[int, int, int]:
    """Write the checkpoint: weights, config with the classes it names, tokenizer.

    Args:
        folder: a finished result.
        output: must not exist.
        pad: fill up with zeros what the format cannot say.

    Returns:
        Parameters, how many of them are zeros that fill up, and layers whose neurons are no multiple of 256.

    Raises:
        UnsupportedArchitecture: a family or a layer that the format has no words for.
        InvalidRecipe: `output` exists.
        BrokenCheckpoint: a tensor is missing.
    """
    config = read_config(folder)
    _refuse_family(config)
    before = widths(config)
    after = [_padded(config, number, w) for number, w in enumerate(before)] if pad else before
    _refuse_layers(config, after)
    if output.exists():
        raise InvalidRecipe(f"{output} exists; choose another --output.")
    with claimed(output), staged(output) as partial:
        odd = sum(layer.neurons % MULTIPLE > 0 for layer in after)
        return *_write(folder, partial, config, before, after), odd


def block_configs(config: PretrainedConfig, layers: Sequence[Widths]) -> list[dict[str, dict[str, Any]]]:
    """What the config says of every layer."""
    shared = config.num_attention_heads // config.num_key_value_heads
    found = []
    for layer in layers:
        attention = {"n_heads_in_group": shared if layer.groups else None, "no_op": not layer.groups}
        mult = 3 * layer.neurons / (2 * config.hidden_size)
        ffn: dict[str, Any] = {"ffn_mult": mult if layer.neurons else None, "no_op": not layer.neurons}
        if layer.neurons % MULTIPLE:
            ffn = {"intermediate_size": layer.neurons, "no_op": False}
        found.append({k: {**v, "replace_with_linear": False} for k, v in (("attention", attention), ("ffn", ffn))})
    return found


def decilm_config(config: PretrainedConfig, layers: Sequence[Widths], dtype: torch.dtype) -> dict[str, Any]:
    """config.json of the checkpoint; every key is written, since readers have defaults of their own."""
    groups = max(layer.groups for layer in layers)
    rope = dict(config.rope_parameters)
    theta, scaled = rope.pop("rope_theta"), rope["rope_type"] != "default"
    return {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_decilm.DeciLMConfig",
                     "AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM"},
        "model_type": modeling_decilm.DeciLMConfig.model_type,
        **{key: getattr(config, key) for key in SAME},
        "num_attention_heads": groups * (config.num_attention_heads // config.num_key_value_heads),
        "num_key_value_heads": groups,
        "head_dim": head_dim(config),
        "intermediate_size": max(layer.neurons for layer in layers),
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": theta,
        "rope_scaling": rope if scaled else None,
        # llama.cpp looks for it here.
        **({"original_max_position_embeddings": rope["original_max_position_embeddings"]} if scaled else {}),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "block_configs": block_configs(config, layers),
    }  # fmt: skip


def _refuse_family(config: PretrainedConfig) -> None:
    family = config.model_type.removeprefix(PREFIX)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    why = None
    if family not in FAMILIES:
        why = f"this is a {family}"
    elif getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        why = "this model has biases in its layers"
    elif config.hidden_act != "silu":
        why = f"this model has the activation {config.hidden_act}"
    elif getattr(config, "sliding_window", None):
        why = f"this model looks back {config.sliding_window} tokens only"
    elif rope not in ROPE:
        why = f"this model has positions of type {rope}"
    if why:
        raise UnsupportedArchitecture(
            f"nemotron-nas knows layers of Llama without biases and windows, but {why}; publish the result as it is."
        )


def _refuse_layers(config: PretrainedConfig, layers: Sequence[Widths]) -> None:
    groups = max(layer.groups for layer in layers)
    shared = config.num_attention_heads // config.num_key_value_heads
    for number, layer in enumerate(layers):
        why = None
        if number == 0 and not layer.groups:
            why = "has no attention, which readers need in the first layer"
        elif layer.groups not in (0, groups):
            heads = f"{layer.groups * shared} query heads and another layer {groups * shared}"
            why = f"has {heads}, where the format knows one number"
        elif not layer.neurons:
            why = "has attention but no MLP, and llama.cpp would drop both"
        if why:
            raise UnsupportedArchitecture(
                f"nemotron-nas cannot say layer {number}: it {why}; give --pad, which fills up with zeros."
            )


def _padded(config: PretrainedConfig, number: int, layer: Widths) -> Widths:
    groups = config.num_key_value_heads if layer.groups or number == 0 else 0
    return Widths(groups, max(1, -(-layer.neurons // MULTIPLE)) * MULTIPLE)


def _shapes(config: PretrainedConfig, layers: Sequence[Widths]) -> dict[str, torch.Size]:
    """Of all tensors of these layers, with the norm before each half."""
    hidden, found = config.hidden_size, {}
    for number, layer in enumerate(layers):
        keys = layer.groups * head_dim(config)
        queries = keys * (config.num_attention_heads // config.num_key_value_heads)
        attention = {"input_layernorm": (hidden,), "self_attn.q_proj": (queries, hidden),
                     "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
                     "self_attn.o_proj": (hidden, queries)}  # fmt: skip
        mlp = {"post_attention_layernorm": (hidden,), "mlp.gate_proj": (layer.neurons, hidden),
               "mlp.up_proj": (layer.neurons, hidden), "mlp.down_proj": (hidden, layer.neurons)}  # fmt: skip
        named = (attention if layer.groups else {}) | (mlp if layer.neurons else {})
        found |= {f"{LAYERS}{number}.{name}.weight": torch.Size(shape) for name, shape in named.items()}
    return found


def _write(
    folder: Path, partial: Path, config: PretrainedConfig, before: Sequence[Widths], after: Sequence[Widths]
) -> tuple[int, int]:
    checkpoint = Checkpoint.open(folder)
    loaded = config.dtype or checkpoint.first_dtype
    had, shapes = _shapes(config, before), _shapes(config, after)
    shapes |= {name: torch.Size(t.shape) for name, t in checkpoint.tensors.items() if not name.startswith(LAYERS)}

    def dtype(name: str) -> torch.dtype:
        return checkpoint.dtype(name) if name in checkpoint else loaded

    def filled(name: str) -> Tensor:
        """With zeros behind its rows and columns. A half that is gone has left its norm behind, and nothing else."""
        known = name in checkpoint or name in had
        tensor = checkpoint.tensor(name) if known else torch.zeros([0] * len(shapes[name]), dtype=loaded)
        missing = [n - have for n, have in zip(shapes[name], tensor.shape, strict=True)]
        return torch.nn.functional.pad(tensor, [x for n in reversed(missing) for x in (0, n)])

    sized = ((n, s.numel() * dtype(n).itemsize, lambda n=n: filled(n)) for n, s in shapes.items())
    write_shards(sized, partial)
    raw = json.dumps(decilm_config(config, after, loaded), indent=2)
    (partial / "config.json").write_text(raw + "\n", encoding="utf-8")
    shutil.copyfile(modeling_decilm.__file__, partial / "modeling_decilm.py")
    copy_beside(folder, partial, code=False)
    forget_tokenizer_code(partial)
    whole = sum(s.numel() for s in shapes.values())
    return whole, whole - sum(torch.Size(t.shape).numel() for n, t in checkpoint.tensors.items() if n in shapes)
