"""The file: what it says of model and tokenizer, and its tensors one after the other."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from hf_prune.assembly.gguf.layout import (
    Layout,
    context_length,
    longrope_scale,
    original_length,
    period,
    rope_by_type,
    rope_factors,
)
from hf_prune.assembly.gguf.stamp import BLANK, KEY
from hf_prune.assembly.gguf.vocabulary import Vocabulary
from hf_prune.assembly.widths import Widths
from hf_prune.errors import BrokenCheckpoint, UnsupportedArchitecture
from hf_prune.hub.folders import read_card
from hf_prune.models.auto_classes import head_dim
from hf_prune.models.checkpoint import Checkpoint

LAYERS = "model.layers."
EXPERTS = ".experts."
"""In front of the number of an expert, whose matrices lie one behind the other in a file."""
ROUTER = ".ffn_gate_inp"
"""What it says decides too much to be rounded."""
QKV = ("q_proj", "k_proj", "v_proj")
TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
"""What matrices are written as here."""
EXACT = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
"""Those that numpy knows."""


def write_gguf(path: Path, folder: Path, plan: Layout, words: Vocabulary, kind: str) -> None:
    """Write a result.

    Args:
        path: of the file, which must not exist.
        folder: of the result.
        plan: how its layers are said.
        words: its tokenizer.
        kind: of its matrices, of `TYPES`; rows that no block of it fits are F16, vectors are F32.

    Raises:
        BrokenCheckpoint: a tensor is missing.
        UnsupportedArchitecture: a tensor has no name there.
    """
    checkpoint = Checkpoint.open(folder)
    writer = gguf.GGUFWriter(path, plan.architecture.name)
    _about(writer, folder)
    _settings(writer, plan, len(words.tokens))
    _tokenizer(writer, words)
    writer.add_file_type(TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    forms = {}
    for name, tensor in _made(plan, checkpoint, lambda _, shape: torch.empty(shape, device="meta")):
        form = forms[name] = _form(name, tensor.shape, kind)
        exact = EXACT.get(form)
        # Of blocks, the writer is told bytes.
        shape = tensor.shape if exact else gguf.quant_shape_to_byte_shape(tensor.shape, form)
        bytes_ = math.prod(shape) * np.dtype(exact or np.uint8).itemsize
        writer.add_tensor_info(name, shape, np.dtype(exact or np.uint8), bytes_, form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _made(plan, checkpoint, _reader(plan, checkpoint)):
        writer.write_tensor_data(gguf.quantize(tensor.contiguous().numpy(), forms[name]))
    writer.close()


def _form(name: str, shape: Sequence[int], kind: str) -> gguf.GGMLQuantizationType:
    if len(shape) < 2 or ROUTER in name:
        return gguf.GGMLQuantizationType.F32
    form = gguf.GGMLQuantizationType[kind]
    return gguf.GGMLQuantizationType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[form][0] else form


def _about(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Name, licence and parents, as the card of the result has them."""
    card = folder / "README.md"
    stated = read_card(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}
    writer.add_string(KEY, BLANK)
    writer.add_type("model")
    writer.add_name(folder.resolve().name)
    for key, add in (("license", writer.add_license), ("license_name", writer.add_license_name),
                     ("license_link", writer.add_license_link)):  # fmt: skip
        if value := stated.get(key):
            add(value if isinstance(value, str) else ", ".join(map(str, value)))
    parents = stated.get("base_model") or []
    parents = [parents] if isinstance(parents, str) else parents
    if parents:
        writer.add_base_model_count(len(parents))
    for number, parent in enumerate(parents):
        writer.add_base_model_name(number, str(parent))
        writer.add_base_model_repo_url(number, f"https://huggingface.co/{parent}")


