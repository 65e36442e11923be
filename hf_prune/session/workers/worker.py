"""A worker of a search: it opens the models from their files, checks that they are those of the run, and scores chunks.

It is sent names, text and settings, never a weight; orders are blueprints and the number of a chunk.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_prune import hub
from hf_prune.blueprint import Blueprint, Fidelity, Source
from hf_prune.data.tasks import Task
from hf_prune.errors import IncompatibleSources
from hf_prune.evaluation.batches import Chunk
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.objectives import OBJECTIVES
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.evaluation.sums import Sums
from hf_prune.evaluation.sweep import Cost
from hf_prune.methods.method import Target
from hf_prune.models.devices import device_of
from hf_prune.models.fewer_tokens import vocabulary_of, without_tokens
from hf_prune.models.parent import Parent
from hf_prune.models.variants import beside, pull_variant
from hf_prune.recipe import Recipe
from hf_prune.recovery.levels import Levels
from hf_prune.session.dense_model import need_of, open_bank
from hf_prune.session.inputs import Inputs
from hf_prune.session.workers.crew import Order


@dataclass(frozen=True)
class Charge:
    """What a worker must know to score as the run does.

    Args:
        recipe: flat, as it was decided.
        names: of the models, base first, by which they are pulled.
        sources: what is found by them must be these.
        kept: ids of the base's tokens, where not all were kept.
        target: of the run.
        dtype: precision of the search.
        device: where this worker computes.
        threads: of the processor that it may take.
        tokens: windows, int64 [N, T].
        corpora: number of the corpus of each window.
        tasks: of the search.
        bridges: windows to fit maps over gaps on, int64 [M, T]; None where no gap is bridged.
        teachers: number of the parent that teaches each window; None where the base does.
        levels: folders of the level libraries.
        versions: of torch and transformers, which must be the same.
        home: folder for states that are set aside; None where that is another machine's.
    """

    recipe: Mapping[str, Any]
    names: tuple[str, ...]
    sources: tuple[Source, ...]
    kept: tuple[int, ...] | None
    target: Target
    dtype: torch.dtype
    device: str
    threads: int
    tokens: torch.Tensor
    corpora: tuple[int, ...]
    tasks: tuple[Task, ...]
    bridges: torch.Tensor | None
    teachers: tuple[int, ...] | None
    levels: tuple[str, ...]
    versions: Mapping[str, str]
    home: str | None = None


@dataclass(frozen=True)
class Common:
    """What the orders of a sweep have in common."""

    blueprints: tuple[Blueprint, ...]
    fidelity: Fidelity
    chunks: tuple[Chunk, ...]
    alive: int

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(
            {
                "blueprints": [json.loads(b.to_json()) for b in self.blueprints],
                "fidelity": asdict(self.fidelity),
                "chunks": [[c.first, c.stop, c.sheet] for c in self.chunks],
                "alive": self.alive,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: bytes) -> "Common":
        """What `to_json` made."""
        raw = json.loads(text)
        blueprints = tuple(Blueprint.from_json(json.dumps(b)) for b in raw["blueprints"])
        chunks = tuple(Chunk(first, stop, bool(sheet)) for first, stop, sheet in raw["chunks"])
        return cls(blueprints, Fidelity(**raw["fidelity"]), chunks, raw["alive"])


def carry_out(evaluator: Evaluator, common: Common, order: Order) -> bytes:
    """The sums of some candidates on one chunk, and what they cost, in JSON."""
    before = replace(evaluator.cost)
    found = evaluator.sums(
        common.blueprints[order.first : order.stop],
        common.fidelity,
        only=[common.chunks[order.piece]],
        alive=common.alive,
    )
    raw = {"sums": [s.to_raw() for s in found], "cost": asdict(evaluator.cost.since(before))}
    return json.dumps(raw, separators=(",", ":")).encode()


def understood(answer: bytes) -> tuple[list[Sums], Cost]:
    """The sums and the cost of an answer."""
    raw = json.loads(answer)
    return [Sums.from_raw(s) for s in raw["sums"]], Cost(**raw["cost"])


def open_worker(charge: Charge) -> Callable[[bytes, bytes], bytes]:
    """Open the models and run the dense one.

    Raises:
        IncompatibleSources: a model here is not the run's, or torch or transformers are of other versions.
        HfPruneError: as whatever opens a model.
    """
    check_versions(charge.versions)
    torch.set_num_threads(charge.threads)
    recipe, device = Recipe.of(**charge.recipe), device_of(charge.device)
    parents = open_sources(recipe, charge.names, charge.sources, charge.kept)
    for folder in charge.levels:
        levels = Levels.open(Path(folder))
        parents[0].levels[levels.digest] = levels
    inputs = Inputs(recipe, parents, charge.target, ())
    home = Path(charge.home or Path(tempfile.gettempdir(), f"hf_prune-worker-{os.getpid()}"))
    bank = open_bank(inputs, need_of(recipe, parents[0], charge.dtype, device), charge.dtype, device, home)
    evaluator = Evaluator(
        bank,
        charge.tokens,
        with_modules=OBJECTIVES[recipe.search.objective].needs_modules,
        corpora=charge.corpora,
        exam=(lambda dense: Exam(dense, charge.tasks, inputs.tokenizer, recipe.seed)) if charge.tasks else None,
        bridges=None if charge.bridges is None else lambda: charge.bridges,
    )
    if charge.teachers:
        evaluator.teach(charge.teachers)
    known: list[tuple[bytes, Common]] = []

    def carry(common: bytes, order: bytes) -> bytes:
        if not known or known[0][0] != common:
            known[:] = [(common, Common.from_json(common))]
        return carry_out(evaluator, known[0][1], Order(*json.loads(order)))

    return carry


def check_versions(expected: Mapping[str, str]) -> None:
    """Refuse a worker that computes with other programs than the run.

    Raises:
        IncompatibleSources: names them.
    """
    here = versions()
    if differing := [f"{name} {here[name]} and not {version}" for name, version in expected.items()
                     if here[name] != version]:  # fmt: skip
        raise IncompatibleSources(
            f"A worker has {', '.join(differing)}, as the run has; its scores would differ. Install the same version."
        )


def versions() -> dict[str, str]:
    """Of what decides the last bits of a score."""
    import transformers

    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}


def open_sources(
    recipe: Recipe, names: Sequence[str], sources: Sequence[Source], kept: Sequence[int] | None
) -> tuple[Parent, ...]:
    """The models of a run, opened where they lie here, or pulled.

    Raises:
        IncompatibleSources: one is another than the run's, by its commit or the digest of its files.
        SourceError: one cannot be read.
    """
    trust = recipe.trust.arguments
    base, *variants = names
    pulled = [hub.pull(base, **trust), *(pull_variant(base, v, **trust) for v in variants)]
    for found, wanted in zip(pulled, sources, strict=True):
        if found.source != replace(wanted, vocabulary=None):
            raise IncompatibleSources(
                f"A worker found {found.source} where the run has {replace(wanted, vocabulary=None)}; copy the run's "
                "files there, or name a model of the Hub."
            )
    first, *others = (
        Parent.open(s, p.folder, p.adapter, **trust)
        for s, p in zip((replace(s, vocabulary=None) for s in sources), pulled, strict=True)
    )
    if kept is not None:
        first = without_tokens(first, vocabulary_of(first), list(kept))
    return first, *(beside(first, other) for other in others)


def name_of(given: str, source: Source) -> str:
    """The name by which a worker pulls a model: pinned where it is the Hub's, else as it was given, from the root."""
    if "sha256-" not in str(source):
        return f"{source.repo}@{source.revision}" + (f"+{source.adapter}" if source.adapter else "")
    if Path(given).exists():
        return os.path.abspath(given)
    return "+".join(os.path.abspath(part) if Path(part).exists() else part for part in given.split("+"))
