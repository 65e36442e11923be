"""The other end of the certificate: what was read of a source is what stock transformers loads of it.

A result can only be compared with what was read, so a misread base would never show there. Every tensor is compared by
name with the model that transformers loads here, and the logits of that with those of a fresh process.
"""

import tempfile
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_prune.assembly.assemble import plan_tensors
from hf_prune.assembly.certificate import TOLERANCE, probe
from hf_prune.assembly.reload_probe import digest, load_model
from hf_prune.blueprint import Blueprint
from hf_prune.errors import Misread
from hf_prune.models.loading import notes, tied
from hf_prune.models.noise import quiet
from hf_prune.models.parent import Parent

SINGLE_SUM = 1e-6
"""Allowed distance of two merged float32 matrices, as a share of their size: sums are added up in any order."""
FLIPPED = 0.1
"""The same in 16 bits, as a share of the dtype's precision: a few numbers are rounded to the other side."""


def stock_model(parent: Parent, dtype: torch.dtype, device: str | torch.device = "cpu") -> PreTrainedModel:
    """A source as any user loads it, without anything of ours; an adapter is merged by peft.

    Raises:
        Misread: transformers does not find every tensor.
    """
    with quiet():
        model, info = load_model(str(parent.checkpoint.folder), dtype, **_how(parent))
    if wrong := {k: v for k in ("missing_keys", "mismatched_keys") if (v := info.get(k))}:
        raise Misread(f"transformers finds {parent.source} incomplete: {wrong}; fetch the source afresh.")
    return model.to(device)


def check_base(parent: Parent, model: PreTrainedModel, tokens: torch.Tensor, *, whole: bool = True) -> dict[str, Any]:
    """Compare a source as it was read with stock transformers.

    Args:
        parent: as opened, not brought into another one's shape.
        model: its `stock_model`.
        tokens: [N, T] int64, which both processes read.
        whole: there is memory for another copy; else weights stay on the disk until a layer is called.

    Of a model whose layers are not in memory only logits are compared.

    Returns:
        What the report says of it.

    Raises:
        Misread: names the first tensor that differs.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    there = not any(t.is_meta for t in model.parameters())
    compared = compare_tensors(parent, model) if there else 0
    found = {"source": str(parent.source), "tensors": compared, "dtype": dtype}
    # peft cannot merge what is on the disk.
    how = "whole" if whole else "tensors" if parent.checkpoint.adapter else "layer by layer"
    if how != "tensors":
        found |= _compare_logits(parent, model, tokens, whole)
    return {"ok": True, "read": how, **found, "notes": list(notes(parent.fit))}


def _compare_logits(parent: Parent, model: PreTrainedModel, tokens: torch.Tensor, whole: bool) -> dict[str, Any]:
    """With those of a fresh process."""
    dtype = str(model.dtype).removeprefix("torch.")
    device = str(model.device) if whole else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        options = [*_flags(parent), "--uncached", *(() if whole else ("--offload", scratch))]
        said = probe(parent.checkpoint.folder, tokens, dtype, device, options)
    with torch.inference_mode():
        ours = model(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()
    theirs = said.tensors["logits"]
    bound = TOLERANCE[dtype] * max(1.0, float(ours.nan_to_num(0, 0, 0).abs().max()))
    difference = _distance(ours, theirs)
    if not difference <= bound:
        raise Misread(_named(parent, model, tokens, dtype, device) if whole else _sentence(parent, "logits"))
    return {
        "max_logit_difference": difference,
        "tolerance": bound,
        "finite": bool(torch.isfinite(theirs).all()),
        "transformers": said.loading["transformers"],
        "without_hf_prune": not said.loading["hf_prune_imported"],
    }


def compare_tensors(parent: Parent, model: PreTrainedModel) -> int:
    """Compare every tensor of a source, as it is read here, with a stock model's; their number.

    Raises:
        Misread: names the first one that differs.
    """
    state = model.state_dict()
    read = dict(plan_tensors(Blueprint.identity(parent.source, parent.depth), [parent]))
    second = tied(parent.skeleton)
    for name, made in read.items():
        theirs = state.get(name)
        ours = made()
        if theirs is None or theirs.shape != ours.shape or not _same(parent, ours, made.dtype, theirs):
            raise Misread(_sentence(parent, name))
        for other in (n for n, first in second.items() if first == name):
            if not torch.equal(state[other], theirs):
                raise Misread(_sentence(parent, other))
    if unread := sorted(set(state) - set(read) - set(second)):
        raise Misread(_sentence(parent, unread[0]))
    return len(read)


def _same(parent: Parent, ours: torch.Tensor, stored: torch.dtype, theirs: torch.Tensor) -> bool:
    """Bit for bit; what an adapter changes, up to the rounding of sums."""
    ours = ours.to(theirs.device, theirs.dtype)
    if torch.equal(ours, theirs) or not parent.checkpoint.adapter:
        return torch.equal(ours, theirs)
    # peft merges in the precision of the whole model; a tensor that is stored in another one is rounded before.
    precision = max(torch.finfo(t).eps for t in (stored, parent.dtype, theirs.dtype))
    share = precision if stored != parent.dtype else max(SINGLE_SUM, FLIPPED * precision)
    return float((ours.float() - theirs.float()).norm()) <= share * float(theirs.float().norm())


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of two logits; where both overflow they agree."""
    if ours.shape != theirs.shape or not torch.equal(ours.isfinite(), theirs.isfinite()):
        return float("inf")
    return float((ours - theirs)[ours.isfinite()].abs().max()) if ours.isfinite().any() else 0.0


def _named(parent: Parent, model: PreTrainedModel, tokens: torch.Tensor, dtype: str, device: str) -> str:
    """Which tensor a fresh process loads otherwise than this one does."""
    options = [*_flags(parent), "--uncached", "--digests"]
    theirs = probe(parent.checkpoint.folder, tokens[:1, :2], dtype, device, options).digests
    ours = {name: digest(tensor) for name, tensor in model.state_dict().items()}
    first = next((n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)), None)
    return _sentence(parent, first or "logits (of equal tensors)")


def _sentence(parent: Parent, name: str) -> str:
    return (
        f"{parent.source} was not read as stock transformers loads it: {name} differs. Nothing can be compressed "
        "faithfully from it; please report this, with the config.json."
    )


def _how(parent: Parent) -> dict[str, Any]:
    """Arguments of `load_model`."""
    adapter = parent.checkpoint.adapter
    merged = {"adapter": str(adapter.folder.resolve()), "loaded": parent.dtype} if adapter else {}
    return {"trust_remote_code": parent.trust_remote_code, "allow_pickle": parent.checkpoint.allow_pickle, **merged}


def _flags(parent: Parent) -> list[str]:
    """The same as options of the probe."""
    flags = ["--trust-remote-code"] * parent.trust_remote_code + ["--allow-pickle"] * parent.checkpoint.allow_pickle
    if adapter := parent.checkpoint.adapter:
        flags += ["--adapter", str(adapter.folder.resolve()), "--loaded", str(parent.dtype).removeprefix("torch.")]
    return flags