def _settings(writer: gguf.GGUFWriter, plan: Layout, rows: int) -> None:
    config, row, size = plan.config, plan.architecture, head_dim(plan.config)

    def listed(values: list[int]) -> Any:
        return values if row.several else values[0]

    writer.add_vocab_size(rows)
    writer.add_block_count(len(plan.after))
    writer.add_context_length(context_length(config, row))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(listed([w.neurons for w in plan.after]))
    writer.add_head_count(listed([w.groups * plan.shared for w in plan.after]))
    writer.add_head_count_kv(listed([w.groups for w in plan.after]))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(int(size * rope_by_type(config)["full_attention"].get("partial_rotary_factor", 1)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key, add in (("attn_logit_softcapping", writer.add_attn_logit_softcapping),
                     ("final_logit_softcapping", writer.add_final_logit_softcapping)):  # fmt: skip
        if value := getattr(config, key, None):
            add(value)
    if row.windows and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(period(config))
    if experts := plan.after[0].experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    for key, add in (("moe_intermediate_size", writer.add_expert_feed_forward_length),
                     ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length)):  # fmt: skip
        if value := getattr(config, key, None):
            add(value)
    _rope(writer, plan)


def _rope(writer: gguf.GGUFWriter, plan: Layout) -> None:
    by_type = rope_by_type(plan.config)
    rope = by_type["full_attention"]
    if plan.architecture.partial:
        # Without a word of windows and of the length of before, llama.cpp takes those of the first models of the kind.
        writer.add_sliding_window(0)
        writer.add_rope_scaling_orig_ctx_len(original_length(plan.config, rope))
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(longrope_scale(plan.config, rope))
    writer.add_rope_freq_base(rope["rope_theta"])
    if sliding := by_type.get("sliding_attention"):
        writer.add_rope_freq_base_swa(sliding["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if (value := rope.get("attention_factor")) is not None:
            # llama.cpp multiplies by what YaRN says besides.
            writer.add_rope_scaling_attn_factors(value / (1 + 0.1 * math.log(rope["factor"])))


def _tokenizer(writer: gguf.GGUFWriter, words: Vocabulary) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    if words.scores:
        writer.add_token_scores(words.scores)
    else:
        writer.add_token_merges(words.merges)
    for name, number in words.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    for name, added in words.added.items():
        getattr(writer, f"add_add_{name}_token")(added)
    if words.prefix is not None:
        writer.add_add_space_prefix(words.prefix)
    if words.template:
        writer.add_chat_template(words.template)


Read = Callable[[str, torch.Size], Tensor]


def _wanted(plan: Layout, checkpoint: Checkpoint) -> Iterator[tuple[str, str, torch.Size]]:
    """Name there, name in the result and shape there of every tensor, in the order of the file."""
    known = gguf.get_tensor_name_map(_arch(plan), len(plan.after))
    for name, tensor in checkpoint.tensors.items():
        if not name.startswith(LAYERS) and not (name == "lm_head.weight" and plan.config.tie_word_embeddings):
            yield _named(known, name), name, torch.Size(tensor.shape)
    # A half that was removed has left its norms behind and nothing else: its shapes are those of another layer.
    inner = (n.split(".", 3)[3] for n in checkpoint.tensors if n.startswith(LAYERS))
    parts = dict.fromkeys(re.sub(rf"{re.escape(EXPERTS)}\d+\.", EXPERTS, part) for part in inner)
    for number, layer in enumerate(plan.after):
        for part in parts:
            if layer.groups or not part.startswith(("self_attn.", "input_")):
                name = f"{LAYERS}{number}.{part}"
                fused = plan.architecture.fused and _module(name) in QKV
                there = f"blk.{number}.attn_qkv.weight" if fused else _named(known, name)
                yield there, name, _shape(plan, checkpoint, number, part)


def _module(name: str) -> str:
    return name.split(".")[-2]


def _named(known: gguf.TensorNameMap, name: str) -> str:
    stem, _, end = name.rpartition(".")
    if (found := known.get_name(stem)) is None:
        raise UnsupportedArchitecture(
            f"llama.cpp has no place for the tensor {name} in this architecture; serve the result with transformers."
        )
    return f"{found}.{end}"


def _stored(name: str, experts: int) -> list[str]:
    """Names in the result of what is one tensor in the file."""
    return [name.replace(EXPERTS, f"{EXPERTS}{e}.") for e in range(experts)] if EXPERTS in name else [name]


def _shape(plan: Layout, checkpoint: Checkpoint, number: int, part: str) -> torch.Size:
    layer, names = plan.after[number], _stored(f"{LAYERS}{number}.{part}", plan.after[number].experts)
    if layer == plan.before[number] and names[0] in checkpoint:
        return torch.Size([len(names)] * (EXPERTS in part) + [*checkpoint.tensors[names[0]].shape])
    return _filled(plan, layer, part)


def _filled(plan: Layout, layer: Widths, part: str) -> torch.Size:
    """What a part of a layer comes to where zeros fill it up."""
    hidden, size, module = plan.config.hidden_size, head_dim(plan.config), _module(part)
    keys, queries = layer.groups * size, layer.groups * size * plan.shared
    matrices = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
                "o_proj": (hidden, queries), "gate_proj": (layer.neurons, hidden), "up_proj": (layer.neurons, hidden),
                "down_proj": (hidden, layer.neurons)}  # fmt: skip
    if module in matrices:
        return torch.Size(matrices[module][: 2 if part.endswith("weight") else 1])
    return torch.Size([size if module in ("q_norm", "k_norm") else hidden])


def _arch(plan: Layout) -> gguf.MODEL_ARCH:
    return next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == plan.architecture.name)


def _reader(plan: Layout, checkpoint: Checkpoint) -> Read:
    def read(name: str, shape: torch.Size) -> Tensor:
        """With zeros behind its rows and columns; a norm that is not there multiplies by one."""
        names = _stored(name, plan.after[0].experts)
        if all(one in checkpoint for one in names):
            tensors = [checkpoint.tensor(one).float() for one in names]
            tensor = torch.stack(tensors) if EXPERTS in name else tensors[0]
        elif plan.before[int(name.split(".")[2])] == plan.after[int(name.split(".")[2])]:
            raise BrokenCheckpoint(f"{checkpoint.folder.name} has no tensor {name}; the checkpoint is incomplete.")
        else:
            tensor = torch.full(shape, 1.0 - plan.architecture.shift) if "_norm." in name else torch.zeros(shape)
        missing = [n - have for n, have in zip(shape, tensor.shape, strict=True)]
        return torch.nn.functional.pad(tensor, [x for n in reversed(missing) for x in (0, n)])

    return read


def _made(plan: Layout, checkpoint: Checkpoint, read: Read) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, as llama.cpp wants them."""
    row, size = plan.architecture, head_dim(plan.config)
    fused: dict[str, Tensor] = {}
    for name, own, shape in _wanted(plan, checkpoint):
        tensor = read(own, shape)
        if row.shift and own.endswith("norm.weight"):
            tensor = tensor + row.shift
        if row.interleaved and _module(own) in ("q_proj", "k_proj"):
            tensor = tensor.unflatten(0, (-1, 2, size // 2)).transpose(1, 2).flatten(0, 2)
        if row.fused and _module(own) in QKV:
            fused[_module(own)] = tensor
            if len(fused) < len(QKV):
                continue
            tensor = torch.cat([fused.pop(module) for module in QKV])
        yield name, tensor
    rope = rope_by_type(plan.config)["full_attention"]
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", torch.tensor(rope_factors(rope, size))
    for length in ("long", "short") if rope["rope_type"] == "longrope" else ():
        yield f"rope_factors_{length}.weight", torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
