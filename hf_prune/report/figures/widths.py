"""How wide every layer of a result is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_prune.report.figures.canvas import BLUE, GREY, ORANGE, canvas, finish, save


def layer_widths(report: Mapping[str, Any], path: str | Path) -> Path:
    """Two bars per source layer: heads and neurons left, as shares of the dense layer's.

    Args:
        report: content of report.json; reads `widths` and `size`.
        path: of the PNG.
    """
    depth = report["size"]["dense"]["layers"]
    rows = {row["source"]: row for row in report["widths"]}
    drawing = canvas(3.2)
    axes = drawing.subplots()
    axes.axhline(1.0, color=GREY, lw=0.8, ls="--")
    for offset, kind, colour in ((-0.2, "heads", BLUE), (0.2, "neurons", ORANGE)):
        # Layers without a row are dense, unless they are gone.
        gone = {x["source"] for x in report["layers"] if x["fate"] == "removed"}
        shares = [rows[i][kind] / rows[i][f"of_{kind}"] if i in rows else float(i not in gone) for i in range(depth)]
        axes.bar([i + offset for i in range(depth)], shares, 0.38, color=colour, label=kind)
    finish(axes, "Width of every layer", "source layer", "share of the dense layer")
    axes.set_xticks(range(depth))
    axes.set_ylim(0, 1.08)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return save(drawing, path)
