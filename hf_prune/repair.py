"""Closed-form repair: the weights that stay are refitted, by least squares, towards what the dense model computed.

Behind every output layer the dense model has a hidden state at the same place; a cut makes the two differ. The last map
of a layer's MLP (down_proj) adds g W to the residual stream, so the correction that brings the stream nearest to the
dense one is a linear regression of the difference R on g, with a ridge towards the old weights:

    D = argmin sum_t w_t |g_t D - R_t|^2 + ridge |D|^2,  W' = W + D

Layers are taken in order, each on the already repaired path, so later ones also correct what earlier ones left over.
`map` is ReplaceMe's form (arXiv 2505.02819): one matrix behind the MLP, folded into W. No training, no new parameters.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_prune.assemble import layer_tensors
from hf_prune.bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, LayerSpec
from hf_prune.reference import Call, Dense

Reach = Literal["map", "gap", "all"]
REACHES: tuple[Reach, ...] = get_args(Reach)
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges tried, as shares of the mean diagonal of the normal equations."""
LINEAR = 0.05
"""Largest relative deviation at which a layer counts as linear in what its MLP adds."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What became of one output layer.

    `before`, `after`: weighted squared distance to the dense state on the held-out windows, as a share of the dense
    state's own weighted square; `ridge` is None where the old weights stay.
    """

    layer: int
    tensor: str
    ridge: float | None
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Repaired:
    """A blueprint whose repaired layers name their weights by digest, and those fits."""

    blueprint: Blueprint
    fits: tuple[Fit, ...]


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
        self.gram += weighted.T @ features
        self.cross += weighted.T @ residual
        self.energy += (residual * residual * weights[:, None]).sum(0)

    def solve(self, ridge: float, through: Tensor | None = None) -> Tensor:
        """The correction D [k, d] float64; with `through` [k, m] only those of the form `through` @ T."""
        gram, cross = self.gram, self.cross
        if through is not None:
            gram, cross = through.T @ gram @ through, through.T @ cross
        damped = gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * (ridge * gram.diagonal().mean())
        found = torch.linalg.solve(damped, cross)
        return found if through is None else through @ found

    def error(self, correction: Tensor, columns: Tensor) -> float:
        """Weighted squared error that is left after `correction` [k, d], output dimensions weighted by `columns` [d]."""
        squares = (correction * (self.gram @ correction - 2 * self.cross)).sum(0) + self.energy
        return float((squares * columns).sum())


