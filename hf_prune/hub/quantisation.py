"""Is a model quantised, by which method, and can transformers undo it? Told from its config and small files."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hf_prune.errors import SourceError, UnsupportedArchitecture
from hf_prune.hub.names import shown

if TYPE_CHECKING:
    from hf_prune.hub.folders import TensorInfo

FLAG = "--dequantize"
PACKAGES = {
    "fp8": None, "mxfp8": None, "mxfp4": None, "metal": None, "gguf": None,
    "compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes",
}  # fmt: skip
"""Methods that transformers undoes on a CPU, and the package it needs for that."""
READ_GGUF = ("lfm2", "qwen3_5_text", "qwen35moe")
"""Types of GGUF files that transformers reads by itself."""
NAMES = {
    "fp8": "FP8", "mxfp8": "MXFP8", "mxfp4": "MXFP4", "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "aqlm": "AQLM",
    "eetq": "EETQ", "vptq": "VPTQ", "spqr": "SpQR", "fbgemm_fp8": "FBGEMM FP8", "bitnet": "BitNet", "gguf": "GGUF",
    "higgs": "HIGGS", "quark": "Quark", "nvfp4": "NVFP4", "modelopt": "NVIDIA ModelOpt", "mlx": "MLX",
    "metal": "Metal", "auto-round": "AutoRound",
}  # fmt: skip
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files of early quantisers, which left config.json as it was."""
COMPANIONS = re.compile(
    r"(\.(weight_(scale|zero_point|global_scale|shape|g_idx|format)|qscale_\w+|(in|out)put_(\w+_)?(scale|zero_point)"
    r"|activation_scale|[kvq]_scale|scales?|qbiases|SCB|weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+))"
    r"|_scale_inv|_scales)$"
)
"""What stands beside a quantised tensor."""
PACKED = re.compile(r"(\.weight_packed|_blocks)$")
INTEGERS = {"U8": 8, "I32": 32, "U32": 32}
"""Bits of a number that several quantised ones are packed into."""
PARTS = re.compile(r"(^|[._])(q?weight|weight_packed|qzeros|\w+_blocks)$")


@dataclass(frozen=True, slots=True)
class Quantised:
    """How a model is quantised: transformers' name of the method, bits of a weight where the config says them."""

    method: str
    bits: int | None = None

    def __str__(self) -> str:
        return NAMES.get(self.method, self.method) + (f" ({self.bits} bit)" if self.bits else "")


