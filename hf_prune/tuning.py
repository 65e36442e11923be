"""Weights of a stitched model's mixes by gradient descent: what a search in steps leaves on the table.

A merged tensor is linear in the weights of its parents, so the gradient by a weight is the inner product of the
gradient by the merged tensor and the parent's. All layers learn at once, attention and MLP apart, and no tensor of a
parent changes. Coefficients by layer are those of AdaMerging (arXiv 2310.02575, sec. 3.2), where what is minimised is
entropy. Here it is the search's divergence from the parent that knows a text best and, where its objective looks at
tasks, the doubt about them, which has a gradient where accuracy has none, weighed as in `abilities`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_prune.bank import LayerBank, sharing
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Mix, Part
from hf_prune.evaluate import Evaluator
from hf_prune.exam import Sheet
from hf_prune.heal import Course, distillation
from hf_prune.objectives import DOUBT_WEIGHT
from hf_prune.reference import Call, Dense, Reference, Targets, after
from hf_prune.staging import written

RATE = 0.02
"""Of the first step, in shares of a layer; it falls to zero."""
DIGITS = 3
TOKENS = 2048
"""Of one backward pass: what it keeps of every layer grows with them."""
OBJECTIVE = Course(0, kl=1.0, ce=0.0)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The model with its new mixes, and the loss before every step: mean KL, nats per token, plus ten times the mean
    doubt, nats per item, where tasks are asked."""

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
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
    state: Path | None = None,
) -> Tuned:
    """Adam on the weights of every layer that is a sum; they add up to one, and may leave the simplex.

    Takes a float32 copy of the result's layers beside the first parent; a step is a forward and a backward pass of it.
    Interrupted, the same call goes on from the last step, and ends the same.

    Args:
        evaluator: of the parents, with what their teachers say to the text; what its bank keeps of layers is not read
            again in every step.
        blueprint: canonical.
        evidence: windows and items of every task that all steps learn from.
        steps: every one reads all of the evidence.
        progress: told (steps done, steps, loss of the last).
        state: file of what it takes to go on, written after every step.
    """
    numbered = blueprint.over(evaluator.bank.sources)
    stack = _Stack(evaluator, numbered)
    learned = [layer for layer in stack.layers if tunable(layer.spec)]
    if not learned or not steps:
        return Tuned(blueprint, ())
    lessons = [_Text(stack, evidence), *([_Tasks(stack, evidence)] if evidence.items else [])]
    descent = _Descent(learned, lessons, steps)
    if state and state.is_file():
        descent.load(state)
    while len(descent.losses) < steps:
        descent.step()
        if state:
            descent.save(state)
        progress(len(descent.losses), steps, descent.losses[-1])
    layers = tuple(layer.mixed() for layer in stack.layers)
    return Tuned(replace(numbered, layers=layers).canonical(), tuple(descent.losses))


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


class _Stack:
    """A candidate in float32, between what enters its first layer and its logits."""

    def __init__(self, evaluator: Evaluator, numbered: Blueprint) -> None:
        self.evaluator, bank, dense = evaluator, evaluator.bank, evaluator.dense
        self.layers = [_Layer(bank, spec, dense.family.half) for spec in numbered.layers]
        self.others = bank.outside(numbered.embed, numbered.head)
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
            self.calls = _wide(dense.record(self.tokens[:1])[0], {})

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

    def __init__(self, learned: "Sequence[_Layer]", lessons: Sequence[_Text | _Tasks], steps: int) -> None:
        self.learned, self.lessons, self.steps = learned, lessons, steps
        self.optimizer = torch.optim.Adam([layer.weights for layer in learned], RATE)
        self.losses: list[float] = []

    def step(self) -> None:
        """One for all layers."""
        self.optimizer.param_groups[0]["lr"] = RATE * (1 - len(self.losses) / self.steps)
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
    """An output layer in float32, whose tensors follow the weights of its mixes.

    weights: float32 [2, sources]: of attention with all that belongs to no half, and of the MLP.
    """

    def __init__(self, bank: LayerBank, spec: LayerSpec, half: Callable[[str], str | None]) -> None:
        self.bank, self.spec = bank, spec
        self.module, self.rows = sharing(bank.module(spec)), {}
        for name, shared in list(self.module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            own = torch.nn.Parameter(shared.detach().float().clone(), requires_grad=tunable(spec))
            setattr(self.module.get_submodule(owner), leaf, own)
        # What is left to widen are buffers: every parameter is the copy's own by now.
        self.module.float()
        if not tunable(spec):
            return
        mixes = _mixes(spec)
        mine = [(part.source, part.layer) for parts in mixes for part in parts]
        everywhere = [(source, spec.anchor.layer) for source in range(len(bank.parents))]
        self.sources = tuple(dict.fromkeys([*everywhere, *mine]))
        given = [{(p.source, p.layer): p.weight for p in parts} for parts in mixes]
        table = torch.tensor([[mix.get(key, 0.0) for key in self.sources] for mix in given])
        self.weights = table.to(next(self.module.parameters()).device).requires_grad_()
        self.weights.grad = torch.zeros_like(self.weights)
        for name, own in self.module.named_parameters():
            self.rows[name] = int(half(name) == "mlp")
            own.register_post_accumulate_grad_hook(lambda tensor, name=name: self._learn(name, tensor))

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
        """The tensor of every source."""
        return [self.bank.module(LayerSpec((Part(*key),))).get_parameter(name) for key in self.sources]

    def mixed(self) -> LayerSpec:
        """The layer as a spec, weights rounded."""
        if not tunable(self.spec):
            return self.spec
        parts, mlp = (self._parts(row) for row in self.weights.detach().double().cpu())
        return replace(self.spec, parts=parts, mlp=Mix(mlp))

    def _parts(self, row: Tensor) -> tuple[Part, ...]:
        shares = [round(float(w), DIGITS) for w in row]
        heaviest = max(range(len(shares)), key=lambda k: shares[k])
        shares[heaviest] = round(shares[heaviest] + 1 - sum(shares), DIGITS)
        return tuple(Part(*key, share) for key, share in zip(self.sources, shares, strict=True) if share)
