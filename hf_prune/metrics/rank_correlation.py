"""Spearman's rank correlation."""

import math
from collections.abc import Sequence

import numpy as np


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation with average ranks for ties; NaN for fewer than three points or a constant side."""
    if len(a) < 3:
        return math.nan
    ranks = [_ranks(np.asarray(x, float)) for x in (a, b)]
    if any(r.std() == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.sort(values)
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right") - 1) / 2
