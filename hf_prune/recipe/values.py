"""Values as people write them: numbers with units, one entry for a list of one.

All raise ValueError with what is wrong.
"""

import re
from typing import Any


def count(raw: Any) -> Any:
    """Tokens as people write them: 1M, 500k, 2_000_000."""
    known = isinstance(raw, str | int | float) and not isinstance(raw, bool)
    match = known and re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kMG]?)", str(raw).replace("_", "").strip())
    if not match:
        # A stranger's list of lists is not for a sentence.
        said = repr(raw)[:60] if raw is None or isinstance(raw, str | int | float) else f"a {type(raw).__name__}"
        raise ValueError(f"a number of tokens is written 1M, 500k or 250000, not {said}")
    return round(float(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]])


def seconds(raw: Any) -> Any:
    """A time as people write it: 30m, 2h, 90s, 1h30m, or seconds; none is no limit, 0."""
    if raw is None or isinstance(raw, int | float) and not isinstance(raw, bool):
        return raw
    written = str(raw).strip().lower()
    number = r"(?:(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"{number}h)?{number}m)?{number}s?)?", written)
    if written == "none":
        return 0.0
    if not match or not any(match.groups()):
        raise ValueError(f"a time is written 30m, 2h, 90s or none, not {written[:40]!r}")
    return sum(float(n or 0) * unit for n, unit in zip(match.groups(), (3600, 60, 1), strict=True))


def hands(raw: Any) -> Any:
    """How many workers, as text: a number of 1 to 512."""
    said = str(raw).strip()
    if isinstance(raw, bool) or not re.fullmatch(r"[0-9]{1,3}", said) or not 1 <= int(said) <= 512:
        raise ValueError(f"workers are a number from 1 to 512, not {said[:60]!r}")
    return str(int(said))


def devices(said: str) -> str:
    """A device as torch names it, or several of one kind with commas between."""
    one = r"(cpu|cuda|mps|xpu|hpu|npu|mlu|musa)(:[0-9]{1,3})?"
    if not re.fullmatch(rf"auto|{one}(,{one}){{0,511}}", said):
        raise ValueError(f"a device is auto, cpu, cuda, cuda:1 or mps, not {said[:60]!r}")
    if len({name.partition(":")[0] for name in said.split(",")}) > 1:
        raise ValueError(f"devices that share a search are of one kind, not {said[:60]!r}")
    return said


GGUF = r"f32|b?f16|(i?q|tq)[1-8]_[a-z0-9]{1,3}(_[a-z0-9]{1,3})?"


def gguf_types(asked: tuple[str, ...]) -> tuple[str, ...]:
    """Types of GGUF files as llama.cpp calls them, in small letters, once each."""
    if strange := next((kind for kind in asked if not re.fullmatch(GGUF, kind.lower())), None):
        raise ValueError(f"a type of GGUF is f32, f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m, not {strange[:60]!r}")
    return tuple(dict.fromkeys(kind.lower() for kind in asked))


LANGUAGES = "languages:"
"""Before the codes of languages whose text says which tokens stay."""


def tokens_kept(raw: Any) -> Any:
    """A number of tokens as `count` reads it, auto, none, or languages:en,de, as text."""
    said = str(raw).strip().lower()
    if said.startswith(LANGUAGES):
        if not re.fullmatch(r"[a-z]{2,3}(,[a-z]{2,3})*", codes := said.removeprefix(LANGUAGES).replace(" ", "")):
            raise ValueError(f"languages are written {LANGUAGES}en,de, by their codes, not {said[:40]!r}")
        return LANGUAGES + ",".join(sorted({*codes.split(",")}))
    return said if said in ("auto", "none") else str(count(raw))


def one_or_many(raw: Any) -> Any:
    """YAML: `data: folder` and `drop: [3, 6]` are what people write."""
    entries = [raw] if isinstance(raw, str | int) else raw
    return [str(e) if type(e) is int else e for e in entries] if isinstance(entries, list | tuple) else raw


NUMBER = r"\d+(\.\d+)?"
RULE = rf"keep|keep-first|keep-last|mean|laco-released|difference:-?{NUMBER}"
MERGE = rf"linear|slerp|(task-arithmetic|passthrough):{NUMBER}|ties:{NUMBER}|dare(-ties)?:{NUMBER}(:\d+)?"
"""How rules that layers collapse by, and merges that layers are stitched by, are written."""
