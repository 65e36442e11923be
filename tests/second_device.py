"""A device that is not there: tensors that say they lie on a GPU, hold real numbers, and refuse to meet others.

What PyTorch calls a wrapper subclass: every operation is looked at before the processor does it. A tensor of the device
beside one of the processor raises the error that CUDA would raise; a number (a tensor without dimensions) may come from
the processor, and what is copied from one to the other changes sides. `tensor.numpy()` fails as on a GPU.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from transformers import AutoTokenizer

from hf_prune.assembly.assemble import assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part, Source
from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_sources import load_tasks
from hf_prune.data.tasks import bundled_tasks
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.models.parent import Parent
from hf_prune.recovery.levels import HALVES, Options, build
from hf_prune.recovery.repair import repair
from tests.families import VOCABULARY, opened, save_tiny

register = backend_registration._setup_privateuseone_for_python_backend
"""PyTorch's own way to a device written in Python. It cannot be taken back: this module is for a process of its own."""
register("second")
DEVICE = torch.device("second:0")
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""Operations that may meet both sides."""
READS = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
"""Operations whose indices may lie on the processor, as CUDA allows."""


class There(torch.Tensor):
    """A tensor on the device; `here` has its numbers."""

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "There":
        # The mode is asked about what is made here, too.
        with torch.utils._python_dispatch._disable_current_modes(), torch.inference_mode(False):
            shell = torch.empty_strided(here.size(), here.stride(), dtype=here.dtype, device="meta")
            return torch.Tensor._make_subclass(
                cls, shell, here.requires_grad, dispatch_device=True, device_for_backend_keys=DEVICE
            )

    def __init__(self, here: torch.Tensor) -> None:
        self.here = here

    def __repr__(self) -> str:
        return f"There({self.here})"

    def tolist(self) -> Any:
        """As CUDA allows; torch refuses it to every subclass."""
        return self.here.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Tensors that are made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation by the processor; its results lie where CUDA would leave them."""
    if func is torch.ops.prim.device.default:
        return DEVICE if isinstance(args[0], There) else args[0].device
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, There)]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, There) and x.dim()]
    if there and here and func not in MOVES | READS:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} has some on second:0 and on cpu."
        )
    asked = next((x for x in flat if isinstance(x, torch.device)), None)
    on_device = asked.type == DEVICE.type if asked is not None else bool(there)
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], There)
    args, kwargs = tree_unflatten([_here(x) for x in flat], spec)
    found = func(*args, **kwargs)
    known = {id(x.here): x for x in there}

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not on_device:
            return x
        return known.get(id(x)) if id(x) in known else There(x)

    return tree_map(placed, found)


def _here(x: Any) -> Any:
    """What the processor is given instead."""
    if isinstance(x, There):
        return x.here
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == DEVICE.type else x


def sent(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the processor on the device."""
    return tensor if isinstance(tensor, There) else There(tensor.detach())


def send(module: torch.nn.Module) -> torch.nn.Module:
    """All weights of a model, where they are."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(sent(parameter.data), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = sent(buffer)
    return module


@contextmanager
def second_device() -> Iterator[torch.device]:
    """While this is open, tensors can be made on the device."""
    # Tensors of Python's numbers begin on the processor, so that their way to the device is seen.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Factories():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


# What is carried through it ------------------------------------------------------------------------------------------


def check(family: str, home: Path) -> None:
    """The sweep, the repair and the levels of a tiny model, on the processor and there; they must give the same."""
    model = save_tiny(family, home / "model")
    parent = opened(home / "model")
    cuts = [Blueprint((parent.source,), drop(parent.depth, gone)).canonical() for gone in ((1,), (2, 3), ())]
    tokens = torch.randint(3, VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(0))
    plain = carried(LayerBank(model, [parent]), cuts, tokens, home / "here")
    moved = send(copy.deepcopy(model))
    with second_device():
        there = carried(LayerBank(moved, [parent]), cuts, tokens, home / "there")
    for name, value in plain.items():
        torch.testing.assert_close(
            there[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{family}, {name}: {m}"
        )


def carried(bank: LayerBank, cuts: Sequence[Blueprint], tokens: torch.Tensor, library: Path) -> dict[str, Any]:
    """Numbers of all three."""
    evaluator = Evaluator(bank, tokens)
    found = {"sweep": [(m.kl, m.nll) for m in evaluator.evaluate(cuts, Fidelity(len(tokens)))]}
    done = repair(bank, cuts[1], tokens, tokens[:4])
    found["repair"] = [(f.before, f.after) for f in done.fits]
    found["repaired"] = [(m.kl, m.nll) for m in evaluator.evaluate([done.blueprint], Fidelity(len(tokens)))]
    levels = build(evaluator.dense, bank.parents[0], tokens, library, Options(levels=5, multiple=4))
    found["levels"] = [levels.losses(i, half).tolist() for half in HALVES for i in range(bank.parents[0].depth)]
    return found


def drop(depth: int, gone: Sequence[int]) -> tuple[LayerSpec, ...]:
    """All layers but some."""
    return tuple(LayerSpec((Part(0, i),)) for i in range(depth) if i not in gone)


def check_tasks() -> None:
    """Tasks of the bundled model, packed and each by itself."""
    folder = demo_folder() / "storymath-16l"
    parent, tasks = Parent.open(Source("storymath-16l", "bundled"), folder), load_tasks(bundled_tasks()[:1])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cuts = [Blueprint((parent.source,), drop(parent.depth, gone)).canonical() for gone in ((1,), (2, 3))]
    whole = Blueprint.identity(parent.source, parent.depth)
    dense, tokens = assemble(whole, [parent], dtype=torch.float32), torch.arange(3, 35)[None]

    def accuracies(model: Any, packed: bool) -> list[list[float]]:
        exam = partial(Exam, tasks=tasks, tokenizer=tokenizer, packed=packed)
        found = Evaluator(LayerBank(model, [parent]), tokens, exam=exam).evaluate(cuts, Fidelity(1, items=8))
        return [[m.kl, *(t.doubt for t in m.tasks)] for m in found]

    for packed in (True, False):
        plain = accuracies(dense, packed)
        with second_device():
            torch.testing.assert_close(accuracies(send(copy.deepcopy(dense)), packed), plain, rtol=1e-4, atol=1e-6)


def main() -> None:
    """Every family that is named, and tasks."""
    with second_device() as device:
        try:
            torch.ones(2, device=device) + torch.ones(2)
        except RuntimeError as e:
            assert "same device" in str(e), e
        else:
            raise AssertionError("Nobody noticed a mix of devices.")
    for family in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as home:
            check(family, Path(home))
        print(f"{family}: the same", flush=True)
    check_tasks()
    print("tasks: the same")


if __name__ == "__main__":
    main()
