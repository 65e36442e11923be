"""Which parents a stitched model is made of, layer by layer."""

from pathlib import Path
from typing import Literal

from matplotlib.colors import TwoSlopeNorm

from hf_prune.report.figures.canvas import GREY, INK, PALE, canvas, plain, save
from hf_prune.report.schema.model import LayerOrigin
from hf_prune.report.schema.report import Report

Half = Literal["attention", "mlp"]


def layer_map(report: Report, path: str | Path) -> Path:
    """Parents against source layers; a cell holds the weight of that parent, removed layers are hatched.

    Args:
        report: uses `origins`, `parents` and `size`.
        path: of the PNG.
    """
    names, depth = report.parents, report.size.dense.layers
    rows = {layer.source: layer for layer in report.origins}
    halves = any(layer.mlp for layer in rows.values())
    drawing = canvas(1.5 + 0.42 * len(names) * (1 + halves))
    axes = drawing.subplots()
    lines = [(n, half) for n in names for half in (("attention", "mlp") if halves else ("attention",))]
    table = [[_weight(rows.get(i), n, half) for i in range(depth)] for n, half in lines]
    shown = [[x or 0.0 for x in row] for row in table]
    largest = max(1.0, *(abs(x) for row in shown for x in row))
    axes.imshow(shown, cmap="PuOr_r", norm=TwoSlopeNorm(0.0, -largest, largest), aspect="auto")
    for y, row in enumerate(table):
        for x, weight in enumerate(row):
            if weight:
                dark = abs(weight) > 0.6 * largest
                shown_weight = f"{weight:.3g}".removeprefix("0").replace("-", "−")
                colour = "white" if dark else INK
                axes.text(x, y, shown_weight, ha="center", va="center", size=7.5, color=colour)
    for x in set(range(depth)) - set(rows):
        axes.axvspan(x - 0.5, x + 0.5, facecolor=PALE, edgecolor=GREY, hatch="////", lw=0, zorder=3)
    suffix = {"attention": "  attention", "mlp": "  MLP"} if halves else {"attention": ""}
    axes.set_yticks(range(len(lines)), [plain(n) + suffix[half] for n, half in lines])
    axes.set_xticks(range(depth))
    axes.set_xlabel("source layer (hatched: removed)")
    axes.set_title("Weight of every parent in every layer", loc="left", weight="bold", size=11)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return save(drawing, path)


def _weight(layer: LayerOrigin | None, name: str, half: Half) -> float | None:
    if layer is None:
        return None
    weights = layer.mlp if half == "mlp" and layer.mlp else layer.parents
    return weights.get(name, 0.0)
