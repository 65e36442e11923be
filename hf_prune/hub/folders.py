"""A model in a local folder."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_prune.errors import BrokenCheckpoint
from hf_prune.hub.names import Name

HASH_ALL = 256 * 2**20
SAMPLE = 2**20
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
        """A small file."""
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
        if length > size - 8:
            raise ValueError
        raw = json.loads((start if 8 + length <= len(start) else span(0, 8 + length))[8 : 8 + length])
        raw.pop("__metadata__", None)
        end = max((info["data_offsets"][1] for info in raw.values()), default=0)
        if 8 + length + end > size:
            raise ValueError
        return {
            n: TensorInfo(tuple(i["shape"]), i["dtype"], file, 8 + length + i["data_offsets"][0])
            for n, i in raw.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BrokenCheckpoint(f"{file} of {what} is cut short or malformed; fetch it afresh.") from None


def read_card(text: str) -> dict[str, Any]:
    """What the YAML head of a README states of licence, language and use."""
    head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") >= 2 else ""
    try:
        raw = yaml.safe_load(head) or {}
    except yaml.YAMLError:
        raw = {}
    return about(raw if isinstance(raw, dict) else {})


def about(raw: Mapping[str, Any], pipeline_tag: str | None = None) -> dict[str, Any]:
    """The entries of a card that a smaller model inherits."""
    keys = ("license", "license_name", "license_link", "language", "pipeline_tag", "tags", "base_model",
            "base_model_relation")  # fmt: skip
    found = {k: raw[k] for k in keys if raw.get(k)}
    return {"pipeline_tag": pipeline_tag, **found} if pipeline_tag else found
