"""Doubt: how far a model is from telling the right option, whatever it sounds like.

NORM CORRECT PROB of DataDecide (arXiv 2504.11393) behind temperature scaling (arXiv 1706.04599).
"""

import numpy as np

LARGEST_SCALE, HALVINGS = 64.0, 40
"""Of what options are compared by; a task whose items are all answered rightly has no least doubt."""
LARGEST_EXPONENT = 600.0
"""A larger one has no finite exp in float64, from 710 on."""


def doubts(values: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """-log p of the right options, nats, float64 [items], with p = softmax(b values) and the b >= 0 that makes their
    mean least: what the values tell, however sure they sound, and never worse than guessing.

    Args:
        values: float64 [items, most options], -inf where an item has fewer.
        answers: int [items].
    """
    return np.log(_fitted(values, answers)[1].sum(1))


def doubt_slopes(values: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Gradient of the mean of `doubts` by the values, shaped as they are: b (p - 1 at the right option) / items.

    The mean is least at b, so that what the values do to b counts for nothing (envelope theorem).
    """
    scale, given = _fitted(values, answers)
    slopes = given / given.sum(1, keepdims=True)
    slopes[np.arange(len(values)), answers] -= 1.0
    return scale * slopes / len(values)


def _fitted(values: np.ndarray, answers: np.ndarray) -> tuple[float, np.ndarray]:
    """The scale, and exp of how far options are ahead of the right one at it, 0 where an item has none."""
    there = np.isfinite(values)
    right = values[np.arange(len(values)), answers][:, None]
    ahead = np.where(there, values, right) - right

    def shares(scale: float) -> np.ndarray:
        return np.exp(np.where(there, np.minimum(scale * ahead, LARGEST_EXPONENT), -np.inf))

    low, high = 0.0, LARGEST_SCALE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        given = shares(middle)
        # The mean is convex in the scale; this is its slope.
        rises = ((given * ahead).sum(1) / given.sum(1)).mean() > 0
        low, high = (low, middle) if rises else (middle, high)
    return low, shares(low)
