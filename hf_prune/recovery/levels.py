"""The level library of a model: which heads and neurons every width of every layer keeps, and their repaired weights.

One pass over calibration text, block after block: the inputs of o_proj and down_proj give a Hessian each, that gives
the order in which groups of heads and neurons go (`obs`), and the order gives nested levels. Stored are the order and,
per level, the increment B_i that turns the weights of the level before into its own; all of them take less room than
the dense model, and any level of any layer is read by itself. Magnitude and Wanda scores give
libraries of plain orders: their levels keep the weights as they are.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_prune.atomic_files import write_text, written
from hf_prune.blueprint import DENSE, GONE, LayerSpec, Part
from hf_prune.data.windows import Windows
from hf_prune.errors import BrokenCheckpoint, InvalidRecipe
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.residual_maps import Tap
from hf_prune.models.experts import PATH, add_moments
from hf_prune.models.parent import Parent
from hf_prune.recovery.heads_and_neurons import Widths, spread
from hf_prune.recovery.obs import DAMPING, compensated, damped, increments, removal_order

Kind = Literal["obs", "wanda", "magnitude"]
Half = Literal["attention", "mlp"]
HALVES: tuple[Half, Half] = ("attention", "mlp")
OUTPUTS = (("self_attn.o_proj",), ("mlp.down_proj", "mlp.experts.down_proj"))
"""Where a half's out-projection may be in a layer."""
CACHE = "~/.cache/hf_prune/levels"
EXACT = 4096
"""Inputs up to which orders and increments are computed in float64."""
EXPERT = 8
"""Neurons of an expert come in multiples of this: torch's grouped product wants rows of 16 bytes."""
LANES, LANE_INPUTS = 4, 2048
"""Sums that run side by side, for maps of at most so many inputs; numbers of their own, so that the result does not
depend on the cores."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a library is made by: scores, number of levels, neurons a multiple of, damping of the Hessians."""

    kind: Kind = "obs"
    levels: int = 10
    multiple: int = 8
    damping: float = DAMPING


