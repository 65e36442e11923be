"""Closed-form repair: the weights that stay are refitted, by least squares, towards what the dense model computed.

Behind every output layer the dense model has a hidden state at the same place; a cut makes the two differ. The last map
of a layer's MLP (down_proj) adds g W to the residual stream, so the correction that brings the stream nearest to the
dense one is a linear regression of the difference R on g, with a ridge towards the old weights:

    D = argmin sum_t w_t |g_t D - R_t|^2 + ridge |D|^2,  W' = W + D

Layers are taken in order, each on the already repaired path, so later ones also correct what earlier ones left over.
Where that ends nearer to the dense model, the last map of the attention (o_proj) is refitted first, towards the dense
state between the halves. `map` is ReplaceMe's form (arXiv 2505.02819): one matrix behind the MLP, folded into W.
No training, no new parameters.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_prune.assembly.assemble import layer_tensors
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part, all_parts
from hf_prune.evaluation.dense import Call, Dense
from hf_prune.evaluation.residual_maps import Site, Tap, factor_of, site_of
from hf_prune.evaluation.ridge import Normal, token_weights
from hf_prune.evaluation.teachers import Teachers
from hf_prune.recovery.expert_repair import Routed, refit_experts

Reach = Literal["map", "gap", "all"]
REACHES: tuple[Reach, ...] = get_args(Reach)
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges tried, as shares of the mean diagonal of the normal equations."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Shares of a repair that are tried where answers count beside text."""
Shares = Sequence[tuple[float, float]]
"""Of a repair, by layer: how much of its attention's correction is taken, and of its MLP's."""
LANES, LANE_SIZE = 4, 1 << 22
"""Sums of normal equations that run side by side, while they have fewer entries than what fills all cores with one."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What became of one output layer: `ridges` by refitted module, none where the old weights stay.

    `before`, `after`: weighted squared distance to the dense state on the held-out windows, as a share of the dense
    state's own weighted square.
    """

    layer: int
    ridges: Mapping[str, float]
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class RepairedCut:
    """A blueprint whose repaired layers name their weights by digest, and those fits."""

    blueprint: Blueprint
    fits: tuple[Fit, ...]

    def to_json(self) -> str:
        """JSON text; the weights are not in it."""
        return json.dumps({"blueprint": self.blueprint.to_json(), "fits": [asdict(f) for f in self.fits]})

    @classmethod
    def from_json(cls, text: str) -> "RepairedCut":
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        return cls(Blueprint.from_json(raw["blueprint"]), tuple(Fit(**f) for f in raw["fits"]))


Pair = tuple[Normal, Normal]
"""Of the fitted and of the held-out windows."""


