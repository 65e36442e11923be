"""Mixtures of experts: their weights in files and in memory, and what reaches each expert's neurons.

Files hold a matrix per expert (`mlp.experts.3.up_proj.weight`), modules two stacks of all of them: `gate_up_proj`
[experts, 2 * neurons, d], gates above ups, and `down_proj` [experts, d, neurons]. Everything here speaks of stacks;
they are put together as they are read, and taken apart as they are written.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STACKS = {"mlp.experts.gate_up_proj": ("gate_proj", "up_proj"), "mlp.experts.down_proj": ("down_proj",)}
"""Tensor names in a layer, and the matrices that each expert has in them, from above."""
PATH = "mlp.experts"
ONE = re.compile(r"(?P<stem>.*\.mlp\.experts)\.(?P<expert>\d+)\.(?P<part>\w+)\.weight")


@dataclass(frozen=True, eq=False)
class Stack:
    """The matrices of all experts as one tensor, under the same face as a stored tensor; calling it reads them.

    experts: per expert the readers of its parts, from above.
    """

    experts: tuple[tuple[Any, ...], ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """From the headers; (0, 0, 0) where experts differ."""
        found = {(sum(p.shape[0] for p in parts), *{p.shape[1] for p in parts}) for parts in self.experts}
        return (len(self.experts), *found.pop()) if len(found) == 1 else (0, 0, 0)

    @property
    def dtype(self) -> torch.dtype:
        """The widest of the parts', from the headers."""
        return functools.reduce(torch.promote_types, {p.dtype for parts in self.experts for p in parts})

    @property
    def nbytes(self) -> int:
        """In the files."""
        return sum(p.nbytes for parts in self.experts for p in parts)

    def __call__(self) -> Tensor:
        """The tensor, in memory."""
        dtype = self.dtype
        return torch.stack([torch.cat([p().to(dtype) for p in parts]) for parts in self.experts])


def stacks(readers: Mapping[str, Any]) -> dict[str, Stack]:
    """The stacks that the tensors of some files make up; one that lacks an expert's part is left out."""
    experts: dict[str, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for name, reader in readers.items():
        if match := ONE.fullmatch(name):
            experts[match["stem"]][int(match["expert"])][match["part"]] = reader
    found = {}
    for stem, mine in experts.items():
        for suffix, parts in STACKS.items():
            if all(set(parts) <= set(mine.get(e, ())) for e in range(max(mine) + 1)):
                whole = tuple(tuple(mine[e][p] for p in parts) for e in range(len(mine)))
                found[stem + suffix.removeprefix(PATH)] = Stack(whole)
    return found


def stacked(model: torch.nn.Module) -> list[str]:
    """Which of `STACKS` a model has; none where it is no mixture."""
    names = [n for n, _ in model.named_parameters()]
    return [s for s in STACKS if any(n.endswith("." + s) for n in names)]


def apart(name: str, read: Callable[[], Tensor], shape: torch.Size) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """A tensor as files have it: a stack's matrices by their own names, any other as it is.

    The stack is read once, and held until its last matrix has been.
    """
    suffix = next((s for s in STACKS if name.endswith("." + s)), None)
    if suffix is None:
        yield name, read
        return
    held: list[Tensor] = []
    parts = STACKS[suffix]
    stem, rows = name.removesuffix(suffix.removeprefix(PATH)), shape[1] // len(parts)
    for expert in range(shape[0]):
        for i, part in enumerate(parts):
            last = (expert, i) == (shape[0] - 1, len(parts) - 1)

            def one(expert: int = expert, i: int = i, last: bool = last) -> Tensor:
                held[:] = held or [read()]
                made = held[0][expert, i * rows : (i + 1) * rows].clone()
                if last:
                    held.clear()
                return made

            yield f"{stem}.{expert}.{part}.weight", one


def cut(suffix: str, tensor: Tensor, neurons: Tensor) -> Tensor:
    """A stack with these neurons alone, int64 [experts, neurons left], rising in each row."""
    neurons = neurons.to(tensor.device)
    if suffix.endswith("down_proj"):
        return tensor.gather(2, neurons[:, None].expand(-1, tensor.shape[1], -1))
    rows = torch.cat([neurons, neurons + tensor.shape[1] // 2], 1)
    return tensor.gather(1, rows[:, :, None].expand(-1, -1, tensor.shape[2]))


def add_moments(experts: torch.nn.Module, inputs: tuple[Tensor, ...], total: Tensor) -> None:
    """Add sum x x^T of every expert's inputs of down_proj to `total` [experts, neurons, neurons].

    An input counts as often as it reaches the stream: times the square of the router's weight.

    Args:
        experts: the module that holds both stacks.
        inputs: what it is called with: states [tokens, d], and the experts and weights of every token [tokens, k].
    """
    states, chosen, weights = inputs
    for expert in chosen.unique().tolist():
        token, place = (chosen == expert).nonzero(as_tuple=True)
        gate, up = torch.nn.functional.linear(states[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        x = (experts.act_fn(gate) * up * weights[token, place, None]).float()
        total[expert] += x.T @ x
