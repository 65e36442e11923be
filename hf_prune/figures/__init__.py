"""The pictures of a report."""

from hf_prune.figures.parents import layer_map
from hf_prune.figures.recovery import capabilities, healing
from hf_prune.figures.search import STRIP_COLUMNS, comparison, layer_strip, pareto, search_history
from hf_prune.figures.widths import layer_widths

__all__ = [
    "STRIP_COLUMNS",
    "capabilities",
    "comparison",
    "healing",
    "layer_map",
    "layer_strip",
    "layer_widths",
    "pareto",
    "search_history",
]
