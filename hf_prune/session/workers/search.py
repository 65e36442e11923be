"""The search of a run on several workers: their charge, the orders of every sweep, and its sums.

Evidence is divided and not candidates, which share their beginnings. The process of the run is one of the workers: it
carries out orders like the others, and alone writes files.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.evaluation.prefix_trie import most_alive
from hf_prune.evaluation.sums import Sums
from hf_prune.evaluation.sweep import Cost, Reached
from hf_prune.models.devices import devices_of
from hf_prune.recovery.levels import Kind
from hf_prune.session.session import Session
from hf_prune.session.workers.crew import Crew, Order, OutOfMemory, Patience
from hf_prune.session.workers.processes import Process
from hf_prune.session.workers.serving import is_out_of_memory
from hf_prune.session.workers.unfinished import Unfinished
from hf_prune.session.workers.worker import Charge, Common, carry_out, name_of, understood, versions

OPENER = "hf_prune.session.workers.worker:open_worker"
"""What a worker runs."""


@contextmanager
def working(session: Session, patience: Patience | None = None) -> Iterator[Crew | None]:
    """With the workers of a run, which score what its evaluator is asked meanwhile; None where this process does it.

    Raises:
        HfPruneError: while something is scored: a worker cannot open the model.
    """
    devices = devices_of(session.recipe.machine.device, int(session.recipe.machine.workers))
    if len(devices) == 1:
        yield None
        return
    threads = max(1, torch.get_num_threads() // len(devices))
    charge = charge_of(session, threads)
    environment = {"OMP_NUM_THREADS": str(threads)}
    crew = Crew(
        [functools.partial(Process, OPENER, replace(charge, device=d), environment) for d in devices[1:]], patience
    )
    evaluator = session.evaluator
    try:
        evaluator.divided = functools.partial(divided, session, crew, session.header(), threads)
        yield crew
    finally:
        evaluator.divided = None
        crew.close()


def charge_of(session: Session, threads: int) -> Charge:
    """What workers of this run must know."""
    recipe, inputs, evidence = session.recipe, session.inputs, session.evidence
    own = session.evaluator.own
    texts = [c for split in ("search", "selection") for c in evidence.windows[split].corpora]
    libraries = [kind for kind in inputs.method.libraries(recipe) if kind in get_args(Kind)]
    return Charge(
        recipe=recipe.flat(),
        names=tuple(map(name_of, (recipe.base, *recipe.variants), inputs.sources)),
        sources=inputs.sources,
        kept=inputs.base.kept,
        target=inputs.target,
        dtype=session.dtype,
        device=str(session.device),
        threads=threads,
        tokens=own.tokens.cpu(),
        corpora=session.evaluator.corpora,
        tasks=evidence.searched,
        bridges=session.to_bridge() if evidence.foretelling(evidence.full).bridged else None,
        teachers=tuple(map(session.teacher, texts)) if len(inputs.parents) > 1 else None,
        levels=tuple(str(Path(session.library(kind).folder).absolute()) for kind in libraries),
        versions=versions(),
        home=str(session.workdir.folder.absolute()),
    )


def divided(
    session: Session,
    crew: Crew,
    header: dict[str, Any],
    threads: int,
    blueprints: Sequence[Blueprint],
    fidelity: Fidelity,
    progress: Reached,
) -> list[Sums]:
    """What blueprints do on the evidence of a fidelity, by all workers.

    Args:
        session: of the run.
        crew: its workers.
        header: of its journal.
        threads: that this process may take beside them.
        blueprints: to be scored; of repaired layers this process alone knows.
        fidelity: says on what.
        progress: told candidates on chunks that are done, and all of them.
    """
    evaluator = session.evaluator
    chunks = evaluator.chunks(blueprints, fidelity)
    if len(chunks) == 1 or any(spec.repair for b in blueprints for spec in b.layers):
        return evaluator.sums(blueprints, fidelity, progress)
    alive = most_alive([b.over(session.inputs.sources).layers for b in blueprints])
    common = Common(tuple(blueprints), fidelity, chunks, alive)
    text = common.to_json()
    kept, sweep = Unfinished(session.workdir.sweep, header, text), _Gathered(len(blueprints), len(chunks), progress)

    def done(order: Order, answer: bytes) -> None:
        kept.keep(order, answer)
        sweep.take(order, answer)

    def own(order: Order) -> bytes:
        try:
            answer = carry_out(evaluator, common, order)
            mine.add(understood(answer)[1])
            return answer
        except Exception as e:
            if is_out_of_memory(e):
                raise OutOfMemory(str(e)) from None
            raise

    mine = Cost()
    orders = [Order(n, 0, len(blueprints)) for n in range(len(chunks))]
    for order in orders:
        if order in kept.answers:
            sweep.take(order, kept.answers[order])
    with evaluator.dense.taking(threads):
        crew.work(text.encode(), [o for o in orders if o not in kept.answers], done, own)
    evaluator.cost.add(sweep.cost.since(mine))
    return sweep.sums


class _Gathered:
    """The sums of a sweep, as far as they are found; `cost` is what workers did of it."""

    def __init__(self, blueprints: int, chunks: int, progress: Reached) -> None:
        self.sums, self.cost = [Sums() for _ in range(blueprints)], Cost()
        self._done, self._total, self._progress = 0, blueprints * chunks, progress

    def take(self, order: Order, answer: bytes) -> None:
        """What some candidates did on a chunk."""
        sums, cost = understood(answer)
        for total, part in zip(self.sums[order.first : order.stop], sums, strict=True):
            total.add(part)
        self.cost.add(cost)
        self._done += len(sums)
        self._progress(self._done, self._total)
