"""What a smaller vocabulary costs and gives on a real model, and what it is worth beside fewer layers and widths.

    python examples/benchmarks/vocabulary.py --model MODEL --data FOLDER [--other NAME=FILE.jsonl] [--documents 6] \
        [--characters 1500] [--shares 0.75 0.5 0.25] [--rounds 5] [--seed 0]
    python examples/benchmarks/vocabulary.py --model MODEL --data FOLDER --equal 0.3 --output FOLDER [FLAGS OF compress]

FOLDER holds NAME.{search,selection,report}.jsonl. Tokens are counted in the search split; every figure is on the same
documents of the report split, whatever the tokenizer, so it is in bits per byte; `--other` is text of which nothing was
counted. "Frequency alone" keeps as many tokens by count, then as learned, without what they are made of. Speed is the
ratio of one thread's processor time, dense by smaller, at batch 1, median of alternating rounds: prefill of 128 tokens,
then 12 tokens sampled singly. `--equal` compresses to that ratio by every way and prints a table of its own.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune import hub
from hf_prune.data.corpora import load_corpora
from hf_prune.data.hard_texts import hard_texts
from hf_prune.models.fewer_tokens import vocabulary_of, without_tokens
from hf_prune.models.noise import quiet
from hf_prune.models.parent import Parent
from hf_prune.models.vocabulary.certificate import texts_for
from hf_prune.models.vocabulary.trimming import Vocabulary
from hf_prune.pipeline import run
from hf_prune.recipe import Recipe

PREFILL, SAMPLED = 128, 12
WAYS: Mapping[str, Mapping[str, Any]] = {
    "layers": {"method": "collapse", "repair": True},
    "vocabulary, then layers": {"method": "collapse", "repair": True, "vocabulary": "auto"},
    "widths": {"method": "width"},
    "vocabulary, then widths": {"method": "width", "vocabulary": "auto"},
}
Texts = Mapping[str, Sequence[str]]


def main() -> None:
    """Measure and print markdown tables."""
    a, flags = arguments()
    torch.manual_seed(a.seed)
    corpora = load_corpora([a.data])
    texts = {c.name: [d[: a.characters] for d in c.documents["report"][: a.documents]] for c in corpora}
    for name, _, path in (other.partition("=") for other in a.other):
        found = [json.loads(line)["text"][: a.characters] for line in Path(path).read_text().splitlines()]
        texts[name] = found[: a.documents]
    if a.equal:
        compare_ways(a, flags, texts)
        return
    with quiet():
        pulled = hub.pull(a.model)
        base = Parent.open(pulled.source, pulled.folder)
        vocabulary = vocabulary_of(base)
        counts = vocabulary.counts(d for c in corpora for d in c.documents["search"])
    compare_vocabularies(a, base, vocabulary, counts, texts)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """From the command line; what is not known here is for compress."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--other", nargs="*", default=[])
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--characters", type=int, default=1500)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--equal", type=float)
    parser.add_argument("--output", default="vocabulary-runs")
    return parser.parse_known_args()


# What a smaller vocabulary costs --------------------------------------------------------------------------------------


def compare_vocabularies(
    a: argparse.Namespace, base: Parent, vocabulary: Vocabulary, counts: Mapping[int, int], texts: Texts
) -> None:
    """A table of models and one of their tokenizers."""
    dense = opened(base.checkpoint.folder)
    rows, lengths = [], []
    for name, kept in distinct(choices(a.shares, vocabulary, counts)):
        small = base if kept is None else without_tokens(base, vocabulary, kept)
        model, tokenizer = (dense if kept is None else opened(small.checkpoint.folder)), small.tokenizer
        bits = [bits_per_byte(model, tokenizer, some) for some in texts.values()]
        faster = ("1", "1") if kept is None else speed(dense, model, a.rounds)
        size = sum(p.numel() for p in model.parameters())
        count = len(vocabulary.ids) if kept is None else len(kept)
        rows.append([name, f"{count:,}", f"{size / 1e6:.1f}M", *(f"{b:.4f}" for b in bits), *faster])
        lost = "0" if kept is None else spoiled(vocabulary, small, kept)
        lengths.append([name, f"{count:,}", *(f"{bytes_per_token(tokenizer, t):.2f}" for t in texts.values()), lost])
        print("...", rows[-1], lengths[-1][2:], flush=True)
    table(["", "tokens", "parameters", *(f"bits per byte, {n}" for n in texts), "prefill", "sampling"], rows)
    table(["", "tokens", *(f"bytes per token, {n}" for n in texts), "hard texts spoiled"], lengths)


