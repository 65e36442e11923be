"""How wide every layer of a result is."""

from pathlib import Path

from hf_prune.report.figures.canvas import BLUE, GREY, ORANGE, canvas, finish, save
from hf_prune.report.schema.report import Report


def layer_widths(report: Report, path: str | Path) -> Path:
    """Two bars per source layer: heads and neurons left, as shares of the dense layer's.

    Args:
        report: uses `widths`, `layers` and `size`.
        path: of the PNG.
    """
    depth = report.size.dense.layers
    heads = {row.source: row.heads / row.of_heads for row in report.widths or ()}
    neurons = {row.source: row.neurons / row.of_neurons for row in report.widths or ()}
    # Layers without a row are dense, unless they are gone.
    gone = {layer.source for layer in report.layers if layer.fate == "removed"}
    drawing = canvas(3.2)
    axes = drawing.subplots()
    axes.axhline(1.0, color=GREY, lw=0.8, ls="--")
    for offset, kind, left, colour in ((-0.2, "heads", heads, BLUE), (0.2, "neurons", neurons, ORANGE)):
        shares = [left.get(i, float(i not in gone)) for i in range(depth)]
        axes.bar([i + offset for i in range(depth)], shares, 0.38, color=colour, label=kind)
    finish(axes, "Width of every layer", "source layer", "share of the dense layer")
    axes.set_xticks(range(depth))
    axes.set_ylim(0, 1.08)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    return save(drawing, path)
