"""Pictures of the search and of what it found: layers, course, front, baselines."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from hf_prune.report.figures.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    canvas,
    digits,
    finish,
    height,
    plain,
    plain_ticks,
    save,
)
from hf_prune.report.schema.model import LayerFate
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import total
from hf_prune.report.schema.section import Interval

CLEAR = {"fc": "white", "ec": "none", "pad": 1}
"""Behind numbers, so that no line crosses them."""
DASHED = {"ec": GREY, "lw": 0.8, "ls": (0, (2, 2))}
STRIP_COLUMNS = 40
"""Most layers in one row of the layer strip: beyond that the numbers in the boxes stop being legible."""
LOG_SPREAD, MOST_MARKS = 8.0, 12
"""Ratio of values that makes an axis logarithmic; most changes of evidence marked by more than the dots' colour."""
FATES = {
    "kept": (SKY, "kept"),
    "merged": (ORANGE, "merged (its weight)"),
    "narrowed": (PURPLE, "narrower"),
    "norms_only": (YELLOW, "norms only"),
    "attn_removed": (GREEN, "attention gone (top)"),
    "mlp_removed": (GREEN, "MLP gone (bottom)"),
    "removed": ("white", "removed"),
}
OBJECTIVES = {
    "kl": "KL to the dense model (nats per token)",
    "perplexity": "perplexity",
    "similarity": "1 - similarity of residual updates",
    "kl_similarity": "KL + (1 - similarity)",
    "gelaco_v1": "1 - GeLaCo v1 similarity",
    "text": "mean log-perplexity of the corpora",
    "tasks": "share of task items answered wrongly",
    "tasks_norm": "share answered wrongly, length-normalised",
    "doubt": "-log p of the right answers, length-normalised (nats per item)",
    "abilities": "log-perplexity - log p of the right answers",
}


def layer_strip(report: Report, path: str | Path) -> Path:
    """What became of every source layer: source row above, output row below, a line for every contribution.

    Args:
        report: uses `layers` and `sources`.
        path: PNG to write. More than 40 layers wrap into rows of equal length.

    Raises:
        ValueError: the report lists no layers.
    """
    layers = report.layers
    if not layers:
        raise ValueError("The layer strip needs at least one source layer.")
    bands = math.ceil(len(layers) / STRIP_COLUMNS)
    per_band = math.ceil(len(layers) / bands)
    figure = canvas(0.85 + 1.45 * bands, None)
    # Fixed margins in inches, so that a box has the same height however many rows there are.
    inches = figure.get_figheight()
    top, bottom = 1 - 0.42 / inches, 0.38 / inches
    homes = _homes(layers)
    for band in range(bands):
        piece = layers[band * per_band : (band + 1) * per_band]
        step = (top - bottom) / bands
        axes = figure.add_axes((0.075, top - (band + 1) * step, 0.915, step))
        _strip_band(axes, piece, homes, max(per_band, 14))
    title = f"{_sources(report)}: {len(layers)} layers become {len(homes)}"
    figure.text(0.01, 1 - 0.3 / inches, title, weight="bold", size=11)
    present = [f for f in FATES if any(x.fate == f for x in layers)]
    edges = {f: DASHED if f == "removed" else {"ec": INK, "lw": 0.8} for f in present}
    handles = [Patch(fc=FATES[f][0], label=FATES[f][1], **edges[f]) for f in present]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.068, 0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        columnspacing=1.2,
    )
    return save(figure, path)


