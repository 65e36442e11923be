"""The command that writes a result for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_prune.assembly.formats import FORMATS
from hf_prune.atomic_files import check_files
from hf_prune.errors import InvalidRecipe

HELP = "; ".join(f"{name}: {row.about}" for name, row in FORMATS.items()) + "."


def export_command(
    folder: Annotated[Path, typer.Argument(metavar="RESULT", help="A folder that compress wrote.")],
    format: Annotated[Literal[*FORMATS], typer.Option("--format", help=HELP)] = "mergekit",
    output: Annotated[Path | None, typer.Option("--output", help="Default: named after RESULT and format.")] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="mergekit: name of a parent there, the base first.")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", help="gguf: f32, f16, bf16, q8_0; with a llama.cpp also q4_k_m, ...")
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", envvar="HF_PRUNE_LLAMA_CPP", help="gguf: folder of a llama.cpp, to certify with."),
    ] = None,
    pad: Annotated[bool, typer.Option("--pad", help="gguf, nemotron-nas: zeros for what it cannot say.")] = False,
) -> None:
    """Write a result in the language of other tools.

    A GGUF file is certified where a llama.cpp is at hand: the same tokens on hard texts and the same logits. A
    checkpoint in the format nemotron-nas (DeciLM) is read by vLLM, SGLang and TensorRT-LLM.
    """
    row = FORMATS[format]
    given = {"source": source, "quantize": quantize, "llama_cpp": llama_cpp, "pad": pad}
    given = {name: value for name, value in given.items() if value}
    if "llama_cpp" not in row.options:
        # The environment may name one for all commands.
        given.pop("llama_cpp", None)
    if strange := next((name for name in given if name not in row.options), None):
        raise InvalidRecipe(f"--{strange.replace('_', '-')} has no meaning for --format {format}; leave it out.")
    if not folder.is_dir():
        raise InvalidRecipe(f"There is no folder {folder} here; name what compress or assemble wrote.")
    check_files(folder)
    path, said = row.write(folder, output, **given)
    print(path, *said, sep="\n")
