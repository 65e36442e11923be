"""Ridge regression from normal equations that stream: memory does not grow with the number of samples."""

import torch
from torch import Tensor


def token_weights(target: Tensor) -> Tensor:
    """float32 [tokens], 1 / |h|: layers normalise what they read, and attention sinks are a hundred times as long."""
    return 1 / target.flatten(0, -2).float().norm(dim=1).clamp_min(1e-6)


class Normal:
    """Normal equations of R ~ g D, streamed: float64 gram [k, k], cross [k, d] and energy [d] of weighted sums.

    Products of a tile are taken in float32 and added up in float64, so memory does not grow with tokens.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        new = {"dtype": torch.float64, "device": device}
        self.gram, self.cross = torch.zeros(inputs, inputs, **new), torch.zeros(inputs, outputs, **new)
        self.energy = torch.zeros(outputs, **new)

    def add(self, features: Tensor, residual: Tensor, weights: Tensor) -> None:
        """Count in float32 features [T, k], residual [T, d] and weights [T]."""
        weighted = features * weights[:, None]
        self.gram += (weighted.T @ features).to(self.gram)
        self.cross += (weighted.T @ residual).to(self.gram)
        self.energy += (residual * residual * weights[:, None]).sum(0).to(self.gram)

    def __add__(self, other: "Normal") -> "Normal":
        self.gram += other.gram
        self.cross += other.cross
        self.energy += other.energy
        return self

    def solve(self, ridge: float, through: Tensor | None = None) -> Tensor:
        """The correction D [k, d] float64; with `through` [k, m] only those of the form `through` @ T."""
        gram, cross = self.gram, self.cross
        if through is not None:
            gram, cross = through.T @ gram @ through, through.T @ cross
        damped = gram.clone()
        damped.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-30))
        found = torch.cholesky_solve(cross, torch.linalg.cholesky(damped))
        return found if through is None else through @ found

    def error(self, correction: Tensor, columns: Tensor) -> float:
        """Weighted squared error left after `correction` [k, d]; output dimensions count with `columns` [d]."""
        squares = (correction * (self.gram @ correction - 2 * self.cross)).sum(0) + self.energy
        return float((squares * columns).sum())
