"""A llama.cpp on this machine: where it is, and what it says of a file.

Any build that has libllama beside it will do: a release or a package of llama.cpp, llama-cpp-python, or the npm package
node-llama-cpp, which carries one. Nothing is fetched, and nothing is loaded that was not named or installed.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_prune.errors import InvalidRecipe, ReloadMismatch

VARIABLE = "HF_PRUNE_LLAMA_CPP"
COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("llama_cpp_probe.py")))
NAMES = ("libllama.so*", "libllama.v*.so", "libllama*.dylib", "llama.dll")
PLATFORMS = {"linux": "linux", "darwin": "mac", "win32": "win"}
MACHINES = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Heard:
    """What a llama.cpp says of a file.

    tokens: of every text.
    logits: [N, T, V] float32 of every window.
    greedy: tokens behind the first window.
    """

    tokens: tuple[tuple[int, ...], ...]
    logits: np.ndarray
    greedy: tuple[int, ...]


def find_llama_cpp(named: str | Path | None = None) -> Path | None:
    """Its library; None where there is none.

    Args:
        named: the library, or a folder that holds it; default: what the environment names, what is installed.

    Raises:
        InvalidRecipe: what was named holds none.
    """
    if named := named or os.environ.get(VARIABLE):
        if found := _within(Path(named).expanduser()):
            return found
        raise InvalidRecipe(
            f"{named} holds no libllama; name the folder of a llama.cpp, of llama-cpp-python or of node-llama-cpp."
        )
    if spec := importlib.util.find_spec("llama_cpp"):
        return _within(Path(spec.submodule_search_locations[0]))
    if tool := shutil.which("llama-quantize"):
        folder = Path(tool).resolve().parent
        return _within(folder, deep=False) or _within(folder.parent / "lib", deep=False)
    return None


def _within(place: Path, deep: bool = True) -> Path | None:
    if place.is_file():
        return place
    found = sorted(p for name in NAMES for p in (place.rglob if deep else place.glob)(name) if p.is_file())
    ours = f"{PLATFORMS.get(sys.platform)}-{MACHINES.get(platform.machine())}"
    # node-llama-cpp has one for every machine, and those for graphics cards beside it.
    plain = [p for p in found if p.parent.name.startswith(ours) and p.parent.name.count("-") == 1]
    return next(iter(plain or found), None)


def heard(library: Path, file: Path, texts: Sequence[str], windows: np.ndarray, greedy: int) -> Heard:
    """Let it read.

    Args:
        library: of `find_llama_cpp`.
        file: GGUF.
        texts: to be tokenized, special tokens written out.
        windows: [N, T] int32 token ids, each read alone.
        greedy: tokens it is to say behind the first window.

    Raises:
        ReloadMismatch: it does not load or compute the file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, logits = Path(scratch, "windows.npy"), Path(scratch, "logits.npy")
        np.save(given, windows)
        said = _asked(
            {"library": str(library), "model": str(file), "texts": list(texts), "windows": str(given),
             "logits": str(logits), "spoken": greedy},
            "llama.cpp refuses the file",
        )  # fmt: skip
        return Heard(tuple(map(tuple, said["tokens"])), np.load(logits), tuple(said["spoken"]))


def quantize(library: Path, source: Path, target: Path, kind: int) -> None:
    """Write a file of another type.

    Args:
        library: of `find_llama_cpp`.
        source: GGUF, of F16, BF16 or F32.
        target: GGUF to write.
        kind: number of the type, as `gguf.LlamaFileType` has it.

    Raises:
        ReloadMismatch: it does not.
    """
    _asked({"library": str(library), "quantize": [str(source), str(target), kind]}, "llama.cpp does not quantize")


def _asked(question: dict[str, Any], what: str) -> dict[str, Any]:
    done = subprocess.run(COMMAND, input=json.dumps(question), capture_output=True, text=True, check=False)
    if done.returncode:
        # What it says last is of its own making; what went wrong is said before.
        lines = [x for x in done.stderr.splitlines() if "error" in x.lower()] or done.stderr.splitlines() or [""]
        raise ReloadMismatch(f"{what}: {lines[0].strip()[:300] or f'it ends with {done.returncode}'}.")
    return json.loads(done.stdout)
