"""Gradient descent on layers that are sums of others, by the weights of the sums.

A summed tensor is linear in its weights, so the gradient by one is the inner product of the gradient by the sum and the
term. All layers learn at once, attention and MLP apart, and no tensor of a term changes. Coefficients by layer are
those of AdaMerging (arXiv 2310.02575, sec. 3.2), where what is minimised is entropy. Here it is the search's
divergence from the parent that knows a text best and, where tasks are asked, the doubt about them, which has a gradient
where accuracy has none, weighed as in `abilities`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_prune.assembly.layer_bank import LayerBank, sharing
from hf_prune.atomic_files import written
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec
from hf_prune.evaluation.comparison import Reference, Targets
from hf_prune.evaluation.dense import Call, Dense, after
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.objectives import DOUBT_WEIGHT
from hf_prune.evaluation.packed_tasks import Sheet
from hf_prune.recovery.heal import Course, distillation

TOKENS = 2048
"""Of one backward pass: what it keeps of every layer grows with them."""
OBJECTIVE = Course(0, kl=1.0, ce=0.0)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter."""


@dataclass(frozen=True, eq=False)
class Sum:
    """A layer as a weighted sum of others, tensor by tensor; one without terms stays as it is.

    spec: what it is made after. weights: float32 [2, terms], each row adds up to one: of attention with all that
    belongs to no half, and of the MLP.
    """

    spec: LayerSpec
    terms: tuple[LayerSpec, ...] = ()
    weights: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Descended:
    """The weights of every sum, None where it has none, and the loss before every step: mean KL, nats per token, plus
    ten times the mean doubt, nats per item, where tasks are asked."""

    weights: tuple[Tensor | None, ...]
    losses: tuple[float, ...]


def descend(
    evaluator: Evaluator,
    blueprint: Blueprint,
    sums: Sequence[Sum],
    evidence: Fidelity,
    steps: int,
    rate: float,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
    state: Path | None = None,
) -> Descended:
    """Adam on the weights of all sums; those of a sum add up to one, and may leave the simplex.

    Takes a float32 copy of the result's layers beside the first parent; a step is a forward and a backward pass of it.
    Interrupted, the same call goes on from the last step, and ends the same.

    Args:
        evaluator: of the parents, with what their teachers say to the text; what its bank keeps of layers is not read
            again in every step.
        blueprint: numbered by the evaluator's parents; tells what lies around the layers.
        sums: one for every layer of it.
        evidence: windows and items of every task that all steps learn from.
        steps: every one reads all of the evidence.
        rate: of the first step, in shares of a layer; it falls to zero.
        progress: told (steps done, steps, loss of the last).
        state: file of what it takes to go on, written after every step.
    """
    if not any(total.terms for total in sums):
        return Descended((None,) * len(sums), ())
    stack = _Stack(evaluator, blueprint, sums)
    lessons = [_Text(stack, evidence), *([_Tasks(stack, evidence)] if evidence.items else [])]
    descent = _Descent([layer for layer in stack.layers if layer.learns], lessons, steps, rate)
    if state and state.is_file():
        descent.load(state)
    while len(descent.losses) < steps:
        descent.step()
        if state:
            descent.save(state)
        progress(len(descent.losses), steps, descent.losses[-1])
    found = tuple(layer.weights.detach().cpu() if layer.learns else None for layer in stack.layers)
    return Descended(found, tuple(descent.losses))


class _Stack:
    """A candidate in float32, between what enters its first layer and its logits."""

    def __init__(self, evaluator: Evaluator, blueprint: Blueprint, sums: Sequence[Sum]) -> None:
        self.evaluator, bank, dense = evaluator, evaluator.bank, evaluator.dense
        self.layers = [_Layer(bank, total, dense.family.half) for total in sums]
        self.others = bank.outside(blueprint.embed, blueprint.head)
        self.ending = _wide_ending(dense.ending(self.others))

    @torch.no_grad()
    def entered(self, tokens: Tensor, **given: Tensor) -> Tensor:
        """What enters the first layer for tokens [n, T]."""
        return self.evaluator.dense.embed(tokens, self.others, **given).float()

    def left(self, state: Tensor, calls: Sequence[Call]) -> Tensor:
        """What leaves the last one, [n, T, d]."""
        for layer in self.layers:
            state = after(layer.module, state, calls[layer.spec.anchor.layer])
        return state


