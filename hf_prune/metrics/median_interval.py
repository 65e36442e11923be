"""The median of few values and how far it may be off, whatever they are distributed like."""

import math
import statistics
from collections.abc import Sequence

LEAST = 6
"""Values of which the smallest and the largest hold their median with 95 %."""


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Median, and the two order statistics between which that of the population lies with probability `level` or more.

    So many of independent values are below the true median as a fair coin shows heads (David and Nagaraja, Order
    Statistics, sec. 7.1).

    Args:
        values: independent and alike, at least `LEAST` of them at 95 %.
        level: of confidence.

    Raises:
        ValueError: there are too few for that level.
    """
    ordered, n = sorted(values), len(values)
    outside = [sum(math.comb(n, i) for i in range(k)) / 2 ** (n - 1) for k in range(n // 2 + 1)]
    inside = [k for k, missed in enumerate(outside) if k and missed <= 1 - level]
    if not inside:
        raise ValueError(f"{n} values are too few for an interval of {level:.0%}")
    return statistics.median(ordered), (ordered[inside[-1] - 1], ordered[n - inside[-1]])
