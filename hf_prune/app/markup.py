"""Pieces of HTML: text is escaped and loses paths of this machine; colours follow the light or dark theme."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from hf_prune.app.runs import public
from hf_prune.report.schema.model import LayerFate

FATES = {
    "kept": ("kept", "kept"),
    "merged": ("merged", "merged"),
    "narrowed": ("narrowed", "narrower"),
    "norms_only": ("merged", "norms only"),
    "attn_removed": ("half", "attention gone"),
    "mlp_removed": ("half", "MLP gone"),
    "removed": ("removed", "removed"),
}


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], label: str, numbers: bool = False) -> str:
    """A table that scrolls sideways on a narrow screen; `numbers` sets all but the first column to the right."""
    head = "".join(f"<th scope='col'>{escape(str(cell))}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(public(str(cell)))}</td>' for cell in row)}</tr>" for row in rows)
    kind = " numbers" if numbers else ""
    top = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    inside = f"<table>{top}<tbody>{body}</tbody></table>"
    return f"<div class='wide{kind}' role='region' aria-label='{escape(label)}'>{inside}</div>"


def strip(layers: Sequence[LayerFate], caption: str) -> str:
    """One box per source layer, by what became of it."""
    boxes = "".join(_box(layer) for layer in layers)
    seen = dict.fromkeys(FATES[layer.fate] for layer in layers)
    legend = "".join(f"<span><i class='{kind}'></i>{escape(word)}</span>" for kind, word in seen)
    return (
        f"<figure class='strip' aria-label='{escape(caption)}'><div class='boxes'>{boxes}</div>"
        f"<figcaption>{escape(caption)} {legend}</figcaption></figure>"
    )


def note(text: str, kind: str = "plain") -> str:
    """A sentence in a frame: plain, good, warn or bad."""
    role = "alert" if kind == "bad" else "status"
    return f"<div class='note {kind}' role='{role}'>{escape(public(text))}</div>"


def folded(title: str, inside: str) -> str:
    """HTML that is shown once somebody asks for it."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def bar(done: int, total: int, text: str) -> str:
    """How far something is, in words and as a bar."""
    share = min(1.0, done / total) if total else 0.0
    return (
        f"<div class='bar' role='progressbar' aria-valuenow='{100 * share:.0f}' aria-valuemin='0' aria-valuemax='100'>"
        f"<i style='width:{100 * share:.1f}%'></i></div><p class='quiet'>{escape(public(text))}</p>"
    )


def picture(png: bytes, name: str, caption: str) -> str:
    """A picture that can be downloaded, without an address of this machine."""
    data = "data:image/png;base64," + base64.b64encode(png).decode()
    words = escape(caption)
    return (
        f"<figure class='picture'><img src='{data}' alt='{words}'><figcaption>{words} "
        f"<a href='{data}' download='{escape(name)}'>download</a></figcaption></figure>"
    )


def _box(layer: LayerFate) -> str:
    kind, word = FATES[layer.fate]
    return f"<b class='{kind}' title='layer {layer.source}: {escape(word)}'>{layer.source}</b>"