def search_history(
    points: Sequence[tuple[int, float, Any]],
    path: str | Path,
    *,
    objective: str,
    baselines: Mapping[str, float] | Iterable[tuple[str, float]] = (),
) -> Path:
    """Every scored candidate as a dot, with the best so far.

    The best-so-far line follows equal evidence only: scores on different amounts of text do not compare.

    Args:
        points: (trial number, value, stage); the value is minimised and may be infinite; stage is the amount of
            evidence (windows) or None.
        path: PNG to write.
        objective: name of what the search minimised.
        baselines: label -> value on full evidence, drawn as dashed lines.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("The search history needs at least one scored candidate.")
    points = sorted(points, key=lambda p: p[0])
    reference = [(k, v) for k, v in dict(baselines).items() if math.isfinite(v)]
    figure = canvas(4.2)
    axes = figure.add_subplot()
    floor, ceiling = value_axis(axes, [v for _, v, _ in points] + [v for _, v in reference])
    _stage_dots(axes, points, ceiling)
    for i, (_, value) in enumerate(reference):
        axes.axhline(value, color=GREY, ls=(0, (5, 3)), lw=1, zorder=1, label=None if i else "other cuts")
    _spread_labels(axes, reference, floor, ceiling)
    bad = sum(not math.isfinite(v) for _, v, _ in points)
    title = f"Search: {len(points)} scored candidates{f', {bad} not finite' if bad else ''}"
    finish(axes, title, "trial", OBJECTIVES.get(objective, plain(objective)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, frameon=False)
    return save(figure, path)


def comparison(report: Report, path: str | Path) -> Path:
    """Report-split perplexity of the result and the baselines, with 95 % intervals and the dense model as a line.

    On a logarithmic axis bars start at the dense model, so their length is the log-perplexity lost.

    Args:
        report: uses the text `all`, the stages and the baselines.
        path: PNG to write.
    """
    dense = height(total(report.text).dense.perplexity)
    rows = _bars(report)
    finite = [r.perplexity for r in rows if math.isfinite(r.perplexity)] + [dense]
    figure = canvas(1.35 + 0.42 * len(rows))
    axes = figure.add_subplot()
    log = max(finite) / min(finite) > LOG_SPREAD
    if log:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    start = dense if log else 0.0
    intervals = [x for r in rows for x in r.ci or () if math.isfinite(x)]
    reach = max(finite + intervals)
    limits = (min(finite) / 1.15, reach * (reach / dense) ** 0.16) if log else (0, reach * 1.15)
    axes.set_xlim(*limits)
    for y, row in enumerate(rows):
        _bar(axes, y, row, start, limits[1])
    axes.axvline(dense, color=INK, lw=1.5, ls=(0, (5, 3)))
    axes.annotate(
        f"dense model {digits(dense)}", (dense, -0.72), xytext=(5, 0), textcoords="offset points", size=9, bbox=CLEAR
    )
    axes.set_yticks(range(len(rows)), [plain(r.label) for r in rows])
    axes.set_ylim(len(rows) - 0.45, -1.05)
    axes.tick_params(axis="y", length=0)
    axes.get_yticklabels()[0].set_weight("bold")
    unit = f"perplexity (lower is better{', log scale' if log else ''}; whiskers: 95 %)"
    finish(axes, "Perplexity at the same size, report split", unit, "")
    axes.grid(visible=False, axis="y")
    return save(figure, path)


def _sources(report: Report) -> str:
    """The base, and how many models it was mixed with."""
    names = list(dict.fromkeys(plain(s.repo) for s in report.sources))
    others = len(report.sources) - 1
    if len(names) == others + 1 < 3:
        return " + ".join(names)
    return f"{names[0]} and {others} variants" if others > 1 else f"{names[0]} and a variant"


def _homes(layers: Sequence[LayerFate]) -> dict[int, int]:
    """Output layer -> the source layer it is drawn under: its heaviest contribution."""
    heaviest: dict[int, LayerFate] = {}
    for x in layers:
        j = x.output
        if j is not None and (j not in heaviest or x.weight > heaviest[j].weight):
            heaviest[j] = x
    return {j: x.source for j, x in sorted(heaviest.items())}


def _strip_band(axes: Axes, piece: Sequence[LayerFate], homes: Mapping[int, int], columns: int) -> None:
    first = piece[0].source
    here = [j for j, home in homes.items() if first <= home < first + len(piece)]
    shift = (len(piece) - len(here)) / 2
    place = {j: i + shift for i, j in enumerate(here)}
    size = 10 if columns <= 24 else 7.5
    for i, x in enumerate(piece):
        _source_box(axes, i, x, size)
        if x.output in place:
            line = {"color": FATES[x.fate][0], "lw": 2.2 if columns <= 24 else 1.6, "solid_capstyle": "round"}
            axes.plot([i, place[x.output]], [-0.06, -0.74], zorder=1, **line)
        elif x.output is not None:
            axes.text(i, -0.1, f"↳{x.output}", ha="center", va="top", size=size - 1, color=INK)
    fates = {x.output: x.fate for x in piece if homes.get(x.output) == x.source}
    for j in here:
        axes.add_patch(Rectangle((place[j] - 0.42, -1.4), 0.84, 0.6, fc=FATES[fates[j]][0], ec=INK, lw=0.6))
        axes.text(place[j], -1.1, str(j), ha="center", va="center", size=size, color=INK)
    for y, label in ((0.4, "source"), (-1.1, "result")):
        axes.text(-0.018, y, label, ha="right", va="center", size=10, color=INK, transform=axes.get_yaxis_transform())
    axes.set_xlim(-0.6, columns - 0.4)
    axes.set_ylim(-1.62, 0.95)
    axes.axis("off")


def _source_box(axes: Axes, x: float, layer: LayerFate, size: float) -> None:
    fate, weight = layer.fate, layer.weight
    colour = FATES[fate][0]
    gone = {"removed": (0.0, 0.8), "attn_removed": (0.4, 0.4), "mlp_removed": (0.0, 0.4)}.get(fate)
    axes.add_patch(Rectangle((x - 0.42, 0), 0.84, 0.8, fc=colour, ec="none" if gone else INK, lw=0.6))
    if gone:
        axes.add_patch(Rectangle((x - 0.42, gone[0]), 0.84, gone[1], fc="white", **DASHED))
    merged = fate == "merged" and not math.isnan(weight)
    number_y = {"attn_removed": 0.2, "mlp_removed": 0.6}.get(fate, 0.55 if merged else 0.4)
    ink = GREY if fate == "removed" else INK
    axes.text(x, number_y, str(layer.source), ha="center", va="center", size=size, color=ink)
    if merged:
        # Two decimals without the leading zero: four characters are what a narrow box holds.
        text = f"{weight:.2f}".rstrip("0").rstrip(".").replace("0.", ".", 1) if abs(weight) < 1 else f"{weight:.3g}"
        axes.text(x, 0.2, text.replace("-", "−"), ha="center", va="center", size=size - 1.5, color=INK)


def value_axis(axes: Axes, values: Sequence[float]) -> tuple[float, float]:
    """Scale the y axis for these values; infinite ones are drawn at the returned ceiling, inside the frame."""
    finite = [v for v in values if math.isfinite(v)] or [1.0]
    low, high = min(finite), max(finite)
    if low > 0 and high / low > LOG_SPREAD:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        margin = (high / low) ** 0.06
        floor, ceiling = low / margin, high * margin
        axes.set_ylim(floor, ceiling * margin**0.6)
    else:
        margin = 0.06 * (high - low or abs(high) or 1.0)
        floor, ceiling = low - margin, high + margin
        axes.set_ylim(floor, ceiling + 0.6 * margin)
    return floor, ceiling


def _stage_dots(axes: Axes, points: Sequence[tuple[int, float, Any]], ceiling: float) -> None:
    stages = list(dict.fromkeys(s for _, _, s in points))
    if all(isinstance(s, int | float) for s in stages):
        stages.sort()
    # More evidence, more ink.
    ramp = LinearSegmentedColormap.from_list("evidence", [PALE, SKY, BLUE])
    shades = [ramp(1 - i / 2 if len(stages) < 3 else 1 - i / (len(stages) - 1)) for i in range(len(stages))][::-1]
    colours = dict(zip(stages, shades, strict=True))
    for stage in stages:
        mine = [(n, v) for n, v, s in points if s == stage and math.isfinite(v)]
        label = "candidate" if stage is None else f"{stage} windows" if isinstance(stage, int) else plain(stage)
        if mine:
            axes.scatter(*zip(*mine, strict=True), s=14, color=colours[stage], lw=0, label=label, zorder=2)
    bad = [n for n, v, _ in points if not math.isfinite(v)]
    if bad:
        axes.scatter(bad, [ceiling] * len(bad), s=30, marker="x", color=VERMILION, lw=1.2, label="not finite", zorder=2)
    runs = [list(run) for _, run in groupby(points, key=lambda p: p[2])]
    if len(runs) <= MOST_MARKS:
        marks = [run[0][0] - 0.5 for run in runs[1:]]
        label = "more or less text from here" if marks else None
        axes.vlines(marks, 0, 1, color=PALE, lw=1, zorder=0, transform=axes.get_xaxis_transform(), label=label)
    else:
        runs = [[p for p in points if p[2] == stages[-1]]]
    for i, run in enumerate(runs):
        _best_line(axes, run, "best so far" if i == 0 else None)


def _best_line(axes: Axes, run: Sequence[tuple[int, float, Any]], label: str | None) -> None:
    best, line = math.inf, []
    for n, value, _ in run:
        best = min(best, value)
        if math.isfinite(best):
            line.append((n, best))
    if line:
        axes.plot(*zip(*line, strict=True), color=VERMILION, lw=1.8, drawstyle="steps-post", label=label, zorder=3)


def _spread_labels(axes: Axes, reference: Sequence[tuple[str, float]], floor: float, ceiling: float) -> None:
    """Name the reference lines at the right edge, moved apart where they would overlap."""
    scale = math.log if axes.get_yscale() == "log" else float
    low, span = scale(floor), scale(ceiling) - scale(floor)
    previous = -1.0
    for label, value in sorted(reference, key=lambda r: r[1]):
        y = max((scale(value) - low) / span * 0.965, previous + 0.055)
        leader = {"arrowstyle": "-", "color": GREY, "lw": 0.6, "relpos": (0, 0.5)}
        place = {"xycoords": axes.get_yaxis_transform(), "xytext": (1.03, y), "textcoords": "axes fraction"}
        axes.annotate(f"{plain(label)} {digits(value)}", (1, value), size=9, va="center", arrowprops=leader, **place)
        previous = y


class Bar(NamedTuple):
    """A model of the comparison; `own` is ours."""

    label: str
    perplexity: float
    ci: Interval | None
    own: bool


def _bars(report: Report) -> list[Bar]:
    ours, stages = total(report.text).pruned, report.stages
    own = [Bar("this model", height(ours.perplexity), ours.ci, True)]
    if stages and len(stages.names) > 2:
        cut = total(stages.text).cut
        own = [own[0]._replace(label=f"this model, {stages.names[-1]}")]
        own.append(Bar("its bare cut", height(cut.perplexity), cut.ci, True))
    rivals = [Bar(b.label, height(b.perplexity), b.ci, False) for b in report.baselines if b.name != "hf_prune"]
    return sorted([*own, *rivals], key=lambda bar: (not bar.own, bar.perplexity))


def _bar(axes: Axes, y: int, row: Bar, start: float, edge: float) -> None:
    value, colour = row.perplexity, BLUE if row.own else PALE
    if not math.isfinite(value):
        axes.barh(y, edge - start, left=start, height=0.62, fc="white", ec=GREY, hatch="///", lw=0.6)
        axes.text(edge, y, "not finite ", ha="right", va="center", backgroundcolor="white")
        return
    axes.barh(y, value - start, left=start, height=0.62, color=colour)
    end = value
    if row.ci and all(map(math.isfinite, row.ci)):
        low, high = row.ci
        error = [[max(value - low, 0)], [max(high - value, 0)]]
        axes.errorbar(value, y, xerr=error, color=INK, lw=1.2, capsize=3)
        end = max(end, high)
    axes.annotate(digits(value), (end, y), xytext=(6, 0), textcoords="offset points", va="center", bbox=CLEAR)
