"""A model in a local folder."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_prune.data.plain_yaml import read_yaml
from hf_prune.errors import BrokenCheckpoint
from hf_prune.hub.names import Name

HASH_ALL = 256 * 2**20
SAMPLE = 2**20
LONGEST_HEADER = 100_000_000
"""Bytes, as the format has it."""
LONGEST_FILE = 2**28
"""Bytes of a file that is read whole: vocabularies are the largest."""
LONGEST_HEAD, LONGEST_STATED, MOST_STATED = 100_000, 300, 100
"""Characters of a card's head, of a text in it, and texts in a list."""
HEADER_GUESS = 100_000
"""Bytes asked for at once: most headers are shorter."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as its safetensors header describes it; `dtype` in safetensors spelling such as BF16, `begin` the place
    of its first byte in the file."""

    shape: tuple[int, ...]
    dtype: str
    file: str
    begin: int = 0


@dataclass(frozen=True)
class Folder:
    """A model in a local folder."""

    name: Name
    folder: Path
    files: Mapping[str, int]
    card: Mapping[str, Any]
    gated: bool = False
    private: bool = False

    @classmethod
    def open(cls, name: Name, folder: Path) -> "Folder":
        """List what matters in a folder; of a file (GGUF) that alone."""
        if folder.is_file():
            return cls(name, folder.parent, {folder.name: folder.stat().st_size}, {})
        paths = (*folder.iterdir(), *folder.glob("additional_chat_templates/*"), *folder.glob("checkpoint-*/*"))
        files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(paths) if p.is_file()}
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace") if "README.md" in files else ""
        return cls(name, folder, files, read_card(text))

    def read(self, name: str) -> bytes:
        """A small file; raises BrokenCheckpoint for one that is too long to be read whole."""
        check_length(name, self.files.get(name, 0), self.name.repo)
        return (self.folder / name).read_bytes()

    def header(self, name: str) -> dict[str, TensorInfo]:
        """The tensors of one safetensors file; its weights are not read."""
        return read_header(lambda first, last: self.span(name, first, last), self.files[name], name, self.name.repo)

    def span(self, name: str, first: int, last: int) -> bytes:
        """Bytes first .. last of a file, without the last."""
        with (self.folder / name).open("rb") as file:
            file.seek(first)
            return file.read(last - first)

    def fetch(self, names: list[str]) -> Path:
        """The folder itself."""
        return self.folder

    def revision(self, weights: tuple[str, ...]) -> str:
        """`sha256-` and 12 hex digits over config.json and the weights: names, sizes, headers, and all bytes below
        256 MiB, else 1 MiB from the start, middle and end of each file."""
        names = sorted({n for n in ("config.json", "adapter_config.json") if n in self.files} | set(weights))
        whole = sum(self.files[n] for n in names) < HASH_ALL
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0{self.files[name]}\0".encode())
            _update(digest, self.folder / name, self.files[name], whole)
        return f"sha256-{digest.hexdigest()[:12]}"


def check_length(file: str, size: int, what: str) -> None:
    """Raise BrokenCheckpoint for a file that is too long to be read whole."""
    if size > LONGEST_FILE:
        raise BrokenCheckpoint(f"{file} of {what} has {size} bytes, and no such file needs {LONGEST_FILE}; look at it.")


def _update(digest: Any, path: Path, size: int, whole: bool) -> None:
    with path.open("rb") as file:
        if whole or size <= 3 * SAMPLE:
            while piece := file.read(SAMPLE):
                digest.update(piece)
            return
        if path.suffix == ".safetensors":
            digest.update(file.read(min(int.from_bytes(file.read(8), "little"), size)))
        for start in (0, (size - SAMPLE) // 2, size - SAMPLE):
            file.seek(start)
            digest.update(file.read(SAMPLE))


def read_header(span: Callable[[int, int], bytes], size: int, file: str, what: str) -> dict[str, TensorInfo]:
    """Tensors by name: 8 bytes of length, then JSON (the safetensors format).

    Args:
        span: reads bytes first .. last of the file.
        size: bytes of the file.
        file: its name.
        what: the model it belongs to.

    Raises:
        BrokenCheckpoint: the file is cut short or no safetensors file.
    """
    try:
        start = span(0, min(size, HEADER_GUESS))
        length = int.from_bytes(start[:8], "little")
        if length > min(size - 8, LONGEST_HEADER):
            raise ValueError
        raw = json.loads((start if 8 + length <= len(start) else span(0, 8 + length))[8 : 8 + length])
        raw.pop("__metadata__", None)
        return {name: _tensor_info(info, file, 8 + length, size) for name, info in raw.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenCheckpoint(f"{file} of {what} is cut short or malformed; fetch it afresh.") from None


def _tensor_info(info: Mapping[str, Any], file: str, start: int, size: int) -> TensorInfo:
    """An entry of a header; raises ValueError or TypeError for one that no writer makes."""
    shape, dtype, (begin, end) = info["shape"], info["dtype"], info["data_offsets"]
    whole = all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape))
    if not whole or not isinstance(shape, list) or not begin <= end <= size - start or math.prod(shape) >= 2**63:
        raise ValueError
    if not isinstance(dtype, str) or not re.fullmatch(r"[A-Z0-9_]{2,12}", dtype):
        raise ValueError
    return TensorInfo(tuple(shape), dtype, file, start + begin)


def read_card(text: str) -> dict[str, Any]:
    """What the YAML head of a README states of licence, language and use."""
    head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") >= 2 else ""
    try:
        raw = read_yaml(head) if len(head) <= LONGEST_HEAD else {}
    except ValueError:
        raw = {}
    return about(raw if isinstance(raw, dict) else {})


def about(raw: Mapping[str, Any], pipeline_tag: str | None = None) -> dict[str, Any]:
    """The entries of a card that a smaller model inherits: texts, and lists of some."""
    keys = ("license", "license_name", "license_link", "language", "pipeline_tag", "tags", "base_model",
            "base_model_relation")  # fmt: skip
    found = {k: _stated(raw[k]) for k in keys if raw.get(k)}
    found = {k: v for k, v in found.items() if v}
    return {"pipeline_tag": pipeline_tag, **found} if pipeline_tag else found


def _stated(value: Any) -> Any:
    """A text of a card as it is, and those in a list; None of what nests, or is longer than anybody writes."""
    if isinstance(value, list):
        return [v for v in map(_stated, [v for v in value[:MOST_STATED] if not isinstance(v, list)]) if v]
    if isinstance(value, str):
        return value if len(value) <= LONGEST_STATED and value.isprintable() else None
    return value if isinstance(value, bool | float) or isinstance(value, int) and abs(value) < 2**63 else None
