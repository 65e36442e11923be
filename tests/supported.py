"""What the page of families says of them, from what becomes of a tiny config of each; `make families` writes it."""

import re
import sys
import textwrap
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.families import CUT_BY_WIDTH, Family
from hf_prune.models.inference import family_of
from tests.shrunk import shrunk

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
BEGIN, END = "<!-- families: written by make families -->\n", "<!-- /families -->\n"
REASONS = {
    "encoders with a decoder": "it is an encoder with a decoder",
    "encoders, whose tokens see those behind them": "is an encoder, whose tokens see those behind them",
    "models of more than language": "is a model of more than language",
    "decoders that read an encoder": r"read another model's states \(encoder_attn\)",
    "layers that use keys and values of others": "keys and values",
    "layers that share their weights": "share their weights",
    "no norm behind the layers": "no norm behind its layers: they normalise after the sum",
    "several residual streams": r"has \w+ \(\w+(Hyper|Residual)\w*\) beside its layers",
    "layers made from their number": r"makes [\w.]+ of a layer from its number \(\d, then \d\)",
    "periods that no config can list": "its config tells attention layers and experts by periods",
    "activations halved every few layers": "halves its activations every few layers",
    "biases or masks for a whole batch": "made for a whole batch",
    "a state inside of its modules": "keeps its state inside of its modules",
    "a prompt of its own": "a prompt of its own",
    "reversible layers": "carry two streams",
    "several lists of layers": "several stacks of layers|two stacks of layers in circles|a list of 6 layers found \\d",
}
"""In words for the page, and as the error says it."""


def outcome(model_type: str) -> Family | str:
    """The family, or the words of `REASONS` for its refusal."""
    try:
        return family_of(shrunk(model_type))
    except UnsupportedArchitecture as e:
        return next((words for words, said in REASONS.items() if re.search(said, str(e))), f"unknown reason: {e}")


def listed() -> str:
    """The section between the marks."""
    found = {name: outcome(name) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    families = {name: f for name, f in found.items() if isinstance(f, Family)}
    refused: dict[str, list[str]] = {}
    for name, words in found.items():
        if isinstance(words, str):
            refused.setdefault(words, []).append(name)
    parts = [
        f"**Families.** Of the {len(found)} causal language models of transformers {transformers.__version__}, "
        f"{len(families)} lose whole layers, be they attention, state-space or mixtures of experts. Halves of layers "
        "can be removed, mixed and repaired apart in those that are not in italics. `--method width` knows "
        f"{', '.join(CUT_BY_WIDTH)}; experts of a layer share a level of width, and each keeps neurons of its own.",
        "<details><summary>All of them, and what is refused</summary>",
        ", ".join(f"`{n}`" if f.halved else f"*`{n}`*" for n, f in families.items()) + ".",
        "Refused: "
        + "; ".join(f"{words} ({', '.join(f'`{n}`' for n in refused[words])})" for words in REASONS if words in refused)
        + ". Types of a later transformers are inferred from their modules when these leave no doubt.",
        "</details>",
    ]
    assert set(refused) <= set(REASONS), set(refused) - set(REASONS)
    return "\n\n".join(textwrap.fill(p, 120, break_long_words=False, break_on_hyphens=False) for p in parts) + "\n"


def between(text: str) -> str:
    """The section as it stands in a text."""
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Write the section anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + listed() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
