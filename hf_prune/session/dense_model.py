"""The dense model of a run: where it computes, in which precision, and how much of it is in memory."""

import contextlib
import ctypes
from pathlib import Path

import torch

from hf_prune.assembly.base_check import stock_model
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.assembly.layer_stream import streamed
from hf_prune.errors import InvalidRecipe
from hf_prune.evaluation.speed import computes_bfloat16
from hf_prune.models.parent import Parent
from hf_prune.planning import Demand, check_streamed, demand_of
from hf_prune.recipe import Recipe
from hf_prune.session.inputs import Inputs

M_MMAP_THRESHOLD = -3
"""Of mallopt: from which size blocks are the system's, which glibc raises whenever one is freed."""


def dtype_of(recipe: Recipe, base: Parent, device: torch.device) -> torch.dtype:
    """Precision of the search: the checkpoint's own where the device computes in it, else float32."""
    if recipe.machine.dtype != "auto":
        return getattr(torch, recipe.machine.dtype)
    native = device.type != "cpu" or base.dtype == torch.bfloat16 and computes_bfloat16()
    return base.dtype if native else torch.float32


def need_of(recipe: Recipe, base: Parent, dtype: torch.dtype, device: torch.device) -> Demand:
    """Bytes that the search needs on its device.

    Raises:
        InvalidRecipe: see `check_streamed`; or an adapter is to be merged into a base that does not fit.
    """
    suffixes = enumerate(base.layer_suffixes)
    layers = [sum(base.shapes[f"{base.family.prefix}{i}.{s}"].numel() for s in names) for i, names in suffixes]
    rows, hidden = base.skeleton.get_input_embeddings().weight.shape[0], base.config.get_text_config().hidden_size
    need = demand_of(recipe, hidden, rows, layers, base.parameters, dtype.itemsize, device.type == "cpu")
    check_streamed(recipe, need)
    if need.share(recipe.machine.memory).layers is not None and base.checkpoint.adapter:
        raise InvalidRecipe(
            f"{base.source} is a model with an adapter, which peft merges in memory to check how it was read, and it "
            "needs more than --memory has; merge it first, or raise --memory."
        )
    return need


def open_bank(inputs: Inputs, need: Demand, dtype: torch.dtype, device: torch.device, home: Path) -> LayerBank:
    """The dense model: as stock transformers loads it where it fits, else with its layers left in its files; `home` is
    a folder for states that are set aside."""
    share = need.share(inputs.recipe.machine.memory)
    if share.layers is None:
        return LayerBank(stock_model(inputs.base, dtype, device), inputs.parents, share.made)
    model, stream = streamed(inputs.identity(0), inputs.parents, dtype=dtype, device=device, room=share.layers)
    home.mkdir(parents=True, exist_ok=True)
    stream.home = home
    _give_back()
    return LayerBank(model, inputs.parents, share.made, stream=stream)


def _give_back() -> None:
    """Have glibc return large blocks of memory that are free, instead of keeping them for later."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