def repair(
    bank: LayerBank,
    blueprint: Blueprint,
    fit: Tensor,
    held: Tensor,
    *,
    reach: Reach = "all",
    ridges: Sequence[float] = RIDGES,
    teachers: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RepairedCut:
    """Refit the layers of a cut model, first to last.

    Two paths walk side by side, the dense one and the repaired one, so that a few hidden states per window are held,
    whatever the depth. A layer keeps its old weights unless the new ones bring the held-out windows nearer.

    Args:
        bank: holds the dense model, makes the layers, and keeps the repaired weights afterwards.
        blueprint: the cut model.
        fit: int64 [N, T] windows that the weights are fitted on.
        held: int64 [M, T] windows, disjoint from `fit`, that choose the ridge and judge the result.
        reach: `map` and `gap` refit only layers before a gap, the first in ReplaceMe's form; `all` refits every layer.
        ridges: candidates for the ridge, as shares of the mean diagonal.
        teachers: number of the parent whose states each window aims at, [N + M]; None: the first.
        progress: told layers done and layers in all.
    """
    blueprint = blueprint.over(bank.sources)
    dense, tokens = Dense(bank.model, bank.parents[0].family), torch.cat([fit, held])
    walk = _Walk(Teachers.of(bank, dense, len(tokens), teachers), tokens, len(fit), blueprint.embed)
    layers, fits = [], []
    for spec, end in zip(blueprint.layers, _ends(blueprint, len(dense.layers)), strict=True):
        gap = end > walk.place + 1
        same = walk.state is walk.original
        if same and spec == LayerSpec((Part(0, walk.place),)) and not gap:
            walk.advance(end)
            walk.state = walk.original
            layers.append(spec)
            continue
        # Where nothing is lost yet, the layer before a gap aims at what the last removed one had between its halves.
        anchor = end - 1 if same else spec.anchor.layer
        between = walk.advance(end, anchor if reach == "all" else None)
        way = _refitted(walk, bank, spec, reach, ridges, between) if gap or reach == "all" else None
        if way is None:
            walk.state = walk.through(bank.module(spec), spec)
        else:
            walk.state, spec = way.state, way.spec
            fits.append(Fit(len(layers), way.ridges, way.before, way.error))
        layers.append(spec)
        progress(len(layers), len(blueprint.layers))
    return RepairedCut(replace(blueprint, layers=tuple(layers)), tuple(fits))


def evenly(repaired: Blueprint, strength: float) -> Shares:
    """The same share of every correction."""
    return ((strength, strength),) * len(repaired.layers)


def weaken(bank: LayerBank, repaired: Blueprint, shares: Shares) -> Blueprint:
    """The same repair, taken part of the way: W + share (W' - W) in every refitted map; the bank keeps the weights.

    Least squares draws states towards their mean where it cannot tell them, which is likeliest text, but tells options
    apart less.
    """
    half, layers = bank.parents[0].family.half, []
    for spec, (attention, mlp) in zip(repaired.layers, shares, strict=True):
        if spec.repair:
            whole, plain = bank.patches[spec.repair], replace(spec, repair=None)
            before, part = bank.owned(plain).state_dict(), {}
            for name, tensor in whole.items():
                share = mlp if half(name) == "mlp" else attention
                part[name] = torch.lerp(before[name].cpu().float(), tensor.float(), share).to(tensor.dtype)
            spec = bank.repaired(plain, part)
        layers.append(spec)
    return replace(repaired, layers=tuple(layers))


class _Walk:
    """The dense and the repaired state of all windows, [N, T, d] each; `place`: source layers the dense one passed."""

    @torch.inference_mode()
    def __init__(self, teachers: Teachers, tokens: Tensor, fitted: int, embed: int = 0) -> None:
        self.teachers, self.dense, self.fitted, self.place = teachers, teachers.dense, fitted, 0
        tokens = tokens.to(self.dense.device)
        self.calls = self.dense.record(tokens[:1])[1]
        self.original = teachers.enter(tokens)
        self.state = self.original
        if teachers.several or embed:
            self.state = Teachers.of(teachers.bank, self.dense, len(tokens), [embed] * len(tokens)).enter(tokens)

    @torch.inference_mode()
    def advance(self, end: int, anchor: int | None = None) -> Tensor | None:
        """Take the dense path through source layers up to `end`.

        Returns:
            The dense state between the halves of layer `anchor`; None without one, or when the path is past it.
        """
        between = None
        while self.place < end:
            call = self.calls[self.place]
            if self.place == anchor:
                between = self.teachers.between(self.place, self.original, call)
            self.original = self.teachers.step(self.place, self.original, call)
            self.place += 1
        return between

    @torch.inference_mode()
    def through(self, layer: torch.nn.Module, spec: LayerSpec) -> Tensor:
        """What one output layer makes of the repaired state."""
        return self.dense.apply(layer, [self.state], self.call(spec))[0][0]

    def site(self, bank: LayerBank, spec: LayerSpec, path: str | None, norm: str | None) -> Site | None:
        """A map of an output layer that can be refitted."""
        stored, layer = layer_tensors(spec, bank.parents, bank.patches), bank.module(spec)
        family = self.dense.family.of_layer(layer.state_dict())
        return site_of(layer, family, stored, self.state[:1], self.call(spec), path, norm)

    def call(self, spec: LayerSpec) -> Call:
        """What a layer is given besides its state."""
        return self.calls[spec.anchor.layer]

    def tiles(self, held: bool) -> Iterator[slice]:
        """Row ranges of the fitted or of the held-out windows."""
        first, part = (self.fitted, self.original[self.fitted :]) if held else (0, self.original[: self.fitted])
        for rows in self.dense.tiles(part, self.dense.tile_tokens):
            yield slice(first + rows.start, first + rows.stop)

    def error(self, state: Tensor) -> float:
        """Weighted squared distance of `state` to the dense one on the held-out windows, share of the latter's own."""
        distance = square = 0.0
        for rows in self.tiles(held=True):
            weights, target = token_weights(self.original[rows]), self.original[rows].flatten(0, 1).float()
            off = target - state[rows].flatten(0, 1).float()
            distance += float((weights * off.square().sum(1)).sum(dtype=torch.float64))
            square += float((weights * target.square().sum(1)).sum(dtype=torch.float64))
        return distance / square


@dataclass(frozen=True, eq=False)
class _Way:
    """One way to go on: a layer, the state behind it and its distance to the dense one; `before` is unrepaired."""

    spec: LayerSpec
    state: Tensor
    error: float
    before: float
    ridges: Mapping[str, float]


@torch.inference_mode()
def _refitted(
    walk: _Walk, bank: LayerBank, spec: LayerSpec, reach: Reach, ridges: Sequence[float], between: Tensor | None
) -> _Way | None:
    """The nearest of: the old weights, the last map refitted, the attention's map and then the last one refitted."""
    layer = bank.module(spec)
    family = walk.dense.family.of_layer(layer.state_dict())
    mlp = None if spec.mlp_level == GONE else walk.site(bank, spec, family.mlp_out, family.mlp_norm)
    attention = None
    if spec.attn_level != GONE and (mlp is None or between is not None):
        attention = walk.site(bank, spec, family.attention_out, family.attention_norm)
    last = mlp or attention
    if last is None:
        return _alone(walk, bank, spec, ridges) if reach == "all" else None
    aims = [(last, walk.original)] + ([(attention, between)] if mlp and attention else [])
    equations, state = _equations(walk, layer, spec, aims)
    before = walk.error(state)
    ways = [_Way(spec, state, before, before, {})]
    # They are large, and the next ones are made while these are not needed any more.
    new, ridge = _solved(bank, spec, last, equations.pop(0), reach, ridges)
    state = walk.through(bank.module(new), spec)
    ways.append(_Way(new, state, walk.error(state), before, {last.path: ridge}))
    if len(aims) > 1:
        ways += _both(walk, bank, spec, attention, equations.pop(0), ridges, before)
    if reach == "all":
        ways += _with_experts(walk, bank, min(ways, key=lambda way: way.error), ridges)
    best = min(ways, key=lambda way: way.error)
    for way in ways:
        if way.spec.repair != best.spec.repair:
            bank.forget(way.spec)
    return best


def _alone(walk: _Walk, bank: LayerBank, spec: LayerSpec, ridges: Sequence[float]) -> _Way | None:
    """The experts of a layer refitted, where neither of its halves has a map that can be."""
    state = walk.through(bank.module(spec), spec)
    before = walk.error(state)
    plain = _Way(spec, state, before, before, {})
    ways = [plain, *_with_experts(walk, bank, plain, ridges)]
    return min(ways, key=lambda way: way.error) if len(ways) > 1 else None


def _with_experts(walk: _Walk, bank: LayerBank, way: _Way, ridges: Sequence[float]) -> list[_Way]:
    """The experts of a layer refitted on top; nothing where it has none, or none could be."""
    mixture, spec = bank.parents[0].mixture, way.spec
    if mixture is None or spec.anchor.layer not in mixture.layers or spec.mlp_level == GONE or spec.library:
        return []
    layer, call, path = bank.owned(spec), walk.call(spec), mixture.routing.experts
    experts = layer.get_submodule(path)
    factor = factor_of(layer, experts, walk.state[:1], call)
    if factor is None:
        return []
    given = []
    with Tap(layer, [experts]) as tap:
        for rows in walk.dense.tiles(walk.state, walk.dense.tile_tokens):
            tap.run(walk.state[rows], call)
            given.append(tap.inputs(experts)[:3])
    routed = Routed(*(torch.cat(parts) for parts in zip(*given, strict=True)))
    residual = (walk.original.float() - way.state.float()).flatten(0, 1)
    fitted = walk.fitted * walk.state.shape[1]
    stack, found = refit_experts(experts, routed, factor, residual, token_weights(walk.original), fitted, ridges)
    if not found:
        return []
    earlier = bank.patches.get(spec.repair, {})
    new = bank.repaired(spec, {**earlier, f"{path}.down_proj": stack.cpu()})
    state = walk.through(bank.module(new), new)
    told = {f"{path}.{expert}": ridge for expert, ridge in found.items()}
    return [_Way(new, state, walk.error(state), way.before, {**way.ridges, **told})]


def _both(
    walk: _Walk,
    bank: LayerBank,
    spec: LayerSpec,
    attention: Site,
    equations: Pair,
    ridges: Sequence[float],
    before: float,
) -> list[_Way]:
    """The attention's map refitted, and then the MLP's on top."""
    family = walk.dense.family.of_layer(bank.module(spec).state_dict())
    first, ridge = _solved(bank, spec, attention, equations, "all", ridges)
    mlp = walk.site(bank, first, family.mlp_out, family.mlp_norm)
    (equations,), state = _equations(walk, bank.module(first), spec, [(mlp, walk.original)])
    ways = [_Way(first, state, walk.error(state), before, {attention.path: ridge})]
    second, ridge = _solved(bank, first, mlp, equations, "all", ridges)
    state = walk.through(bank.module(second), spec)
    return [*ways, _Way(second, state, walk.error(state), before, {**ways[0].ridges, mlp.path: ridge})]


def _solved(
    bank: LayerBank, spec: LayerSpec, site: Site, equations: Pair, reach: Reach, ridges: Sequence[float]
) -> tuple[LayerSpec, float]:
    """The layer with one map refitted, by the ridge that leaves least on the held-out windows."""
    fitting, holding = equations
    columns = site.columns.to(site.weight).square()
    through = site.weight if reach == "map" else None
    # One after the other, since only the best has to be there.
    options = ((fitting.solve(ridge, through), ridge) for ridge in ridges)
    correction, ridge = min(options, key=lambda option: holding.error(option[0], columns))
    earlier = bank.patches.get(spec.repair, {})
    return bank.repaired(spec, {**earlier, **site.tensors(correction)}), ridge


def _equations(
    walk: _Walk, layer: torch.nn.Module, spec: LayerSpec, aims: Sequence[tuple[Site, Tensor]]
) -> tuple[list[Pair], Tensor]:
    """Per site and the state it aims at: normal equations of the fitted and of the held-out windows; and the output.

    The last map of a layer is compared with what leaves it, the attention's with the state between the halves.
    """
    dense, call = walk.dense, walk.call(spec)
    outs = torch.empty_like(walk.state)

    def one(normals: Sequence[Normal], tiles: Sequence[slice]) -> None:
        for rows in tiles:
            outs[rows], seen = tap.run(walk.state[rows], call)
            for normal, (site, target), (inputs, output) in zip(normals, aims, seen, strict=True):
                here = outs[rows] if target is walk.original else walk.state[rows] + site.added(output)
                residual = (target[rows].float() - here.float()).flatten(0, -2) / site.columns
                normal.add(site.features(inputs, output), residual, token_weights(target[rows]))

    def gathered(held: bool) -> list[Normal]:
        lanes = [[Normal(*site.weight.shape, site.weight.device) for site, _ in aims] for _ in range(_lanes(aims))]
        tiles = list(walk.tiles(held))
        dense.each(one, [(lane, tiles[i :: len(lanes)]) for i, lane in enumerate(lanes)])
        return [sum(parts[1:], parts[0]) for parts in zip(*lanes, strict=True)]

    with Tap(layer, [site.module for site, _ in aims]) as tap:
        return list(zip(gathered(False), gathered(True), strict=True)), outs


def _lanes(aims: Sequence[tuple[Site, Tensor]]) -> int:
    """How many sums run side by side: a number of its own, so that the result does not depend on the cores."""
    return LANES if sum(len(site.weight) ** 2 for site, _ in aims) <= LANE_SIZE else 1


def _ends(blueprint: Blueprint, depth: int) -> list[int]:
    """For every output layer the source layer before which the dense state is its target: where the next one begins."""
    begins = [min(p.layer for p in all_parts(s)) for s in blueprint.layers[1:]] + [depth]
    ends, reached = [], 0
    for spec, begin in zip(blueprint.layers, begins, strict=True):
        # Repeated layers ask for no target behind what has been reached.
        reached = max(reached, max(p.layer for p in all_parts(spec)) + 1, begin)
        ends.append(reached)
    return ends