@dataclass(frozen=True, eq=False)
class Site:
    """The map of a layer that is refitted, and how its output reaches the residual stream.

    path: of the module inside the layer. weight: float64 [k, d] in the checkpoint's precision, the bias as a last row
    where there is one. norm: what its output passes on the way, if anything. factor: what it is multiplied by.
    """

    path: str
    module: torch.nn.Module
    weight: Tensor
    norm: torch.nn.Module | None
    factor: float

    @property
    def biased(self) -> bool:
        """Whether the last row of `weight` is a bias."""
        return self.module.bias is not None

    @cached_property
    def columns(self) -> Tensor:
        """Scale of each output dimension on the way to the stream, float32 [d]."""
        ones = torch.ones_like(self.weight[0])
        if self.norm is None:
            return (ones * self.factor).float()
        # An RMS norm of ones is its own weight.
        scale = self.norm(ones.to(next(self.norm.parameters()).dtype)).float()
        floor = 1e-3 * scale.abs().mean()
        return torch.where(scale.abs() < floor, floor.copysign(scale), scale)

    def features(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """float32 [T, k] of the module's inputs and outputs; a norm is linearised: its divisor is held fixed."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        if self.biased:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        if self.norm is None:
            return rows
        return rows * outputs.reshape(len(rows), -1).float().square().mean(1, keepdim=True).rsqrt()

    def tensors(self, correction: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The corrected tensors by their names in the layer, in shape and dtype of `like`."""
        new = self.weight + correction.to(self.weight.device)
        name = f"{self.path}.weight"
        weight = new[:-1] if self.biased else new
        found = {name: weight if _transposed(self.module) else weight.T}
        if self.biased:
            found[f"{self.path}.bias"] = new[-1]
        return {n: t.to(like[n].dtype).cpu().contiguous() for n, t in found.items()}


def repair(
    dense: Dense,
    bank: LayerBank,
    blueprint: Blueprint,
    fit: Tensor,
    held: Tensor,
    *,
    reach: Reach = "all",
    ridges: Sequence[float] = RIDGES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Repaired:
    """Refit the layers of a cut model, first to last.

    Two paths walk side by side, the dense one and the repaired one, so that two hidden states per window are held,
    whatever the depth. A layer keeps its old weights unless the new ones bring the held-out windows nearer.

    Args:
        dense: the dense model.
        bank: makes the layers, and keeps the repaired weights afterwards.
        blueprint: the cut model.
        fit: int64 [N, T] windows that the weights are fitted on.
        held: int64 [M, T] windows, disjoint from `fit`, that choose the ridge and judge the result.
        reach: `map` and `gap` refit only layers before a gap, the first in ReplaceMe's form; `all` refits every layer.
        ridges: candidates for the ridge, as shares of the mean diagonal.
        progress: told layers done and layers in all.
    """
    blueprint = blueprint.canonical()
    walk = _Walk(dense, torch.cat([fit, held]), len(fit))
    layers, fits = [], []
    for number, (spec, end) in enumerate(zip(blueprint.layers, _ends(blueprint, len(dense.layers)), strict=True)):
        gap = end > walk.place + 1
        walk.advance(end)
        found = None
        if gap or reach == "all":
            found = _refitted(walk, bank, spec, reach, ridges)
        if found is None:
            walk.follow(bank.module(spec), spec)
        else:
            spec, fitted = found
            fits.append(replace(fitted, layer=number))
        layers.append(spec)
        progress(number + 1, len(blueprint.layers))
    return Repaired(replace(blueprint, layers=tuple(layers)), tuple(fits))


class _Walk:
    """The dense and the repaired state of all windows, [N, T, d] each; `place`: source layers the dense one passed."""

    @torch.inference_mode()
    def __init__(self, dense: Dense, tokens: Tensor, fitted: int) -> None:
        self.dense, self.fitted, self.place = dense, fitted, 0
        tokens = tokens.to(dense.device)
        self.calls = dense.record(tokens[:1])[0]
        self.original = torch.cat([dense.embed(tokens[rows]) for rows in dense.tiles(tokens, dense.tile_tokens)])
        self.state = self.original

    @torch.inference_mode()
    def advance(self, end: int) -> None:
        """Take the dense path through source layers up to `end`."""
        while self.place < end:
            layer, call = self.dense.layers[self.place], self.calls[self.place]
            self.original = self.dense.apply(layer, [self.original], call)[0][0]
            self.place += 1

    @torch.inference_mode()
    def follow(self, layer: torch.nn.Module, spec: LayerSpec) -> Tensor:
        """Take the repaired path through one output layer; returns the state before it."""
        before = self.state
        self.state = self.dense.apply(layer, [before], self.call(spec))[0][0]
        return before

    def call(self, spec: LayerSpec) -> Call:
        """What a layer is given besides its state."""
        return self.calls[spec.anchor.layer]

    def tiles(self, held: bool) -> Iterator[slice]:
        """Row ranges of the fitted or of the held-out windows."""
        first, part = (self.fitted, self.original[self.fitted :]) if held else (0, self.original[: self.fitted])
        for rows in self.dense.tiles(part, self.dense.tile_tokens):
            yield slice(first + rows.start, first + rows.stop)

    def error(self) -> tuple[float, float]:
        """Weighted squared distance of the two paths on the held-out windows, and the dense state's own square."""
        distance, square = 0.0, 0.0
        for rows in self.tiles(held=True):
            weights, target = token_weights(self.original[rows]), self.original[rows].flatten(0, 1).float()
            off = target - self.state[rows].flatten(0, 1).float()
            distance += float((weights * off.square().sum(1)).sum(dtype=torch.float64))
            square += float((weights * target.square().sum(1)).sum(dtype=torch.float64))
        return distance, square


def token_weights(target: Tensor) -> Tensor:
    """float32 [tokens], 1 / |h|: what follows normalises every token, and attention sinks are a hundred times as long."""
    return 1 / target.flatten(0, -2).float().norm(dim=1).clamp_min(1e-6)


@torch.inference_mode()
def _refitted(
    walk: _Walk, bank: LayerBank, spec: LayerSpec, reach: Reach, ridges: Sequence[float]
) -> tuple[LayerSpec, Fit] | None:
    """Refit one layer, and walk through it; None when it has nothing to refit (the caller walks then)."""
    like = {n: read() for n, read in layer_tensors(spec, bank.parents, bank.patches)}
    site = _site(bank.module(spec), spec, walk, like)
    if site is None:
        return None
    start = walk.state
    fitting, holding = _equations(walk, bank.module(spec), spec, site)
    unrepaired, (before, square) = walk.state, walk.error()
    columns = site.columns.double().square()
    through = site.weight if reach == "map" else None
    options = [(fitting.solve(ridge, through), ridge) for ridge in ridges]
    correction, ridge = min(options, key=lambda o: holding.error(o[0], columns))
    new = bank.repaired(spec, site.tensors(correction, like))
    walk.state = start
    walk.follow(bank.module(new), new)
    after = walk.error()[0]
    if after < before:
        return new, Fit(0, site.path, ridge, before / square, after / square)
    walk.state = unrepaired
    bank.forget(new)
    return spec, Fit(0, site.path, None, before / square, before / square)


def _equations(walk: _Walk, layer: torch.nn.Module, spec: LayerSpec, site: Site) -> tuple[Normal, Normal]:
    """Normal equations of the fitted and of the held-out windows, gathered while walking through the layer."""
    both = tuple(Normal(*site.weight.shape, walk.dense.device) for _ in range(2))
    outs = torch.empty_like(walk.state)
    for normal, rows in [(both[held], rows) for held in (False, True) for rows in walk.tiles(held)]:
        outs[rows], inputs, outputs = _tapped(layer, site.module, walk.state[rows], walk.call(spec))
        target = walk.original[rows]
        residual = (target.float() - outs[rows].float()).flatten(0, -2) / site.columns
        normal.add(site.features(inputs, outputs), residual, token_weights(target))
    walk.state = outs
    return both


def _site(layer: torch.nn.Module, spec: LayerSpec, walk: _Walk, like: Mapping[str, Tensor]) -> Site | None:
    """The last map of the MLP, or of the attention where the MLP is gone; None when nothing linear ends the layer."""
    family = walk.dense.family
    if spec.mlp_level == GONE:
        path, norm = family.attention_out, family.attention_norm
    else:
        path, norm = family.mlp_out, family.mlp_norm
    if f"{path}.weight" not in like or spec.attn_level == spec.mlp_level == GONE:
        return None
    module = layer.get_submodule(path)
    weight = like[f"{path}.weight"].to(walk.dense.device, torch.float64)
    weight = weight if _transposed(module) else weight.T
    if module.bias is not None:
        weight = torch.cat([weight, like[f"{path}.bias"].to(weight)[None]])
    factor = 1.0 if norm else _factor(layer, module, walk.state[:1], walk.call(spec))
    return factor and Site(path, module, weight, layer.get_submodule(norm) if norm else None, factor)


def _factor(layer: torch.nn.Module, module: torch.nn.Module, state: Tensor, call: Call) -> float | None:
    """What the module's output is multiplied by on its way to the stream (Granite: 0.22); None if it is not linear."""
    out, _, output = _tapped(layer, module, state, call)
    twice, _, _ = _tapped(layer, module, state, call, lambda y: 2 * y)
    added, output = (twice.float() - out.float()).flatten(), output.float().flatten()
    factor = float(added @ output / output.square().sum().clamp_min(1e-30))
    near = float((added - factor * output).norm()) <= LINEAR * abs(factor) * float(output.norm())
    return factor if near else None


def _tapped(
    layer: torch.nn.Module,
    module: torch.nn.Module,
    state: Tensor,
    call: Call,
    change: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's output, and input and output of one of its modules, whose output may be changed on the way."""
    seen: list[Tensor] = []

    def note(_: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        seen[:] = inputs[0], output
        return change(output) if change else None

    hook = module.register_forward_hook(note)
    try:
        out = layer(state, *call[0], **call[1])
    finally:
        hook.remove()
    return (out[0] if isinstance(out, tuple) else out), *seen


def _ends(blueprint: Blueprint, depth: int) -> list[int]:
    """For every output layer the source layer before which the dense state is its target: where the next one begins."""
    begins = [min(p.layer for p in s.parts) for s in blueprint.layers[1:]] + [depth]
    ends, reached = [], 0
    for spec, begin in zip(blueprint.layers, begins, strict=True):
        # Repeated layers ask for no target behind what has been reached.
        reached = max(reached, max(p.layer for p in spec.parts) + 1, begin)
        ends.append(reached)
    return ends


def _transposed(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
