"""Strategies that spoil a real file: a value here and there, the text of a line, some bytes."""

import copy
import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP, DIGITS = "\ue000deep", "\ue000digits"
SPELLED = {json.dumps(DEEP).encode(): b"[" * 3000 + b"]" * 3000, json.dumps(DIGITS).encode(): b"9" * 6000}
"""What no value of Python says, put in as text."""
CONSTANTS = (
    None, True, False, 0, -1, 1, 2, 3.5, 10**9, 2**63, 10**400, -(10**400), 1e308, -0.0, float("nan"), float("inf"),
    "", " ", "\0", "x" * 5000, "\ud800", "٣", "../../etc/passwd", "/etc/passwd", "~nobody/x", "-1", "inf", "1e400",
    "0-99999", "{{", "{% for x in range(10**9) %}x{% endfor %}", "<script>", "a\nb", "ns/tiny@main", "---", DEEP,
    DIGITS, [], {}, [[]], [None], {"": None}, [{}], ["a", 1], [0] * 3000, {"a": {"b": [1]}},
)  # fmt: skip
PIECES = (b"\0", b"\xff", b"\xef\xbb\xbf", b"[" * 3000, b"9" * 6000, b"NaN", b",", b"\n", b"{")
VALUES = st.one_of(
    st.sampled_from(CONSTANTS).map(copy.deepcopy),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
Step = str | int
Path = tuple[Step, ...]


def paths(value: Any, within: Path = ()) -> Iterator[Path]:
    """The way to every value inside, itself included; of long lists the beginning."""
    yield within
    inner = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for step, one in inner:
        yield from paths(one, (*within, step))


def at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


@st.composite
def values(draw: st.DrawFn, real: Any, most: int = 3) -> Any:
    """A real value with up to so many of the values inside replaced, left out, doubled, renamed or moved."""
    found = copy.deepcopy(real)
    for _ in range(draw(st.integers(0, most))):
        path = draw(st.sampled_from(list(paths(found))))
        if not path:
            continue
        holder, step = at(found, path[:-1]), path[-1]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "repeat", "move"])):
            case "replace":
                holder[step] = draw(VALUES)
            case "remove":
                del holder[step]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["", "x", "version", "a" * 3000, "\ud800"]))] = holder.pop(step)
            case "repeat" if isinstance(holder, list):
                holder[step:step] = [holder[step]] * draw(st.sampled_from([1, 2, 300]))
            case "move":
                holder[step] = copy.deepcopy(at(real, draw(st.sampled_from(list(paths(real))))))
    return found


def spelled(value: Any) -> bytes:
    """As JSON, with what only its text can say."""
    text = json.dumps(value).encode()
    for mark, meant in SPELLED.items():
        text = text.replace(mark, meant)
    return text


@st.composite
def spoiled(draw: st.DrawFn, real: bytes) -> bytes:
    """Bytes with some cut off, turned over, put in, left out or doubled."""
    found = bytearray(real)
    for _ in range(draw(st.integers(0, 2))):
        first = draw(st.integers(0, len(found)))
        last = min(len(found), first + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["cut", "turn", "insert", "remove", "double", "end"])):
            case "cut":
                del found[first:]
            case "turn" if first < len(found):
                found[first] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                found[first:first] = draw(
                    st.sampled_from(
                        [b"\0", b"\xff", b"\xef\xbb\xbf", b"[" * 3000, b"9" * 6000, b"NaN", b",", b"\n", b"{"]
                    )
                    | st.binary(max_size=8)
                )
            case "remove":
                del found[first:last]
            case "double":
                found[first:first] = found[first:last]
            case "end":
                found += draw(st.binary(max_size=20))
    return bytes(found)


def either(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly well-formed, sometimes with its bytes spoiled too."""
    return st.one_of(whole, whole, whole.flatmap(spoiled), st.binary(max_size=30))


def documents(*reals: Any) -> st.SearchStrategy[bytes]:
    """JSON files."""
    return either(st.sampled_from(reals).flatmap(values).map(spelled))


def lines(*reals: list[Any]) -> st.SearchStrategy[bytes]:
    """Files of one JSON value a line."""
    return either(st.sampled_from(reals).flatmap(values).map(_a_line_each))


def _a_line_each(rows: list[Any]) -> bytes:
    return b"".join(spelled(row) + b"\n" for row in rows)


def yamls(*reals: Any) -> st.SearchStrategy[bytes]:
    """YAML files; JSON is YAML, too."""
    aliases = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (n + 1, n + 1, b", ".join([b"*%c" % n] * 9)) for n in range(97, 105)
    )
    return st.one_of(documents(*reals), documents(*reals), st.sampled_from([aliases, b"a: !!python/name:os.system\n"]))


def safetensors(header: Any, data: bytes) -> st.SearchStrategy[bytes]:
    """Files in the safetensors format with an odd header, or an odd length of it."""

    def whole(text: bytes, length: int | None) -> bytes:
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    lengths = st.one_of(st.none(), st.none(), st.none(), st.sampled_from([0, 1, 2**63, 2**64 - 1, 100_000_000]))
    return either(st.builds(whole, values(header).map(spelled), lengths))
