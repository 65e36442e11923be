"""A cheap guess of a candidate's value from the layers it touches, learnt from the candidates already scored.

A Gaussian process over feature indicators x with the kernel

    k(x, y) = 1 + a <x, y> + b (<x, y>^2 - <x^2, y^2>) / 2 + c p(x) p(y)

whose functions are a constant, one effect per indicator, one per pair of indicators, and a multiple of what was
foretold of a candidate before any was scored (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2.2, 2.7
and 4.2.2). It guides what is worth scoring; it never ranks finalists, because removals are not additive.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

PAIRS = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Variance of all pair effects of a typical genome, in units of that of its single effects."""
NOISES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Noise variance in the same unit."""
FORETOLD = 10.0
"""Variance of the multiple of what was foretold: large, so that a line is fitted to it."""
DIGITS = 6

Guess = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Features [n, d] and foretold values [n] -> mean [n] and standard deviation [n] of the standardised log value; lower
is better."""


def fitted(features: np.ndarray, foretold: np.ndarray, values: Sequence[float]) -> Guess:
    """Condition on what was seen; the kernel's two ratios are those of the highest leave-one-out likelihood.

    Args:
        features: float [n, d], not negative.
        foretold: float [n], in the unit of standardised log values; 0 where nothing was.
        values: n first objective values, minimised; +inf counts as the worst finite one.
    """
    x, y = np.asarray(features, float), standardised(values)
    size = max(float((x * x).sum(1).mean()), 1.0)

    def kernel(dot: np.ndarray, squares: np.ndarray, line: np.ndarray, pairs: float) -> np.ndarray:
        return 1.0 + dot / size + pairs * (dot**2 - squares) / (size * max(size - 1.0, 1.0)) + FORETOLD * line

    def inverse(pairs: float, noise: float) -> np.ndarray:
        line = np.outer(foretold, foretold)
        return np.linalg.inv(kernel(x @ x.T, x**2 @ x.T**2, line, pairs) + noise * np.eye(len(y)))

    pairs, noise = max(product(PAIRS, NOISES), key=lambda p: _left_out(inverse(*p), y))
    inv = inverse(pairs, noise)
    weights = inv @ y
    scale = max(float(y @ weights) / len(y), 1e-12)

    def guess(new: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cross = kernel(new @ x.T, new**2 @ x.T**2, np.outer(expected, foretold), pairs)
        own = kernel((new**2).sum(1), (new**4).sum(1), expected**2, pairs)
        variance = scale * (own - ((cross @ inv) * cross).sum(1))
        # Rounded, so that another BLAS or thread count does not send a resumed search elsewhere.
        return (cross @ weights).round(DIGITS), np.sqrt(np.maximum(variance, 0.0)).round(DIGITS)

    return guess


def standardised(values: Sequence[float]) -> np.ndarray:
    """Logarithms where all are positive, broken ones as bad as the worst finite one, mean 0, deviation 1.

    Far outliers above are pulled in to 2 deviations: how bad a bad candidate is does not matter.
    """
    y = np.asarray(values, float)
    finite = np.isfinite(y)
    y = np.where(finite, y, y[finite].max(initial=1.0))
    y = np.log(y) if (y > 0).all() else y
    y = (y - y.mean()) / (y.std() or 1.0)
    return np.minimum(y, 2.0)


def _left_out(inverse: np.ndarray, y: np.ndarray) -> float:
    """Log likelihood of every y given the others, up to a constant, the overall variance profiled out (eq. 5.10-12)."""
    spread = 1.0 / np.diag(inverse)
    error = (inverse @ y) * spread
    scale = max(float((error**2 / spread).mean()), 1e-300)
    return round(-0.5 * float(np.log(spread).sum()) - 0.5 * len(y) * float(np.log(scale)), DIGITS)
