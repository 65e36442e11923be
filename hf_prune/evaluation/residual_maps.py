"""Where a layer adds to the residual stream: the maps that a repair refits, and how their outputs get there."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_prune.evaluation.dense import Call, Dense
from hf_prune.models.families import Family

LINEAR = 0.05
"""Largest relative deviation at which a layer counts as linear in what one of its maps adds."""


@dataclass(frozen=True, eq=False)
class Site:
    """The map of a layer that is refitted, and how its output reaches the residual stream.

    path: of the module inside the layer. weight: float64 [k, d], the bias as a last row where there is one. stored: the
    tensors as the checkpoint has them. norm: what the output passes on its way, if anything. factor: what it is
    multiplied by.
    """

    path: str
    module: torch.nn.Module
    weight: Tensor
    stored: Mapping[str, Tensor]
    norm: torch.nn.Module | None
    factor: float

    @property
    def biased(self) -> bool:
        """Whether the last row of `weight` is a bias."""
        return len(self.stored) > 1

    @cached_property
    def columns(self) -> Tensor:
        """Scale of each output dimension on the way to the stream, float32 [d]."""
        ones = torch.ones(self.weight.shape[1], device=self.module.weight.device)
        if self.norm is None:
            return ones * self.factor
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

    def added(self, output: Tensor) -> Tensor:
        """What the stream gets of the module's output."""
        return self.norm(output) if self.norm else output * self.factor

    def tensors(self, correction: Tensor) -> dict[str, Tensor]:
        """The corrected tensors by their names in the layer, in the stored shape and dtype."""
        new = self.weight + correction
        weight = new[:-1] if self.biased else new
        found = {f"{self.path}.weight": weight if _transposed(self.module) else weight.T}
        if self.biased:
            found[f"{self.path}.bias"] = new[-1]
        return {n: t.to("cpu", self.stored[n].dtype).contiguous() for n, t in found.items()}


class Tap:
    """Runs a layer and sees inputs and outputs of some of its modules; several threads may run it at once.

    Those outputs may be scaled on their way, and another module's be silenced.
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        modules: Sequence[torch.nn.Module],
        scale: float = 1.0,
        silent: torch.nn.Module | None = None,
    ) -> None:
        self.layer, self.modules, self.scale, self.silent = layer, modules, scale, silent
        self.seen = threading.local()

    def __enter__(self) -> "Tap":
        self.hooks = [m.register_forward_hook(self._note) for m in self.modules]
        if self.silent is not None:
            self.hooks.append(self.silent.register_forward_hook(lambda _, __, output: _silenced(output)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        self.seen.found[module] = inputs, output
        return output * self.scale if self.scale != 1.0 else None

    def run(self, state: Tensor, call: Call) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The layer's output [B, T, d], and (input, output) of each module, [B, T, ...]."""
        self.seen.found = {}
        out = self.layer(state, *call[0], **call[1])
        found = [self.seen.found[m] for m in self.modules]
        # OPT's MLP sees its tokens flattened.
        seen = [tuple(t.view(*state.shape[:2], -1) for t in (inputs[0], output)) for inputs, output in found]
        return (out[0] if isinstance(out, tuple) else out), seen

    def inputs(self, module: torch.nn.Module) -> tuple[Tensor, ...]:
        """All that a module was called with in this thread's last run."""
        return self.seen.found[module][0]


def _silenced(output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    # A mixture may return its router's scores beside its states.
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def exact(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: itself, or the CPU if it has none."""
    return torch.device("cpu") if device.type == "mps" else device


def between_halves(layer: torch.nn.Module, dense: Dense, state: Tensor, call: Call) -> Tensor | None:
    """The state between the halves of a dense layer."""
    family = dense.family.of_layer(layer.state_dict())
    module = _submodule(layer, family.attention_out)
    if module is None:
        return None
    norm = layer.get_submodule(family.attention_norm) if family.attention_norm else None
    factor = 1.0 if norm else _factor(layer, module, state[:1], call, family)
    if factor is None:
        return None
    between = torch.empty_like(state)
    with Tap(layer, [module]) as tap:
        for rows in dense.tiles(state, dense.tile_tokens):
            output = tap.run(state[rows], call)[1][0][1]
            between[rows] = state[rows] + (norm(output) if norm else output * factor)
    return between


def site_of(
    layer: torch.nn.Module,
    family: Family,
    stored: Iterable[tuple[str, Callable[[], Tensor]]],
    state: Tensor,
    call: Call,
    path: str | None,
    norm: str | None,
) -> Site | None:
    """A map of a layer; None when there is none or it is no matrix, or does not reach the stream in a linear way.

    Args:
        layer: live, on its device.
        family: of the layer.
        stored: readers of its tensors.
        state: [1, T, d] to try it on.
        call: what the layer is given besides.
        path: of the map inside the layer.
        norm: of the norm that its output passes, if any.
    """
    names = (f"{path}.weight", f"{path}.bias")
    like = {n: read() for n, read in stored if n in names}
    if names[0] not in like or like[names[0]].dim() != 2:
        return None
    module = layer.get_submodule(path)
    weight = like[names[0]].to(exact(state.device), torch.float64)
    weight = weight if _transposed(module) else weight.T
    if names[1] in like:
        weight = torch.cat([weight, like[names[1]].to(weight)[None]])
    if norm:
        return Site(path, module, weight, like, layer.get_submodule(norm), 1.0)
    factor = _factor(layer, module, state, call, family)
    return factor and Site(path, module, weight, like, None, factor)


def _factor(layer: torch.nn.Module, module: torch.nn.Module, state: Tensor, call: Call, family: Family) -> float | None:
    """Of a half: that of an attention is told while the MLP is silent."""
    other = _submodule(layer, family.mlp_out) or _submodule(layer, family.mlp)
    return factor_of(layer, module, state, call, other if module is not other else None)


def factor_of(
    layer: torch.nn.Module, module: torch.nn.Module, state: Tensor, call: Call, silent: torch.nn.Module | None = None
) -> float | None:
    """What the module's output is multiplied by on its way to the stream (Granite: 0.22); None if it is not linear.

    Args:
        layer: holds both modules.
        module: whose output is followed.
        state: [N, T, d], what enters the layer.
        call: how it is called.
        silent: a module that puts out nothing meanwhile.
    """
    found = []
    for scale in (1.0, 2.0):
        with Tap(layer, [module], scale, silent) as tap:
            found.append(tap.run(state, call))
    (out, ((_, output),)), (twice, _) = found
    added, output = (twice.float() - out.float()).flatten(), output.float().flatten()
    factor = float(added @ output / output.square().sum().clamp_min(1e-30))
    near = float((added - factor * output).norm()) <= LINEAR * abs(factor) * float(output.norm())
    return factor if near else None


def _submodule(layer: torch.nn.Module, path: str | None) -> torch.nn.Module | None:
    try:
        return layer.get_submodule(path) if path else None
    except AttributeError:
        return None


def _transposed(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
