"""What a run stands on, looked at before its search: parents as stock transformers loads them, in a precision that
holds their numbers. What is found is kept in the run's folder, so that a resumed run does not look again."""

import json
import os
from collections.abc import Generator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from hf_prune.assembly.base_check import check_base, stock_model
from hf_prune.assembly.certificate import CERTIFIED
from hf_prune.assembly.layer_stream import streamed
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint
from hf_prune.errors import BaseOverflow
from hf_prune.evaluation.dense import check_finite
from hf_prune.events import Event, Stage
from hf_prune.models.parent import Parent
from hf_prune.session.session import Session

SPARE = 1.2
"""Memory that a model takes on its way to a device, as a multiple of its weights."""


def check_parents(session: Session) -> Generator[Event, None, Session]:
    """Compare every parent, as it was read, with what stock transformers loads in a fresh process.

    Returns:
        The session; in a wider precision where an earlier attempt found that the base overflows.

    Raises:
        Misread: names the tensor that differs.
    """
    parents = session.inputs.parents
    yield Stage("check", f"{'the base' if len(parents) == 1 else f'{len(parents)} parents'} against stock transformers")
    found = found_of(session)
    if found and found["overflow"]:
        return replace(session, precision=getattr(torch, found["overflow"]["measured_in"]))
    if not found:
        rows, length = CERTIFIED
        tokens = session.evidence.windows["search"].tokens[:rows, :length]
        _write(session, [_checked(session, k, tokens) for k in range(len(parents))], None)
    return session


def calibrate(session: Session) -> Generator[Event, None, Session]:
    """Run the dense reference; where the base itself overflows, and no precision was asked for, again in a wider one.

    Raises:
        BaseOverflow: the base overflows in the precision that was asked for, or in float32.
    """
    yield Stage("calibrate", ", ".join(session.evidence.windows["search"].origin))
    if stream := session.bank.stream:
        depth = session.inputs.depth
        yield Stage("calibrate", f"{stream.staying} of {depth} layers fit into memory; they are read when reached")
    try:
        check_finite(session.evaluator.reference.hidden[-1])
        return session
    except BaseOverflow:
        if session.recipe.machine.dtype != "auto" or session.dtype == torch.float32:
            raise
    native = session.device.type == "cuda" and session.dtype == torch.float16 and torch.cuda.is_bf16_supported()
    wider = torch.bfloat16 if native else torch.float32
    names = [str(d).removeprefix("torch.") for d in (session.dtype, wider)]
    found = found_of(session) or {"parents": []}
    _write(session, found["parents"], {"left": names[0], "measured_in": names[1]})
    yield Stage("calibrate", f"again in {names[1]}: the base itself overflows in {names[0]}")
    # Of the narrow run nothing is kept, the model least of all.
    session = replace(session, precision=wider)
    check_finite(session.evaluator.reference.hidden[-1])
    return session


def found_of(session: Session) -> dict[str, Any] | None:
    """What is known of these parents: `parents`, a row each, and `overflow`, the precision that was left and taken."""
    if not session.workdir.parents.is_file():
        return None
    found = json.loads(session.workdir.parents.read_text(encoding="utf-8"))
    return {k: found[k] for k in ("parents", "overflow")} if found["of"] == _of(session) else None


def _of(session: Session) -> dict[str, Any]:
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    how = {"dtype": session.recipe.machine.dtype, "device": session.device.type}
    return {"sources": list(map(str, session.inputs.sources)), **how, **versions}


def _write(session: Session, parents: list[dict[str, Any]], overflow: dict[str, str] | None) -> None:
    session.workdir.folder.mkdir(parents=True, exist_ok=True)
    found = {"of": _of(session), "parents": parents, "overflow": overflow}
    write_text(session.workdir.parents, json.dumps(found, indent=1))


def _checked(session: Session, number: int, tokens: torch.Tensor) -> dict[str, Any]:
    parent = session.inputs.parents[number].alone
    if number == 0:
        model, copies = session.bank.model, 1
    elif session.streams:
        whole = Blueprint.identity(parent.source, parent.depth)
        model, copies = streamed(whole, [parent], dtype=session.dtype, device=session.device, room=0)[0], 1
    else:
        # One of these and the fresh process's own are there beside the base.
        device = session.device if _fits(parent, session.dtype, session.device, 2) else torch.device("cpu")
        model, copies = stock_model(parent, session.dtype, device), 1
    rows = model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    room = not session.streams and _fits(parent, session.dtype, device, copies)
    return check_base(parent, model, tokens % rows, whole=room)


def _fits(parent: Parent, dtype: torch.dtype, device: torch.device, copies: int) -> bool:
    """Whether this machine has room for more copies of a model, on the device and on the way there."""
    need = copies * SPARE * parent.parameters * dtype.itemsize
    return need <= _free() and (device.type != "cuda" or need <= torch.cuda.mem_get_info(device)[0])


def _free() -> int:
    """Bytes of memory that can be had."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