class _Text:
    """Divergence from the teachers on the windows."""

    slopes: Sequence[Tensor] = ()

    def __init__(self, stack: _Stack, evidence: Fidelity) -> None:
        dense, self.stack, self.reference = stack.evaluator.dense, stack, stack.evaluator.reference
        self.tokens = self.reference.tokens[evidence.start : evidence.start + evidence.sequences]
        self.start, self.tiles = evidence.start, dense.tiles(self.tokens, TOKENS)
        self.entered = [stack.entered(self.tokens[rows]) for rows in self.tiles]
        with torch.no_grad():
            self.calls = _wide(dense.record(self.tokens[:1])[1], {})

    def descend(self) -> float:
        """Mean over the tokens; its gradient is added to what layers have."""
        return sum(map(self._share, self.entered, self.tiles))

    def _share(self, state: Tensor, rows: slice) -> float:
        said = self.stack.ending.logits(self.stack.left(state, self.calls)[:, :-1])
        targets = _targets(self.reference, slice(self.start + rows.start, self.start + rows.stop))
        loss = distillation(said, targets, self.tokens[rows, 1:], OBJECTIVE).mean() * (len(state) / len(self.tokens))
        loss.backward()
        return loss.item()


class _Tasks:
    """Doubt about the tasks.

    It compares all options of all items of a task, which stand on many sheets; so what goes back through one sheet is
    what the answers to all of them said a step ago. A step hardly moves that, and answering twice would take a third
    longer.
    """

    def __init__(self, stack: _Stack, evidence: Fidelity) -> None:
        self.stack, self.exam = stack, stack.evaluator.exam
        self.asked = evidence.first_item, evidence.items
        self.sheets = self.exam.sheets(*self.asked, TOKENS)
        with torch.no_grad():
            self.slopes = self._doubt([self._answered(sheet) for sheet in self.sheets])[1]

    def descend(self) -> float:
        """Weighted mean over the tasks; its gradient is added to what layers have."""
        scores = []
        for sheet, slope in zip(self.sheets, self.slopes, strict=True):
            said, likeliest = self._answered(sheet)
            said.backward(DOUBT_WEIGHT * slope)
            scores.append((said.detach(), likeliest))
        doubt, self.slopes = self._doubt(scores)
        return DOUBT_WEIGHT * doubt

    def _doubt(self, scores: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, list[Tensor]]:
        return self.exam.doubt(*self.asked, self.sheets, scores)

    def _answered(self, sheet: Sheet) -> tuple[Tensor, Tensor]:
        state = self.stack.entered(sheet.tokens, **sheet.given)
        return sheet.scores(self.stack.ending, self.stack.left(state, _wide(sheet.calls, {})))


class _Descent:
    """Adam over what the lessons say."""

    def __init__(self, learned: "Sequence[_Layer]", lessons: Sequence[_Text | _Tasks], steps: int, rate: float) -> None:
        self.learned, self.lessons, self.steps, self.rate = learned, lessons, steps, rate
        self.optimizer = torch.optim.Adam([layer.weights for layer in learned], rate)
        self.losses: list[float] = []

    def step(self) -> None:
        """One for all layers."""
        self.optimizer.param_groups[0]["lr"] = self.rate * (1 - len(self.losses) / self.steps)
        self.losses.append(sum(lesson.descend() for lesson in self.lessons))
        for layer in self.learned:
            # What is common to all would scale the layer, and drowns their differences.
            layer.weights.grad -= layer.weights.grad.mean(1, keepdim=True)
        self.optimizer.step()
        for layer in self.learned:
            layer.settle()

    def save(self, path: Path) -> None:
        """All it takes to go on, under a temporary name first."""
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"{n}.{name}": tensor for n, own in moments.items() for name, tensor in own.items()}
        tensors |= {f"{n}.weights": layer.weights.detach() for n, layer in enumerate(self.learned)}
        tensors |= {f"slopes.{n}": slope for n, slope in enumerate(self._slopes())}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        with written(path) as partial:
            save_file(tensors, partial)

    def load(self, path: Path) -> None:
        """Go on from what was saved."""
        tensors = load_file(path)
        moments = {n: {name: tensors[f"{n}.{name}"] for name in MOMENTS} for n in range(len(self.learned))}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for n, layer in enumerate(self.learned):
            layer.take(tensors[f"{n}.weights"])
        for n, slope in enumerate(self._slopes()):
            slope.copy_(tensors[f"slopes.{n}"])
        self.losses = tensors["losses"].tolist()

    def _slopes(self) -> list[Tensor]:
        return [slope for lesson in self.lessons for slope in lesson.slopes]


