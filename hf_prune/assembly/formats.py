"""What a result can be written as for other programs: a row per format, which nobody else names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_prune.atomic_files import claimed, write_text
from hf_prune.errors import HfPruneError

Written = tuple[Path, tuple[str, ...]]
"""What was written, and what is to be said of it."""


@dataclass(frozen=True, slots=True)
class Format:
    """A row.

    about: for the help.
    write: takes a finished folder, where to write (None: the format's own place) and those of `options` that were
        given.
    options: their names; others have no meaning.
    suits: whether it can say a finished folder as it is, where that is worth naming by itself.
    """

    about: str
    write: Callable[..., Written]
    options: tuple[str, ...] = ()
    suits: Callable[[Path], bool] = lambda folder: False


def _mergekit(folder: Path, output: Path | None, source: Any = ()) -> Written:
    from hf_prune.assembly.mergekit import export_mergekit

    path = output or folder / "mergekit.yaml"
    text = export_mergekit(folder, source)
    with claimed(path):
        write_text(path, text)
    return path, ()


def _nemotron_nas(folder: Path, output: Path | None, pad: bool = False) -> Written:
    from hf_prune.assembly.nemotron_nas import export_nemotron_nas

    path = output or folder.with_name(f"{folder.resolve().name}-nemotron-nas")
    parameters, zeros, odd = export_nemotron_nas(folder, path, pad=pad)
    filled = (f"{zeros:,} of {parameters:,} parameters are zeros that fill up.",) if zeros else ()
    multiple = "numbers of neurons that are no multiples of 256, which vLLM reads; for other programs give --pad."
    return path, filled + ((f"{odd} layers have {multiple}",) if odd else ())


def _gguf(
    folder: Path, output: Path | None, quantize: str | None = None, llama_cpp: Any = None, pad: bool = False
) -> Written:
    from hf_prune.assembly.gguf.export import export_gguf

    done = export_gguf(folder, output, kind=quantize, llama_cpp=llama_cpp, pad=pad)
    return done.path, (done.verdict, *done.notes)


def _in_gguf(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    from hf_prune.assembly.gguf.layout import layout
    from hf_prune.models.configs import read_config

    try:
        layout(read_config(folder))
    except HfPruneError:
        return False
    return True


FORMATS: Mapping[str, Format] = {
    "mergekit": Format("a stitched result as YAML", _mergekit, ("source",)),
    "nemotron-nas": Format("a Llama of several widths for vLLM", _nemotron_nas, ("pad",)),
    "gguf": Format("one file for llama.cpp and Ollama", _gguf, ("quantize", "llama_cpp", "pad"), _in_gguf),
}
