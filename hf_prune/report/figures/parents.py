"""Which parents a stitched model is made of, layer by layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.colors import TwoSlopeNorm

from hf_prune.report.figures.canvas import GREY, INK, PALE, canvas, plain, save


def layer_map(report: Mapping[str, Any], path: str | Path) -> Path:
    """Parents against source layers; a cell holds the weight of that parent, removed layers are hatched.

    Args:
        report: content of report.json; reads `origins`, `parents` and `size`.
        path: of the PNG.
    """
    names, depth = [str(n) for n in report["parents"]], report["size"]["dense"]["layers"]
    rows = {layer["source"]: layer for layer in report["origins"]}
    halves = any(layer["mlp"] for layer in rows.values())
    drawing = canvas(1.5 + 0.42 * len(names) * (1 + halves))
    axes = drawing.subplots()
    lines = [(n, half) for n in names for half in (("parents", "mlp") if halves else ("parents",))]
    table = [[_weight(rows.get(i), n, half) for i in range(depth)] for n, half in lines]
    shown = [[x or 0.0 for x in row] for row in table]
    largest = max(1.0, *(abs(x) for row in shown for x in row))
    axes.imshow(shown, cmap="PuOr_r", norm=TwoSlopeNorm(0.0, -largest, largest), aspect="auto")
    for y, row in enumerate(table):
        for x, weight in enumerate(row):
            if weight:
                dark = abs(weight) > 0.6 * largest
                axes.text(x, y, f"{weight:.3g}".removeprefix("0").replace("-", "−"), ha="center", va="center", size=7.5,
                          color="white" if dark else INK)  # fmt: skip
    for x in set(range(depth)) - set(rows):
        axes.axvspan(x - 0.5, x + 0.5, facecolor=PALE, edgecolor=GREY, hatch="////", lw=0, zorder=3)
    suffix = {"parents": "  attention", "mlp": "  MLP"} if halves else {"parents": ""}
    axes.set_yticks(range(len(lines)), [plain(n) + suffix[half] for n, half in lines])
    axes.set_xticks(range(depth))
    axes.set_xlabel("source layer (hatched: removed)")
    axes.set_title("Weight of every parent in every layer", loc="left", weight="bold", size=11)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return save(drawing, path)


def _weight(layer: Mapping[str, Any] | None, name: str, half: str) -> float | None:
    if layer is None:
        return None
    return (layer[half] or layer["parents"]).get(name, 0.0)
