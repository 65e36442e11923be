"""The pictures of a report."""

from hf_prune.report.figures.front import FrontPoint, pareto
from hf_prune.report.figures.parents import layer_map
from hf_prune.report.figures.recovery import capabilities, healing
from hf_prune.report.figures.search import (
    STRIP_COLUMNS,
    comparison,
    layer_strip,
    search_history,
)
from hf_prune.report.figures.widths import layer_widths

__all__ = [
    "STRIP_COLUMNS",
    "FrontPoint",
    "capabilities",
    "comparison",
    "healing",
    "layer_map",
    "layer_strip",
    "layer_widths",
    "pareto",
    "search_history",
]