def _wide(value: Any, known: dict[int, Tensor]) -> Any:
    """The same with every floating tensor in float32: a small change of a weight is lost in 16 bits.

    known: by the number of what they were made from, so that what many layers are given is made once.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point() and id(value) not in known:
            known[id(value)] = value.float()
        return known.get(id(value), value)
    if isinstance(value, dict):
        return {name: _wide(inner, known) for name, inner in value.items()}
    return type(value)(_wide(inner, known) for inner in value) if isinstance(value, list | tuple) else value


def _wide_ending(dense: Dense) -> Dense:
    ending = copy.copy(dense)
    for part in ("norm", "head", "project"):
        if (module := getattr(dense, part)) is not None:
            setattr(ending, part, copy.deepcopy(module).float())
    return ending


def _targets(reference: Reference, rows: slice) -> Targets:
    """Copies, since gradients cannot go through what was made in inference mode."""
    kept = (reference.top, reference.log_p, reference.log_tail)
    return Targets(*(None if tensor is None else tensor[rows].clone() for tensor in kept))


class _Layer:
    """An output layer in float32, whose tensors follow the weights of its sum."""

    def __init__(self, bank: LayerBank, total: Sum, half: Callable[[str], str | None]) -> None:
        self.bank, self.spec, self.terms, self.learns = bank, total.spec, total.terms, bool(total.terms)
        self.module, self.rows = sharing(bank.module(total.spec)), {}
        for name, shared in list(self.module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            # A tensor that all terms share has nothing to learn.
            apart = len({id(tensor) for tensor in self._theirs(name)}) > 1
            own = torch.nn.Parameter(shared.detach().float().clone(), requires_grad=apart)
            setattr(self.module.get_submodule(owner), leaf, own)
            if apart:
                self.rows[name] = int(half(name) == "mlp")
                own.register_post_accumulate_grad_hook(lambda tensor, name=name: self._learn(name, tensor))
        # What is left to widen are buffers: every parameter is the copy's own by now.
        self.module.float()
        if self.learns:
            given = total.weights.to(next(self.module.parameters()).device)
            self.weights = given.clone(memory_format=torch.contiguous_format).requires_grad_()
            self.weights.grad = torch.zeros_like(self.weights)
            self.take(total.weights)

    @torch.no_grad()
    def _learn(self, name: str, tensor: Tensor) -> None:
        """Turn the gradient by a tensor into those by its weights, and let go of it."""
        found = torch.stack([(tensor.grad * theirs).sum() for theirs in self._theirs(name)])
        self.weights.grad[self.rows[name]] += found
        tensor.grad = None

    @torch.no_grad()
    def settle(self) -> None:
        """Make the weights add up to one again, and begin another gradient."""
        self.take(self.weights - (self.weights.sum(1, keepdim=True) - 1) / self.weights.shape[1])
        self.weights.grad.zero_()

    @torch.no_grad()
    def take(self, weights: Tensor) -> None:
        """Have these weights, and tensors that are what they say."""
        self.weights.copy_(weights)
        for name, row in self.rows.items():
            parts = zip(self.weights[row], self._theirs(name), strict=True)
            self.module.get_parameter(name).copy_(sum(weight * theirs.float() for weight, theirs in parts))

    def _theirs(self, name: str) -> Sequence[Tensor]:
        """The tensor of every term."""
        return [self.bank.module(spec).get_parameter(name) for spec in self.terms]
