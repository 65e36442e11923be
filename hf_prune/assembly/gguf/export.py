"""From a finished folder to a certified file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hf_prune.atomic_files import claimed, written
from hf_prune.errors import InvalidRecipe, UnsupportedArchitecture
from hf_prune.models.checkpoint import Checkpoint
from hf_prune.models.configs import read_config

try:
    import gguf
except ImportError:
    raise InvalidRecipe("Writing GGUF needs the package gguf; install it with: pip install 'hf-prune[gguf]'.") from None

from hf_prune.assembly.gguf.certificate import certify, expected
from hf_prune.assembly.gguf.layout import check_layout, context_length, layout
from hf_prune.assembly.gguf.llama_cpp import VARIABLE, find_llama_cpp, quantize
from hf_prune.assembly.gguf.stamp import put_stamp
from hf_prune.assembly.gguf.vocabulary import load_tokenizer, vocabulary
from hf_prune.assembly.gguf.writer import TYPES, write_gguf

NAMED = f"--llama-cpp or {VARIABLE}"
NO_LLAMA_CPP = "no llama.cpp is here that has read it"
STORED = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file, its certificate (None where no llama.cpp was there), and what is not as one expects."""

    path: Path
    architecture: str
    certificate: dict[str, Any] | None
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """What the certificate says."""
        if self.certificate is None:
            return (
                f"UNCERTIFIED: {NO_LLAMA_CPP}. Name one with {NAMED} (a release of llama.cpp, or node-llama-cpp from "
                "npm) and export again."
            )
        tokens, logits = self.certificate["tokens"], self.certificate["logits"]
        return (
            f"Certified with llama.cpp ({self.architecture}): {tokens['texts']} hard texts in the same tokens; logits "
            f"differ by {logits['difference']:.1e} of the largest, {logits['kl']:.2g} nats a token; "
            f"{logits['same_spoken']} of {logits['spoken']} greedy tokens are the same."
        )


def export_gguf(
    folder: Path,
    output: Path | None = None,
    *,
    kind: str | None = None,
    llama_cpp: Path | None = None,
    pad: bool = False,
) -> GgufFile:
    """Write and certify.

    Args:
        folder: a finished result.
        output: the file, which must not exist; default: in the folder, named after it and the type.
        kind: type of the matrices, in either case: f32, f16, bf16, q8_0, and with a llama.cpp q4_k_m and its like;
            default: as the result is stored.
        llama_cpp: see `find_llama_cpp`.
        pad: fill up with zeros what no architecture can say.

    Raises:
        UnsupportedArchitecture: nothing holds the layers or the tokenizer.
        InvalidRecipe: the type is unknown or needs a llama.cpp, or the output exists.
        ReloadMismatch: a llama.cpp reads something else; nothing is left of the file.
    """
    config, checkpoint = read_config(folder), Checkpoint.open(folder)
    plan = layout(config, pad=pad)
    library = find_llama_cpp(llama_cpp)
    kind = known_type(kind or STORED.get(str(config.dtype or checkpoint.first_dtype), "F32"), library)
    tokenizer = load_tokenizer(folder)
    words = vocabulary(tokenizer, _rows(checkpoint))
    output = output or place(folder, kind)
    if output.exists() or output.is_symlink():
        raise InvalidRecipe(f"{output} exists; choose another --output.")
    with claimed(output), written(output) as partial:
        _write(partial, folder, (plan, words), kind, library)
        found = None
        if library:
            wanted = expected(folder, tokenizer, context_length(config, plan.architecture))
            found = certify(partial, library, wanted, kind, plan.architecture.tolerance)
            put_stamp(partial, {"kind": kind, **found})
    return GgufFile(output, plan.architecture.name, found, plan.notes)


def place(folder: Path, kind: str) -> Path:
    """Where a file of a type stands in the folder of its result."""
    return folder / f"{folder.resolve().name}-{kind.upper()}.gguf"


def check_files(kinds: Sequence[str], config: PretrainedConfig | None, *, uneven: bool) -> tuple[str, ...]:
    """Refuse files that a run could not write in the end.

    Args:
        kinds: types of their matrices.
        config: of the base; None where only its own code knows its layers.
        uneven: whether layers of the result have widths of their own.

    Returns:
        What will be missing, in words.

    Raises:
        UnsupportedArchitecture: nothing holds results of this base.
        InvalidRecipe: a type needs a llama.cpp, or the environment names none that is there.
    """
    library = find_llama_cpp()
    for kind in kinds:
        known_type(kind, library, "--gguf")
    if config is None:
        raise UnsupportedArchitecture("A model with code of its own is not written as GGUF; leave out --gguf.")
    check_layout(config, uneven=uneven)
    return () if library else (f"GGUF ({', '.join(kinds)}) will be UNCERTIFIED: {NO_LLAMA_CPP}",)


def known_type(asked: str, library: Path | None, flag: str = "--quantize") -> str:
    """The name of a type as llama.cpp spells it.

    Args:
        asked: in either case.
        library: a llama.cpp, where there is one.
        flag: by which it was asked for.

    Raises:
        InvalidRecipe: it is unknown, or needs a llama.cpp.
    """
    kind = asked.upper()
    coarse = [n.removeprefix("MOSTLY_") for n in gguf.LlamaFileType.__members__ if n.startswith("MOSTLY_")]
    if kind not in TYPES and kind not in coarse:
        raise InvalidRecipe(f"{flag} {asked} is unknown; take one of f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m.")
    if kind not in TYPES and library is None:
        raise InvalidRecipe(
            f"{flag} {asked} is done by llama.cpp, and none is here; name one with {NAMED}, or take q8_0."
        )
    return kind


def _rows(checkpoint: Checkpoint) -> int:
    return next(t.shape[0] for name, t in checkpoint.tensors.items() if name.endswith("embed_tokens.weight"))


def _write(partial: Path, folder: Path, said: tuple[Any, Any], kind: str, library: Path | None) -> None:
    if kind in TYPES:
        return write_gguf(partial, folder, *said, kind)
    plain = partial.with_name(f"{partial.name}.plain")
    try:
        write_gguf(plain, folder, *said, "F32")
        quantize(library, plain, partial, gguf.LlamaFileType[f"MOSTLY_{kind}"])
    finally:
        plain.unlink(missing_ok=True)
