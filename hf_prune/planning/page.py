"""A plan as a notebook shows it."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

BAR = "display:inline-block;height:.8em;margin-right:.6em;background:"
DENSE, PRUNED = "#767676", "#0072B2"
WIDTH = 240
"""Pixels of the dense model's bar."""


def table_html(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """A table whose cells are text, escaped."""
    head = "".join(f"<th style='text-align:left'>{escape(cell)}</th>" for cell in header)
    lines = ("".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def sizes_html(dense: int, pruned: int) -> str:
    """Both models as bars, by their parameters."""
    shares = ((DENSE, WIDTH, dense, "dense"), (PRUNED, round(WIDTH * pruned / max(dense, 1)), pruned, "pruned"))
    return "".join(
        f"<div><span style='{BAR}{colour};width:{width}px'></span>{count / 1e6:,.1f}M parameters, {name}</div>"
        for colour, width, count, name in shares
    )


def plan_html(plan: Any) -> str:
    """Size, memory, time and what is left out, of a `Plan`."""
    fits = "" if plan.fits is None else "; it fits here" if plan.fits else "; that is more than there is here"
    rows = [
        ("model", f"{plan.base} ({plan.model_type}), {plan.depth} layers, {_gb(plan.bytes)}"),
        ("asked", f"{plan.asked}, method {plan.method}"),
        ("result", f"{plan.result_layers} layers, at most {_gb(plan.result_bytes)}"),
        ("memory", f"about {_gb(plan.device_bytes)}{fits}"),
        ("disk", f"{_gb(plan.disk_bytes)}, of which download {_gb(plan.download_bytes)}"),
        ("search", f"{plan.search}, at most {plan.evaluations:,} evaluations"),
    ]
    if plan.seconds:
        rows.append(("time", f"about {sum(plan.seconds.values()) / 60:.0f} min on this machine"))
    rows += [("left out", "; ".join(plan.left_out))] * bool(plan.left_out)
    rows += [("notes", " ".join(plan.notes))] * bool(plan.notes)
    return sizes_html(plan.parameters, plan.result_parameters) + table_html(rows)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
