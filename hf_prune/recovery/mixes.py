"""Weights of a stitched model's mixes by gradient descent: what a search in steps leaves on the table.

And those of its repair: how much of each half's correction the model takes, where one share for all is too coarse.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Mix, Part
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.recovery.descent import Sum, descend
from hf_prune.recovery.repair import Shares

RATE = 0.02
"""Of the first step, in shares of a layer."""
DIGITS = 3

Progress = Callable[[int, int, float], None]
"""Told (steps done, steps, loss of the last)."""


@dataclass(frozen=True, slots=True)
class TunedMixes:
    """The model with its new mixes, and the loss before every step (`Descended`)."""

    blueprint: Blueprint
    losses: tuple[float, ...]


def tunable(spec: LayerSpec) -> bool:
    """Whether a layer is a sum of whole layers and nothing else."""
    plain = spec.library is None and spec.repair is None and spec.norms is None
    return plain and spec.merge == "linear" and (spec.mlp is None or spec.mlp.merge == "linear")


def tune(
    evaluator: Evaluator,
    blueprint: Blueprint,
    evidence: Fidelity,
    steps: int,
    progress: Progress = lambda done, total, loss: None,
    state: Path | None = None,
) -> TunedMixes:
    """Learn the mixes of every layer that is a sum; other arguments are those of `descend`.

    Args:
        blueprint: canonical.
    """
    if not steps:
        return TunedMixes(blueprint, ())
    numbered = blueprint.over(evaluator.bank.sources)
    sums = [_mixture(evaluator.bank, spec) for spec in numbered.layers]
    done = descend(evaluator, numbered, sums, evidence, steps, RATE, progress, state)
    layers = tuple(_mixed(total, weights) for total, weights in zip(sums, done.weights, strict=True))
    return TunedMixes(replace(numbered, layers=layers).canonical(), done.losses)


def tune_repair(
    evaluator: Evaluator,
    repaired: Blueprint,
    strength: float,
    evidence: Fidelity,
    steps: int,
    progress: Progress = lambda done, total, loss: None,
    state: Path | None = None,
) -> Shares:
    """Learn how much of each correction serves best, from the same `strength` of all on; they may leave 0 .. 1.

    Other arguments are those of `descend`.

    Args:
        repaired: its repair in full.
    """
    numbered = repaired.over(evaluator.bank.sources)
    sums = [_correction(spec, strength) for spec in numbered.layers]
    done = descend(evaluator, numbered, sums, evidence, steps, RATE, progress, state)
    learned = [weights if weights is None else weights[:, 1].tolist() for weights in done.weights]
    return tuple((1.0, 1.0) if row is None else tuple(round(share, DIGITS) for share in row) for row in learned)


def _correction(spec: LayerSpec, strength: float) -> Sum:
    """A refitted layer as the sum of what it was and what it became."""
    if not spec.repair:
        return Sum(spec)
    return Sum(spec, (replace(spec, repair=None), spec), torch.tensor([[1 - strength, strength]] * 2))


def midway(searched: Blueprint, learned: Blueprint, share: float) -> Blueprint:
    """Of two models that differ in nothing but their mixes, the one that is `share` of the way from the first."""
    sources = tuple(dict.fromkeys(searched.sources + learned.sources))
    first, last = searched.over(sources), learned.over(sources)
    layers = tuple(_midway(a, b, share) for a, b in zip(first.layers, last.layers, strict=True))
    return replace(first, layers=layers).canonical()


def _midway(first: LayerSpec, last: LayerSpec, share: float) -> LayerSpec:
    if not tunable(first):
        return first
    ends = zip(_mixes(first), _mixes(last), strict=True)
    parts, mlp = (_scaled(here, 1 - share) + _scaled(there, share) for here, there in ends)
    return replace(first, parts=parts, mlp=Mix(mlp))


def _mixes(spec: LayerSpec) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Of attention and MLP."""
    return spec.parts, spec.mlp.parts if spec.mlp else spec.parts


def _scaled(parts: tuple[Part, ...], share: float) -> tuple[Part, ...]:
    return tuple(replace(part, weight=share * part.weight) for part in parts)


def _mixture(bank: LayerBank, spec: LayerSpec) -> Sum:
    """A layer as the sum of what it is mixed from and of its counterparts in all parents."""
    if not tunable(spec):
        return Sum(spec)
    mixes = _mixes(spec)
    mine = [(part.source, part.layer) for parts in mixes for part in parts]
    everywhere = [(source, spec.anchor.layer) for source in range(len(bank.parents))]
    keys = tuple(dict.fromkeys([*everywhere, *mine]))
    given = [{(p.source, p.layer): p.weight for p in parts} for parts in mixes]
    weights = torch.tensor([[mix.get(key, 0.0) for key in keys] for mix in given])
    return Sum(spec, tuple(LayerSpec((Part(*key),)) for key in keys), weights)


def _mixed(total: Sum, weights: Tensor | None) -> LayerSpec:
    """The layer as a spec, weights rounded."""
    if weights is None:
        return total.spec
    parts, mlp = (_parts(total, row) for row in weights.double())
    return replace(total.spec, parts=parts, mlp=Mix(mlp))


def _parts(total: Sum, row: Tensor) -> tuple[Part, ...]:
    shares = [round(float(w), DIGITS) for w in row]
    heaviest = max(range(len(shares)), key=lambda k: shares[k])
    shares[heaviest] = round(shares[heaviest] + 1 - sum(shares), DIGITS)
    return tuple(replace(t.anchor, weight=w) for t, w in zip(total.terms, shares, strict=True) if w)
