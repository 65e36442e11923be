"""Optimal brain surgeon on the inputs of a linear map (Hassibi & Stork 1993; groups: ZipLM, arXiv 2302.04089).

W [d, k] maps inputs x with H = E x x^T. When the inputs R go, the best weights of those that stay are
W_K* = W H[:, K] H[K, K]^-1, and the loss tr((W - W*) H (W - W*)^T) grows by tr(W_g (P_gg)^-1 W_g^T) for one group g,
with P = H^-1. The order in which groups go needs P and the Gram matrix W^T W alone, never W: both lose a group by
updates of low rank, which are gathered and applied as matrix products. With the inputs sorted in that order, all nested
levels come out of one Cholesky factorisation of P.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean (DarwinLM, arXiv 2502.07780)."""
BLOCK = 64
"""Single inputs whose updates are gathered."""
SHRINK = 0.85
"""Share of live inputs below which the matrices are made smaller."""


@dataclass(frozen=True, eq=False)
class Order:
    """Groups as they go, first to last: int64 [groups]; `losses` float64 [groups]: the loss once each has gone."""

    groups: Tensor
    losses: Tensor

    def columns(self, unit: int) -> Tensor:
        """Inputs as they go, int64 [groups * unit]."""
        return (self.groups[:, None] * unit + torch.arange(unit)).flatten()


def damped(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """H with `damping` times its mean diagonal added; inputs that never occur get a diagonal of one."""
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    share = damping * diagonal[~dead].mean() if bool((~dead).any()) else 0.0
    return hessian + torch.diag(torch.where(dead, torch.ones_like(diagonal), share * torch.ones_like(diagonal)))


def inverse(hessian: Tensor) -> Tensor:
    """H^-1 of a damped Hessian, by Cholesky."""
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


def removal_order(weight: Tensor, hessian: Tensor, unit: int = 1) -> Order:
    """The greedy order: each time the group goes that costs least, given what has gone.

    Args:
        weight: [d, k].
        hessian: [k, k], damped; its dtype is that of the computation.
        unit: neighbouring inputs that go together; divides k.
    """
    weight = weight.to(hessian.dtype)
    gram, inverted = weight.T @ weight, inverse(hessian)
    # Inputs that never occur carry no weight, whatever is stored.
    dead = (hessian.abs().sum(0) - hessian.diagonal().abs() == 0) & (hessian.diagonal() == 1)
    gram[dead], gram[:, dead] = 0, 0
    groups, costs = _singles(gram, inverted) if unit == 1 else _groups(gram, inverted, unit)
    return Order(torch.tensor(groups), torch.tensor(costs, dtype=torch.float64).clamp_min(0).cumsum(0))


def _singles(gram: Tensor, inverted: Tensor) -> tuple[list[int], list[float]]:
    """Pivots of a block are chosen one by one from up-to-date diagonals; the matrices are updated once per block."""
    names = torch.arange(len(gram), device=gram.device)
    live = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    order, costs = [], []
    while bool(live.any()):
        count = min(BLOCK, int(live.sum()))
        change = _Block(gram, inverted, live, count)
        for step in range(count):
            pivot, cost = change.remove(step)
            order.append(int(names[pivot]))
            costs.append(cost)
        change.apply()
        if int(live.sum()) < SHRINK * len(live):
            kept = live.nonzero().squeeze(1)
            gram, inverted, names, live = gram[kept][:, kept], inverted[kept][:, kept], names[kept], live[kept]
    return order, costs


class _Block:
    """Removals not yet applied: P' = P - D diag(s) D^T and G' = G - A D^T - D A^T."""

    def __init__(self, gram: Tensor, inverted: Tensor, live: Tensor, count: int) -> None:
        self.gram, self.inverted, self.live = gram, inverted, live
        self.diagonals = gram.diagonal().clone(), inverted.diagonal().clone()
        # Rows are steps, so that what is gathered so far is one contiguous piece.
        self.d, self.a = (gram.new_zeros(count, len(gram)) for _ in range(2))
        self.s = gram.new_zeros(count)

    def remove(self, step: int) -> tuple[int, float]:
        """The cheapest live input goes; its number and its cost."""
        g, p = self.diagonals
        scores = torch.where(self.live, g / p, torch.inf)
        q = int(scores.argmin())
        before, mine = self.d[:step], self.d[:step, q]
        column = self.inverted[q] - (self.s[:step] * mine) @ before
        gram = self.gram[q] - mine @ self.a[:step] - self.a[:step, q] @ before
        d = column / column[q]
        a = gram - gram[q] / 2 * d
        cost = float(gram[q] / column[q])
        self.d[step], self.a[step], self.s[step] = d, a, column[q]
        p -= d * d * column[q]
        g -= 2 * a * d
        self.live[q] = False
        return q, cost

    def apply(self) -> None:
        """Bring both matrices up to date, dead rows and columns included, which nobody reads."""
        self.inverted.addmm_((self.d * self.s[:, None]).T, self.d, alpha=-1)
        self.gram.addmm_(self.a.T, self.d, alpha=-1).addmm_(self.d.T, self.a, alpha=-1)


def _groups(gram: Tensor, inverted: Tensor, unit: int) -> tuple[list[int], list[float]]:
    names = list(range(len(gram) // unit))
    order, costs = [], []
    while names:
        blocks = [
            m.unflatten(0, (-1, unit)).unflatten(2, (-1, unit)).diagonal(dim1=0, dim2=2) for m in (gram, inverted)
        ]
        mine, theirs = (b.permute(2, 0, 1) for b in blocks)
        scores = torch.linalg.solve(theirs, mine).diagonal(dim1=1, dim2=2).sum(1)
        q = int(scores.argmin())
        order.append(names.pop(q))
        costs.append(float(scores[q]))
        at = slice(q * unit, (q + 1) * unit)
        d = torch.linalg.solve(inverted[at, at], inverted[at]).T
        gram = gram - gram[:, at] @ d.T - d @ gram[at] + d @ gram[at, at] @ d.T
        inverted = inverted - d @ inverted[at]
        stay = torch.cat([torch.arange(at.start), torch.arange(at.stop, len(gram))]).to(gram.device)
        gram, inverted = gram[stay][:, stay], inverted[stay][:, stay]
    return order, costs


def increments(hessian: Tensor, columns: Tensor, kept: Sequence[int]) -> tuple[Tensor, ...]:
    """What turns the weights of one level into those of the next: W_i = W_(i-1)[:, K_i] - W_(i-1)[:, R_i] B_i.

    Args:
        hessian: [k, k], damped.
        columns: int64 [k], inputs in the order in which they go.
        kept: inputs left at each level, falling, above 0.

    Returns:
        B_i, [inputs that go at level i, inputs left], both in the order of `columns`.
    """
    inverted = inverse(hessian)[columns][:, columns]
    factor = torch.linalg.cholesky(inverted)
    bounds = [0, *(len(columns) - n for n in kept)]
    found = []
    for first, last in zip(bounds, bounds[1:], strict=False):
        corner, below = factor[first:last, first:last], factor[last:, first:last]
        found.append(torch.linalg.solve_triangular(corner.T, below.T, upper=True))
    return tuple(found)


def compensated(weight: Tensor, columns: Tensor, steps: Sequence[Tensor]) -> Tensor:
    """The weights after those increments, [d, inputs left], inputs in the order of `columns`; float32 or better."""
    now = weight[:, columns].to(torch.promote_types(weight.dtype, torch.float32))
    for step in steps:
        gone = len(step)
        now = torch.addmm(now[:, gone:], now[:, :gone], step.to(now), alpha=-1)
    return now