def choices(
    shares: Sequence[float], vocabulary: Vocabulary, counts: Mapping[int, int]
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Every vocabulary by name; None for all tokens."""
    yield "dense", None
    must = {t["id"] for t in vocabulary.raw["added_tokens"]} | {i for i in vocabulary.named if i in vocabulary.tokens}
    common = sorted(counts, key=lambda i: (-counts[i], i))
    ranked = list(dict.fromkeys([*sorted(must), *common, *(vocabulary.ids[t] for t in vocabulary.scheme.ranking())]))
    for share in shares:
        size = round(share * len(vocabulary.ids))
        yield f"{share:.0%}", vocabulary.kept(size, counts)
        yield f"{share:.0%}, frequency alone", tuple(sorted(ranked[:size]))
    seen = vocabulary.kept(len(vocabulary.floor | {p for i in common for p in needed(vocabulary, i)}), counts)
    yield "seen ones", seen
    yield "seen ones, frequency alone", tuple(sorted({*must, *common}))


def distinct(
    found: Iterator[tuple[str, tuple[int, ...] | None]],
) -> list[tuple[str, tuple[int, ...] | None]]:
    """Vocabularies that two ways choose stand once, under both names."""
    names: dict[tuple[int, ...] | None, str] = {}
    for name, kept in found:
        names[kept] = f"{names[kept]}; {name}" if kept in names else name
    return [(name, kept) for kept, name in names.items()]


def needed(vocabulary: Vocabulary, number: int) -> set[str]:
    """What a token is made by."""
    token = vocabulary.tokens[number]
    return vocabulary.scheme.needed(token) if token in vocabulary.scheme.vocab else {token}


def spoiled(vocabulary: Vocabulary, small: Parent, kept: Sequence[int]) -> str:
    """How many of the hard texts are said otherwise."""
    full, made = vocabulary.tokenizer, vocabulary_of(small).tokenizer
    texts = list(texts_for(full, kept, hard_texts(small.original.tokenizer)))
    wrong = sum(
        made.decode(made.encode(t).ids, skip_special_tokens=False)
        != full.decode(full.encode(t).ids, skip_special_tokens=False)
        for t in texts
    )
    return f"{wrong:,} of {len(texts):,}"


def speed(dense: Any, small: Any, rounds: int) -> tuple[str, str]:
    """How many times less processor time of one thread a prefill and sampling take; medians over the rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [(seconds(dense), seconds(small)) for _ in range(rounds + 1)][1:]
    finally:
        torch.set_num_threads(threads)
    return tuple(f"{statistics.median(d[k] / s[k] for d, s in pairs):.2f} x" for k in (0, 1))


@torch.inference_mode()
def seconds(model: Any) -> tuple[float, float]:
    """Processor time of a prefill and of sampling behind it."""
    ids = torch.randint(0, 1000, (1, PREFILL), generator=torch.Generator().manual_seed(0))
    begun = time.process_time()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    read = time.process_time()
    for _ in range(SAMPLED):
        token = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
    return read - begun, time.process_time() - read


# At equal size --------------------------------------------------------------------------------------------------------


def compare_ways(a: argparse.Namespace, flags: Sequence[str], texts: Texts) -> None:
    """A table of models of one size."""
    given = dict(zip((f.removeprefix("--").replace("-", "_") for f in flags[::2]), flags[1::2], strict=True))
    rows = []
    for name, fields in {"dense": None, **WAYS}.items():
        folder = Path(a.model) if fields is None else Path(a.output, name.replace(", then ", "-"))
        if fields is not None and not folder.is_dir():
            recipe = {"base": a.model, "ratio": a.equal, "output": str(folder), "data": (a.data,), "seed": a.seed}
            run(Recipe.of(**recipe, **fields, **given))
        model, tokenizer = opened(folder), AutoTokenizer.from_pretrained(folder)
        bits = [bits_per_byte(model, tokenizer, some) for some in texts.values()]
        size, layers = sum(p.numel() for p in model.parameters()), model.config.num_hidden_layers
        rows.append([name, str(layers), f"{len(tokenizer):,}", f"{size / 1e6:.1f}M", *(f"{b:.4f}" for b in bits)])
        print("...", rows[-1], flush=True)
    table(["", "layers", "tokens", "parameters", *(f"bits per byte, {n}" for n in texts)], rows)


# On text --------------------------------------------------------------------------------------------------------------


def opened(folder: Path) -> Any:
    """A model in bfloat16, as it is stored."""
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=True).eval()


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Of documents, each behind the token that starts one or else ends one."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[start, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        nats += float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)


def bytes_per_token(tokenizer: Any, texts: Sequence[str]) -> float:
    """Of documents."""
    tokens = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
    return sum(len(t.encode()) for t in texts) / tokens


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one."""
    print("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