def quantised(config: Mapping[str, Any], beside: Collection[str] = ()) -> Quantised | None:
    """How a model is quantised, None for a plain one.

    Args:
        config: config.json.
        beside: names of the files beside it.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if isinstance(found, Mapping):
            return _read(found)
        if isinstance(part.get("quantization"), Mapping):
            return Quantised("mlx", _bits(part["quantization"]))
    return next((Quantised(method) for name, method in BESIDE.items() if name in beside), None)


def _read(found: Mapping[str, Any]) -> Quantised:
    method = shown(found.get("quant_method") or "")
    for bits, key in ((8, "load_in_8bit"), (4, "load_in_4bit")):
        if found.get(key):
            return Quantised("bitsandbytes", bits)
    if not method:
        method = "compressed-tensors" if "config_groups" in found else "an unnamed method"
    groups = found.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping) and (bits := _bits(group.get("weights"))):
            return Quantised(method, bits)
    return Quantised(method, _bits(found))


def _bits(found: Any) -> int | None:
    for key in ("bits", "num_bits", "w_bit", "nbits", "weight_bits"):
        if isinstance(found, Mapping) and isinstance(found.get(key), int):
            return found[key]
    return None


def check_quantised(
    what: str,
    config: Mapping[str, Any],
    beside: Collection[str],
    card: Mapping[str, Any],
    dequantize: bool,
) -> Quantised | None:
    """How a model is quantised that may be used; None for a plain one.

    Raises:
        UnsupportedArchitecture: nobody can undo the quantisation here.
        SourceError: nobody asked for it to be undone, or a package for it is missing.
    """
    found = quantised(config, beside)
    return found and allowed(what, found, card, dequantize)


def allowed(what: str, found: Quantised, card: Mapping[str, Any], dequantize: bool) -> Quantised:
    """The same for a method that is known already; raises as `check_quantised`."""
    original = _original(card)
    is_a = "is a GGUF file" if found.method == "gguf" else f"is quantised with {found}"
    if found.method not in PACKAGES:
        raise UnsupportedArchitecture(
            f"{what} {is_a}, which transformers cannot undo; "
            + (f"name its original {original}." if original else "name the model it was made from.")
        )
    if not dequantize:
        raise SourceError(
            f"{what} {is_a}; pass {FLAG} to have transformers turn it into a plain model"
            + (f", or name its original {original}." if original else ", or name the model it was made from.")
        )
    package = PACKAGES[found.method]
    if package and find_spec(package) is None:
        raise SourceError(
            f"{what} {is_a}, and transformers needs the package {package} to undo that; "
            f"install it with pip install {package.replace('_', '-')}."
        )
    return found


def check_gguf(what: str, config: Mapping[str, Any], card: Mapping[str, Any], dequantize: bool) -> Quantised:
    """The same for a GGUF file, of which some families need a package; raises as `check_quantised`."""
    found = allowed(what, Quantised("gguf"), card, dequantize)
    if config["model_type"] not in READ_GGUF and find_spec("gguf") is None:
        raise SourceError(
            f"{what} is a GGUF file of type {shown(config['model_type'])}, and transformers needs the package gguf to "
            "read that; install it with pip install gguf."
        )
    return found


def _original(card: Mapping[str, Any]) -> str | None:
    """The unquantised model, where a card says that it is one."""
    if card.get("base_model_relation", "quantized") != "quantized":
        return None
    named = card.get("base_model")
    named = named[0] if isinstance(named, list) and len(named) == 1 else named
    return named if isinstance(named, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", named) else None


def check_numbers(what: str, tensors: "Mapping[str, TensorInfo]", card: Mapping[str, Any]) -> None:
    """Raise UnsupportedArchitecture for weights that are no plain numbers although no config says why."""
    for name, info in tensors.items():
        if PARTS.search(name) and (info.dtype.startswith("F8") or info.dtype in ("I8", "U8", "I32", "U32", "F4")):
            original = _original(card)
            raise UnsupportedArchitecture(
                f"{what} stores {shown(name)} as {info.dtype}, and its config.json does not say how it was quantised; "
                + (f"name its original {original}." if original else "name the model it was made from.")
            )


def dtype_of(config: Mapping[str, Any]) -> str:
    """What a dequantised model's numbers are, in torch's spelling: as the config says, else bfloat16."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        named = str(part.get("dtype") or part.get("torch_dtype") or "").removeprefix("torch.")
        if named in ("float32", "float16", "bfloat16"):
            return named
    return "bfloat16"


STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""torch's names of numbers and those of safetensors."""


def dequantised(tensors: "Mapping[str, TensorInfo]", found: Quantised, dtype: str) -> "dict[str, TensorInfo]":
    """The tensors of the plain model, as far as headers tell: without scales, unpacked, in `dtype`."""
    plain = {}
    for name, info in tensors.items():
        if COMPANIONS.search(name):
            continue
        packed = info.dtype in INTEGERS and found.method != "bitsandbytes"
        bits = {"mxfp4": 4}.get(found.method, found.bits) if packed or info.dtype == "U8" else None
        shape = info.shape
        if bits and name.endswith("_blocks"):
            # [experts, rows, blocks, bytes of one] becomes [experts, columns, rows].
            shape = (*shape[:-3], shape[-2] * shape[-1] * 8 // bits, shape[-3])
        elif bits and bits < INTEGERS.get(info.dtype, 0):
            # Rounded up to whole words in the file; the config's sizes are divisible in practice.
            shape = (*shape[:-1], shape[-1] * INTEGERS[info.dtype] // bits)
        owner = PACKED.sub(lambda m: ".weight" if m[1] == ".weight_packed" else "", name)
        plain[owner] = replace(info, shape=shape, dtype=STORED[dtype])
    return plain