@dataclass(frozen=True, eq=False)
class Levels:
    """An opened library. Level 0 is dense, level i keeps `groups[i]` groups of heads or `neurons[i]` neurons, and the
    last level, `GONE`, nothing."""

    folder: Path
    digest: str
    options: Options
    widths: Widths
    groups: tuple[int, ...]
    neurons: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path) -> "Levels":
        """Read the manifest; tensors are read when they are asked for.

        Raises:
            BrokenCheckpoint: there is no library, or it is not finished.
        """
        try:
            raw = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            fields = {**raw, "options": Options(**raw["options"]), "widths": Widths(**raw["widths"])}
            return cls(folder, **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise BrokenCheckpoint(
                f"{folder} holds no finished level library ({type(e).__name__}); build it again with hf-prune compress."
            ) from None

    def count(self, half: Half) -> int:
        """Levels above dense, the removed half included."""
        return len(self.groups if half == "attention" else self.neurons)

    def left(self, half: Half, level: int) -> int:
        """Groups or neurons at a level."""
        return 0 if level == GONE else (self.groups if half == "attention" else self.neurons)[level]

    def kept(self, layer: int, half: Half, level: int) -> Tensor:
        """The groups or neurons of a level, int64, rising; of each expert, [experts, neurons]."""
        count, order = self.left(half, level), self._order(layer, half)
        return order[..., order.shape[-1] - count :].sort().values

    def losses(self, layer: int, half: Half) -> Tensor:
        """What each level costs, float64 [levels + 1, with `GONE` as the last]: tr(dW H dW^T), 0 for the dense one."""
        losses = self._read(layer, f"{half}.losses")
        counts = [self.left(half, level) for level in range(self.count(half))]
        whole = torch.cat([losses.new_zeros(1), losses])
        return torch.stack([whole[len(losses) - n] for n in [*counts, 0]])

    def output(self, layer: int, half: Half, level: int, weight: Tensor) -> Tensor:
        """The out-projection of a level: [d, inputs left] of the dense [d, inputs], in its dtype; or one per expert."""
        unit = self.widths.unit if half == "attention" else 1
        order, kept = self._order(layer, half), self.kept(layer, half, level)
        steps = []
        if self.options.kind == "obs":
            steps = [self._read(layer, f"{half}.{i}").to(weight.device) for i in range(1, level + 1)]
        if weight.dim() == 2:
            return _output(weight, spread(order, unit), spread(kept, unit), steps)
        each = zip(weight, order, kept, zip(*steps, strict=True) if steps else [()] * len(weight), strict=True)
        return torch.stack([_output(*one) for one in each])

    def cut(self, layer: int, suffix: str, tensor: Tensor, spec: LayerSpec) -> Tensor:
        """A tensor of source layer `layer` as the levels of `spec` have it."""
        module = suffix.removesuffix(".weight")
        for half, out, level in zip(HALVES, OUTPUTS, self._levels(spec), strict=True):
            if module in out and level != DENSE:
                return self.output(layer, half, level, tensor)
        groups, neurons = (self.kept(layer, h, lv) for h, lv in zip(HALVES, self._levels(spec), strict=True))
        return self.widths.cut(suffix, tensor, groups, neurons)

    def shape(self, suffix: str, whole: torch.Size, spec: LayerSpec) -> torch.Size:
        """Of a tensor of a layer that has the shape `whole` in the dense model."""
        groups, neurons = (torch.arange(self.left(h, lv)) for h, lv in zip(HALVES, self._levels(spec), strict=True))
        if self.widths.experts:
            neurons = neurons.expand(self.widths.experts, -1)
        return self.widths.cut(suffix, torch.empty(whole, device="meta"), groups, neurons).shape

    def settings(self, spec: LayerSpec) -> dict[str, object]:
        """What the config of a layer says where it differs from the dense one's."""
        attention, mlp = self._levels(spec)
        groups = self.widths.groups if attention == GONE else self.groups[attention]
        neurons = self.widths.neurons if mlp == GONE else self.neurons[mlp]
        skip = [h for h, level in zip(HALVES, (attention, mlp), strict=True) if level == GONE]
        return {**self.widths.settings(groups, neurons), **({"skip": skip} if skip else {})}

    def parameters(self, parent: Parent, spec: LayerSpec) -> int:
        """Of a layer at its levels."""
        layer = spec.anchor.layer
        return (
            sum(self.sizes(parent, layer)[h][lv] for h, lv in zip(HALVES, self._levels(spec), strict=True))
            + (parent.half_parameters[layer][None])
        )

    @lru_cache(maxsize=512)  # noqa: B019 - a library lives as long as its run
    def sizes(self, parent: Parent, layer: int) -> dict[Half, tuple[int, ...]]:
        """Parameters of both halves of a layer at every level; the last one, `GONE`, has none."""
        found: dict[Half, tuple[int, ...]] = {}
        for half in HALVES:
            counts = []
            for level in range(self.count(half)):
                levels = {"attn_level": level} if half == "attention" else {"mlp_level": level}
                spec = LayerSpec((Part(0, layer),), **levels)
                mine = [s for s in parent.layer_suffixes[layer] if parent.family.half(s) == half]
                shapes = {s: parent.shapes[f"{parent.family.prefix}{layer}.{s}"] for s in mine}
                counts.append(sum(self.shape(s, shape, spec).numel() for s, shape in shapes.items()))
            found[half] = (*counts, 0)
        return found

    def _levels(self, spec: LayerSpec) -> tuple[int, int]:
        return spec.attn_level, spec.mlp_level

    @lru_cache(maxsize=512)  # noqa: B019 - a library lives as long as its run
    def _order(self, layer: int, half: Half) -> Tensor:
        return self._read(layer, f"{half}.order").long()

    def _read(self, layer: int, name: str) -> Tensor:
        with safe_open(self.folder / _file(layer), "pt") as file:
            return file.get_tensor(name)

    @cached_property
    def bytes(self) -> int:
        """Of all files."""
        return sum(p.stat().st_size for p in self.folder.glob("*.safetensors"))


def grid(count: int, levels: int, multiple: int) -> tuple[int, ...]:
    """Units kept at each level, the dense one first: even steps down, rounded to a multiple; never 0."""
    steps = [round(count * (1 - i / levels) / multiple) * multiple for i in range(1, levels)]
    return (count, *sorted({n for n in steps if 0 < n < count}, reverse=True))


def build(
    dense: Dense,
    parent: Parent,
    tokens: Tensor,
    folder: Path,
    options: Options,
    *,
    evidence: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Levels:
    """Make the library of a model, layer by layer; layers whose file is there already are not made again.

    Args:
        dense: the resident model.
        parent: where it comes from.
        tokens: int64 [N, T] calibration windows.
        folder: for the files; a library of something else in it is refused.
        options: see `Options`.
        evidence: digest of the windows.
        progress: told layers done and layers in all.

    Raises:
        UnsupportedArchitecture: see `Widths.of`.
        InvalidRecipe: the folder holds another library.
    """
    widths = Widths.of(parent.config)
    groups = grid(widths.groups, options.levels, 1)
    neurons = grid(widths.neurons, options.levels, math.lcm(options.multiple, EXPERT if widths.experts else 1))
    digest = digest_library(parent, options, evidence)
    made = Levels(folder, digest, options, widths, groups, neurons)
    _claim(folder, digest)
    tokens = tokens.to(dense.device)
    with torch.inference_mode():
        calls = dense.record(tokens[:1])[1]
        state = torch.cat([dense.embed(tokens[rows]) for rows in dense.tiles(tokens, dense.tile_tokens)])
        for layer, (module, call) in enumerate(zip(dense.layers, calls, strict=True)):
            path = folder / _file(layer)
            if path.is_file():
                state = dense.apply(module, [state], call)[0][0]
            else:
                state, hessians = _hessians(dense, widths, module, state, call)
                with written(path) as partial:
                    save_file(_layer(made, module, hessians), partial)
            progress(layer + 1, len(dense.layers))
    manifest = {k: v for k, v in asdict(made).items() if k != "folder"}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    return made


def cached(digests: Collection[str], folder: Path | None = None) -> dict[str, Levels]:
    """Those of these libraries that are finished in the user's cache, or in the folder that `made` was given."""
    places = [Path(CACHE).expanduser() / d for d in digests if re.fullmatch("[0-9a-f]{16}", d)]
    places += [folder / kind for kind in get_args(Kind)] if folder else []
    found = [Levels.open(f) for f in places if (f / "manifest.json").is_file()]
    return {levels.digest: levels for levels in found if levels.digest in digests}


def made(
    dense: Dense,
    parent: Parent,
    text: Windows,
    options: Options,
    folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Levels:
    """The library of a model: opened where it is finished already, else made; by default in the user's cache."""
    digest = digest_library(parent, options, text.digest)
    folder = folder / options.kind if folder else Path(CACHE).expanduser() / digest
    if (folder / "manifest.json").is_file():
        _claim(folder, digest)
        return Levels.open(folder)
    return build(dense, parent, text.tokens, folder, options, evidence=text.digest, progress=progress)


def digest_library(parent: Parent, options: Options, evidence: str) -> str:
    """64 bits of SHA-256 over everything that a library depends on."""
    text = json.dumps([str(parent.source), asdict(options), evidence, 1])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _claim(folder: Path, digest: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "digest"
    if not mark.exists():
        write_text(mark, digest)
    if mark.read_text(encoding="utf-8") != digest:
        raise InvalidRecipe(
            f"{folder} holds the level library of another model, text or options; name another folder with --library."
        )


def _file(layer: int) -> str:
    return f"layer-{layer:03d}.safetensors"


def _hessians(
    dense: Dense, widths: Widths, layer: torch.nn.Module, state: Tensor, call: tuple
) -> tuple[Tensor, list[Tensor]]:
    """The state behind a layer, and E x x^T of the inputs of its out-projections; of each expert's, [experts, k, k]."""
    family = dense.family
    experts = widths.experts and layer.get_submodule(PATH)
    modules = [layer.get_submodule(family.attention_out), experts or layer.get_submodule(family.mlp_out)]
    sizes = [widths.groups * widths.unit, widths.neurons]
    lanes = LANES if max(sizes) <= LANE_INPUTS and not experts else 1
    tiles, out = dense.tiles(state, dense.tile_tokens), torch.empty_like(state)
    shapes = [(sizes[0],) * 2, (*([widths.experts] if experts else []), *(sizes[1],) * 2)]
    sums = [[torch.zeros(s, dtype=_exact(s[-1]), device=state.device) for s in shapes] for _ in range(lanes)]

    def one(mine: Sequence[Tensor], rows: Sequence[slice]) -> None:
        for tile in rows:
            out[tile], seen = tap.run(state[tile], call)
            for total, module, (inputs, _) in zip(mine, modules, seen, strict=True):
                if module is experts:
                    add_moments(module, tap.inputs(module), total)
                else:
                    x = inputs.flatten(0, -2).float()
                    total += x.T @ x

    with Tap(layer, modules) as tap:
        dense.each(one, [(sums[i], tiles[i::lanes]) for i in range(lanes)])
    samples = state.shape[0] * state.shape[1]
    return out, [sum(parts[1:], parts[0]) / samples for parts in zip(*sums, strict=True)]


def _exact(inputs: int) -> torch.dtype:
    return torch.float64 if inputs <= EXACT else torch.float32


def _output(weight: Tensor, columns: Tensor, kept: Tensor, steps: Sequence[Tensor]) -> Tensor:
    """The columns that stay, compensated where there are increments: [d, left] of [d, k]."""
    if not steps:
        return weight[:, kept]
    found = compensated(weight, columns.to(weight.device), steps)
    rising = columns[len(columns) - len(kept) :].argsort().to(weight.device)
    return found[:, rising].to(weight.dtype)


def _layer(levels: Levels, layer: torch.nn.Module, hessians: Sequence[Tensor]) -> dict[str, Tensor]:
    found = {}
    widths, options = levels.widths, levels.options
    units, counts = (widths.unit, 1), (levels.groups, levels.neurons)
    paths = ("self_attn.o_proj.weight", "mlp.experts.down_proj" if widths.experts else "mlp.down_proj.weight")
    for half, path, hessian, unit, left in zip(HALVES, paths, hessians, units, counts, strict=True):
        weight = _tensor(layer, path).to(hessian.dtype)
        if hessian.dim() == 2:
            made = _nested(weight, hessian, unit, left, options)
        else:
            each = [_nested(w, h, unit, left, options) for w, h in zip(weight, hessian, strict=True)]
            made = {name: torch.stack([e[name] for e in each]) for name in each[0]}
            # All experts are at one level, which costs what it costs all of them.
            made["losses"] = made["losses"].sum(0)
        found |= {f"{half}.{name}": tensor.contiguous() for name, tensor in made.items()}
    return found


def _tensor(layer: torch.nn.Module, path: str) -> Tensor:
    module, _, name = path.rpartition(".")
    return getattr(layer.get_submodule(module), name)


def _nested(weight: Tensor, hessian: Tensor, unit: int, left: Sequence[int], options: Options) -> dict[str, Tensor]:
    """Order and losses of one map, and with OBS the increments from level to level."""
    order, losses = _ordered(weight, hessian, unit, options)
    found = {"order": order.int().cpu(), "losses": losses.double().cpu()}
    if options.kind == "obs":
        columns = spread(order.cpu(), unit).to(weight.device)
        steps = increments(damped(hessian, options.damping), columns, [n * unit for n in left[1:]])
        found |= {str(i): s.float().cpu() for i, s in enumerate(steps, 1)}
    return found


def _ordered(weight: Tensor, hessian: Tensor, unit: int, options: Options) -> tuple[Tensor, Tensor]:
    """Units as they go, and what has been lost by then: exact for OBS, summed scores for the others.

    Where no input was ever seen, as of an expert that the text never reached, the smallest weights go first and nothing
    is lost.
    """
    unseen = not bool(hessian.any())
    if options.kind == "obs" and not unseen:
        order = removal_order(weight, damped(hessian, options.damping), unit)
        return order.groups, order.losses
    plain = unseen or options.kind == "magnitude"
    size = weight.square() if plain else weight.abs() * hessian.diagonal().sqrt()
    ranked = size.sum(0).unflatten(0, (-1, unit)).sum(1).sort(stable=True)
    lost = ranked.values.cumsum(0)
    return ranked.indices, torch.zeros_like(lost) if unseen and options.kind != "magnitude" else lost
