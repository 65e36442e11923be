"""The header of a GGUF file, read by byte range: sizes of the model, its tensors, and nothing of its weights."""

import fnmatch
import struct
from collections.abc import Callable, Mapping
from typing import Any

from hf_prune.errors import BrokenCheckpoint, UnsupportedArchitecture
from hf_prune.hub.folders import TensorInfo
from hf_prune.hub.quantisation import STORED

PIECE = 2**20
"""Bytes asked for at once; vocabularies fill some of them."""
MOST = 2**28
NOT_MODELS = ("mmproj*", "*mmproj*", "*imatrix*", "*.lora.gguf")
"""Projectors of images, statistics and adapters."""
FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
PLAIN = {0: "float32", 1: "float16", 30: "bfloat16"}
"""Types of tensors that are numbers and no blocks, in torch's spelling."""
MODEL_TYPES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2",
               "gemma3": "gemma3_text", "phi3": "phi3", "qwen35": "qwen3_5_text"}  # fmt: skip
KEYS = {"num_hidden_layers": "block_count", "hidden_size": "embedding_length",
        "max_position_embeddings": "context_length"}  # fmt: skip


def model_file(what: str, files: Mapping[str, int]) -> str | None:
    """The GGUF file that is read: of several quantisations the largest, which lost the least; None without any.

    Raises:
        UnsupportedArchitecture: the model is split over several files.
    """
    found = [n for n in files if n.endswith(".gguf") and not any(fnmatch.fnmatch(n.lower(), p) for p in NOT_MODELS)]
    whole = [n for n in found if "-of-0" not in n]
    if found and not whole:
        raise UnsupportedArchitecture(
            f"{what} is split over several GGUF files, which transformers does not read; join them with "
            "llama-gguf-split --merge."
        )
    return max(whole, key=lambda n: (files[n], n), default=None)


class _Reader:
    """Little-endian values one after another, fetched in pieces."""

    def __init__(self, span: Callable[[int, int], bytes], size: int):
        self.span, self.size, self.at, self.start, self.piece = span, size, 0, 0, b""

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > min(self.size, MOST):
            raise ValueError
        if end > self.start + len(self.piece):
            self.start = self.at
            self.piece = self.span(self.at, min(self.size, max(end, self.at + PIECE)))
        found = self.piece[self.at - self.start : end - self.start]
        self.at = end
        if len(found) < count:
            raise ValueError
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value; of an array its length, since those of vocabularies are long."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(FORMATS[kind])
        of, count = self.number("<I"), self.number("<Q")
        if of in FORMATS:
            self.take(count * struct.calcsize(FORMATS[of]))
            return count
        for _ in range(count):
            self.value(of)
        return count


def read_gguf(
    span: Callable[[int, int], bytes], size: int, file: str, what: str
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Config and tensors of a GGUF file as the plain model will have them.

    Args:
        span: reads bytes first .. last of the file.
        size: bytes of the file.
        file: its name.
        what: the model it belongs to.

    Returns:
        Keys of a config.json as far as the header tells them, and tensors by GGUF's names; 16 bits a number where
        the file has blocks.

    Raises:
        BrokenCheckpoint: the file is cut short or no GGUF file.
    """
    reader = _Reader(span, size)
    try:
        if reader.take(4) != b"GGUF" or reader.number("<I") not in (2, 3):
            raise ValueError
        tensors, keys = reader.number("<Q"), reader.number("<Q")
        known = {reader.text(): reader.value(reader.number("<I")) for _ in range(keys)}
        shapes = [_tensor(reader) for _ in range(tensors)]
    except (ValueError, KeyError, struct.error, MemoryError, OverflowError, RecursionError):
        raise BrokenCheckpoint(
            f"{file} of {what} is cut short or no GGUF file of version 2 or 3; fetch it afresh."
        ) from None
    kind = str(known.get("general.architecture", "unknown"))
    kinds = {t for _, _, t in shapes}
    dtype = next((PLAIN[t] for t in (30, 1, 0) if t in kinds), "bfloat16") if kinds <= set(PLAIN) else "bfloat16"
    stored = STORED[dtype]
    found = {n: TensorInfo(shape, stored, file) for n, shape, _ in shapes}
    config = {k: known[f"{kind}.{n}"] for k, n in KEYS.items() if f"{kind}.{n}" in known}
    if extra := known.get(f"{kind}.nextn_predict_layers"):
        # Layers that predict several tokens; transformers leaves them out.
        config["num_hidden_layers"] -= extra
        found = {n: t for n, t in found.items() if not _is_layer(n, config["num_hidden_layers"])}
    rows = found["token_embd.weight"].shape[0] if "token_embd.weight" in found else None
    return {
        "model_type": MODEL_TYPES.get(kind, kind),
        **config,
        **({"vocab_size": rows} if rows else {}),
        "tie_word_embeddings": "output.weight" not in found,
        "dtype": dtype,
    }, found


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], int]:
    name, dims = reader.text(), reader.number("<I")
    # The fastest dimension comes first in the file.
    shape = tuple(reader.number("<Q") for _ in range(dims))[::-1]
    kind = reader.number("<I")
    reader.take(8)
    return name, shape, kind


def _is_layer(name: str, first: int) -> bool:
    """Whether a tensor belongs to a layer from `first` on."""
    parts = name.split(".")
    return parts[0] == "blk" and int(parts[1]) >= first
