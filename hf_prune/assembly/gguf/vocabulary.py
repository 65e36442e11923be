"""A tokenizer in the words of llama.cpp: tokens and their kinds, merges or scores, and how text is split before.

llama.cpp splits by rules of its own, which a file names (`tokenizer.ggml.pre`); another name gives other tokens and no
error. The name is told by what the loaded tokenizer does before its merges, not by whose it is: that holds for tokens
that somebody added, too. What it does otherwise is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_prune.errors import BrokenCheckpoint, UnsupportedArchitecture

CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
MAPPED = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


RULES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("gpt-2", (BYTES,)),
    ("smollm", (DIGITS, BYTES)),
    ("llama-bpe", (_split(CONTRACTED + r"\p{N}{1,3}" + REST), MAPPED)),
    ("qwen2", (_split(CONTRACTED + r"\p{N}" + REST), MAPPED)),
)
"""Names, and what a tokenizer does that splits so."""
WHOLE_TOKENS = ("llama-bpe",)
"""Names under which a text that is a token is never merged from parts."""
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of a tokenizer.

    model: `gpt2` (byte pairs with merges) or `llama` (pieces with scores).
    pre: how text is split before.
    tokens: one per row of the embedding.
    kinds: of these.
    merges: of `gpt2`.
    scores: of `llama`.
    special: ids by name (bos, eos, unk, pad).
    added: whether a text begins with bos and ends with eos.
    prefix: whether a space is put before a text; None where the model does not say.
    template: of chats.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: Mapping[str, int]
    added: Mapping[str, bool]
    prefix: bool | None
    template: str | None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a result, without code beside it.

    Raises:
        BrokenCheckpoint: there is none that loads.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Tokenizer files are read by several libraries, each with errors of its own.
    except Exception as e:
        reason = " ".join(str(e).split())[:200].rstrip(".")
        raise BrokenCheckpoint(
            f"{folder.name} has no tokenizer that loads ({reason}), and a GGUF file needs one; copy that of its base "
            "next to the weights."
        ) from None


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """What the file says of a tokenizer.

    Args:
        tokenizer: as transformers loads it.
        rows: of the embedding; those without a token become unused ones.

    Raises:
        UnsupportedArchitecture: llama.cpp has no words for it.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("it has no tokenizer.json")
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    model = raw["model"]
    if model["type"] != "BPE":
        raise _refused(f"it is of type {model['type']}, and this writes byte pairs (BPE) alone")
    added = {t["id"]: t for t in raw["added_tokens"]}
    ids = {**model["vocab"], **{t["content"]: t["id"] for t in added.values()}}
    if max(ids.values()) >= rows:
        raise _refused(f"it has a token {max(ids.values())}, and the embedding {rows} rows")
    names = {number: token for token, number in ids.items()}
    pieces = bool(model.get("byte_fallback"))
    pre, prefix = _pieces(raw) if pieces else (_rule(raw), None)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return Vocabulary(
        "llama" if pieces else "gpt2",
        pre,
        tuple(_spelled(names.get(i), i, added) for i in range(rows)),
        tuple(_kind(names.get(i), added.get(i), model.get("unk_token"), pieces) for i in range(rows)),
        () if pieces else tuple(" ".join(m) for m in merges),
        _scores(merges, ids, rows) if pieces else (),
        _special(tokenizer, ids),
        _ends(tokenizer),
        prefix,
        _template(tokenizer),
    )


def _refused(why: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"llama.cpp has no words for this tokenizer: {why}; serve the result with transformers."
    )


def _steps(part: Any) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, one after the other."""
    if part is None:
        return []
    inner = part.get("pretokenizers") or part.get("normalizers") if part["type"] == "Sequence" else None
    return [step for p in inner for step in _steps(p)] if inner is not None else [part]


def _rule(raw: Mapping[str, Any]) -> str:
    """The name by which llama.cpp splits as this tokenizer of bytes does."""
    # NFC is not what llama.cpp does; that of a text which is in it already, as almost all are, is the text.
    normal = [n["type"] for n in _steps(raw["normalizer"]) if n["type"] != "NFC"]
    if normal:
        raise _refused(f"it changes text before it splits it ({normal[0]})")
    steps = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in _steps(raw["pre_tokenizer"])]
    whole = bool(raw["model"].get("ignore_merges"))
    for name, known in RULES:
        if steps == [*known] and (whole or name not in WHOLE_TOKENS) and not (whole and name not in WHOLE_TOKENS):
            return name
    told = json.dumps(steps, ensure_ascii=False)
    raise _refused(f"it splits text in a way that none of its names stands for ({told[:160]})")


def _pieces(raw: Mapping[str, Any]) -> tuple[str, bool]:
    """The same of a tokenizer of pieces, whose spaces are written out; and whether one is put before a text."""
    normal, split = _steps(raw["normalizer"]), _steps(raw["pre_tokenizer"])
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = {"type": "Prepend", "prepend": SPACE}
    # Behind the normalizer no space is left to split at.
    split = [s for s in split if not (s["type"] == "Split" and s["pattern"] == {"String": " "})]
    if split or normal not in ([space], [prefix, space]):
        told = json.dumps([*normal, *split], ensure_ascii=False)
        raise _refused(
            f"it is made of pieces and changes text in a way that none of its names stands for ({told[:160]})"
        )
    return "default", normal[0] == prefix


def _spelled(token: str | None, number: int, added: Mapping[int, Any]) -> str:
    if token is None:
        return f"[PAD{number}]"
    # What a user may write is written as it is.
    return token.replace(SPACE, " ") if number in added and not added[number]["special"] else token


def _kind(token: str | None, added: Mapping[str, Any] | None, unknown: str | None, pieces: bool) -> int:
    if token is None:
        return UNUSED
    if pieces and token == unknown:
        return UNKNOWN
    if added:
        return CONTROL if added["special"] else OWN
    return BYTE if pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">") else NORMAL


def _scores(merges: list[tuple[str, ...]], ids: Mapping[str, int], rows: int) -> tuple[float, ...]:
    """llama.cpp joins the pair whose piece has the best score; merges, the pair that stands first.

    Raises:
        UnsupportedArchitecture: a piece is made by merges that stand apart, so no score of its own gives their order.
    """
    found: dict[str, float] = {}
    last = None
    for rank, pair in enumerate(merges):
        piece = "".join(pair)
        if piece in found and piece != last:
            raise _refused(f"its merges make {piece!r} at several places")
        found.setdefault(piece, -float(rank))
        last = piece
    scores = [-1e6] * rows
    for piece, score in found.items():
        scores[ids[piece]] = score
    return tuple(scores)


def _special(tokenizer: Any, ids: Mapping[str, int]) -> dict[str, int]:
    named = {name: getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "unk", "pad")}
    return {name: ids[token] for name, token in named.items() if token in ids}


def _ends(tokenizer: Any) -> dict[str, bool]:
    """By what the tokenizer does to a text."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    first = whole[: len(whole) - len(plain)] if plain else whole
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if whole not in (plain, [bos, *plain], [*plain, eos], [bos, *plain, eos]):
        raise _refused(f"it puts other tokens around a text than one to begin and one to end ({first})")
    return {"bos": whole[:1] == [bos] and whole != plain and whole != [*plain, eos],
            "eos": len(whole) > len(plain) and whole[-1:] == [eos] and whole != [bos, *plain]}  # fmt: skip


def _template(tokenizer: Any) -> str | None:
    found = getattr(tokenizer, "chat_template", None)
    return found.get("default") if isinstance(found, dict) else found
