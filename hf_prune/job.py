"""One run: a recipe with its base pinned and opened, its evidence, its evaluator and the meaning of its genomes."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

from hf_prune import hub
from hf_prune.assemble import Parent, assemble, quiet
from hf_prune.bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, Genome, Trial
from hf_prune.calibration import Windows, windows
from hf_prune.errors import InvalidData
from hf_prune.evaluate import Evaluator
from hf_prune.methods import METHODS
from hf_prune.objectives import OBJECTIVES, Measures, values
from hf_prune.patches import load_patches, save_patches
from hf_prune.plan import Target, layers_to_remove
from hf_prune.recipe import DEFAULT_DATA, Recipe
from hf_prune.repair import Repaired, repair
from hf_prune.training_aware import Lesson, TrainingAware

ALWAYS = ("kl", "perplexity", "similarity", "kl_similarity", "params")
"""What every trial is journaled with, so that reports and baselines need no second forward."""


FINAL_STAGES = 3
"""Rounds of training-aware selection: each trains twice as long as the one before, and half of the finalists go on."""


class Clock:
    """Wall seconds per stage."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Close the stage that ran until now."""
        now = time.monotonic()
        self.laps[name] = round(self.laps.get(name, 0.0) + now - self.last, 2)
        self.last = now

    @property
    def seconds(self) -> dict[str, float]:
        """All laps and their total."""
        return {**self.laps, "total": round(time.monotonic() - self.started, 2)}


@dataclass(frozen=True, eq=False)
class Job:
    """A run with its base pinned and opened; what is heavy is made when first asked for, once."""

    recipe: Recipe
    parent: Parent
    target: Target
    card: Mapping[str, Any]

    @property
    def home(self) -> Path:
        """The run's folder, where long stages keep what they have until the result is complete."""
        output = Path(self.recipe.output)
        return output.with_name(output.name + ".run")

    @cached_property
    def tokenizer(self) -> Any:
        """The base's own."""
        with quiet():
            return AutoTokenizer.from_pretrained(self.parent.checkpoint.folder, local_files_only=True)

    @cached_property
    def evidence(self) -> dict[str, Windows]:
        """The three disjoint splits."""
        r = self.recipe
        counts = {"search": r.sequences, "selection": r.selection_sequences, "report": r.report_sequences}
        limit = getattr(self.parent.config, "max_position_embeddings", None)
        if limit and r.length > limit:
            raise InvalidData(
                f"length is {r.length}, but {self.parent.source.repo} reads at most {limit} tokens; lower --length."
            )
        rows = self.parent.skeleton.get_input_embeddings().weight.shape[0]
        return {
            split: windows(r.data or (DEFAULT_DATA,), self.tokenizer, split, n, r.length, r.force_test_split, rows)
            for split, n in counts.items()
        }

    def training(self, count: int) -> Windows:
        """At most `count` windows to fit and train on: the search split's, and behind them what is given for healing.

        Raises:
            InvalidData: as `windows`.
        """
        r, rows = self.recipe, self.parent.skeleton.get_input_embeddings().weight.shape[0]
        data = r.data or (DEFAULT_DATA,)
        return windows(data, self.tokenizer, "heal", count, r.length, r.force_test_split, rows, at_most=True)

    @cached_property
    def device(self) -> torch.device:
        """Where the search runs."""
        if self.recipe.device != "auto":
            return torch.device(self.recipe.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of the search: the checkpoint's own where the device computes in it, else float32."""
        if self.recipe.dtype != "auto":
            return getattr(torch, self.recipe.dtype)
        native = self.device.type != "cpu" or self.stored == torch.bfloat16 and computes_bfloat16()
        return self.stored if native else torch.float32

    @cached_property
    def stored(self) -> torch.dtype:
        """Precision of the checkpoint, and so of the result."""
        return self.parent.checkpoint.tensor(next(iter(self.parent.shapes))).dtype

    @cached_property
    def bank(self) -> LayerBank:
        """The dense model, resident."""
        identity = Blueprint.identity(self.parent.source, self.parent.depth)
        return LayerBank(assemble(identity, [self.parent], dtype=self.dtype, device=self.device), [self.parent])

    @cached_property
    def evaluator(self) -> Evaluator:
        """The sweep over the search windows, followed by the selection windows."""
        tokens = torch.cat([self.evidence[s].tokens for s in ("search", "selection")])
        return Evaluator(self.bank, tokens, with_modules=OBJECTIVES[self.recipe.objective].needs_modules)

    def repaired(
        self, cut: Blueprint, sequences: int, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Repaired:
        """A cut with its remaining weights refitted; the bank keeps them, and the run's folder until the run ends."""
        path = self.home / "repairs" / f"{self.recipe.search_digest}-{cut.digest}-{sequences}.json"
        patches = path.with_suffix(".safetensors")
        if path.is_file():
            self.bank.patches.update(load_patches(patches))
            return Repaired.from_json(path.read_text(encoding="utf-8"))
        fit, held = self.training(sequences).tokens, self.evidence["selection"].tokens
        done = repair(self.bank, cut, fit, held, reach=self.recipe.reach, progress=progress)
        save_patches(self.bank.named(done.blueprint), patches)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(done.to_json(), encoding="utf-8")
        partial.replace(path)
        return done

    @cached_property
    def training_aware(self) -> TrainingAware:
        """Judges finalists after a training, on the selection windows."""
        tokens = self.recipe.search_heal * 2 ** (FINAL_STAGES - 1)
        train = self.training(-(-tokens // self.recipe.length)).tokens
        lesson = Lesson.of(self.evaluator.dense, train)
        return TrainingAware(self.evaluator, lesson, self.home / "trials", self.recipe.seed)

    @property
    def selection(self) -> Fidelity:
        """The windows that choose among finalists."""
        return Fidelity(self.recipe.selection_sequences, start=self.recipe.sequences)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Objectives of every journaled value tuple; the searched one first."""
        return (self.recipe.objective, *(n for n in ALWAYS if n != self.recipe.objective))

    @cached_property
    def scorer(self) -> "Scorer":
        """Over the genomes of the recipe's method at this run's budget (free for a front)."""
        depth, remove, method = self.parent.depth, self.target.remove or None, METHODS[self.recipe.method]
        if self.recipe.method == "collapse":
            return Scorer(self, method(depth, remove, self.recipe.rules, self.recipe.norms))
        return Scorer(self, method(depth, 2 * remove if remove and self.recipe.method == "halves" else remove))

    def deletions(self, remove: int) -> "Scorer":
        """Over the plain deletions of `remove` layers: the space of every baseline."""
        return Scorer(self, METHODS["collapse"](self.parent.depth, remove, ("keep",)))

    def header(self) -> dict[str, Any]:
        """What a journal must agree on to be resumed."""
        return {
            "recipe": self.recipe.search_digest,
            "base": str(self.parent.source),
            "evidence": [self.evidence[s].digest for s in ("search", "selection")],
            "objectives": list(self.columns),
            "numerics": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
                         "dtype": str(self.dtype), "device": self.device.type},
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scorer:
    """What `drive` asks: the meaning of one space's genomes and their values in a job's columns."""

    job: Job
    space: Any

    def blueprint(self, genome: Genome) -> Blueprint:
        """The model a genome stands for."""
        return Blueprint((self.job.parent.source,), self.space.decode(genome)).canonical()

    def key(self, trial: Trial) -> tuple[str, Fidelity]:
        """What identifies a trial in the journal: the model, not its spelling, and the evidence."""
        return self.blueprint(trial.genome).digest, trial.fidelity

    def evaluate(self, trials: Sequence[Trial]) -> list[tuple[float, ...]]:
        """Values of trials, in the order of the job's columns; trials of one fidelity share a sweep."""
        found: dict[int, tuple[float, ...]] = {}
        for fidelity in dict.fromkeys(t.fidelity for t in trials):
            numbers = [i for i, t in enumerate(trials) if t.fidelity == fidelity]
            measured = self._measured([self.blueprint(trials[i].genome) for i in numbers], fidelity)
            found |= {i: values(m, self.job.columns) for i, m in zip(numbers, measured, strict=True)}
        return [found[i] for i in range(len(trials))]

    def _measured(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> Sequence[Measures]:
        if not fidelity.repair and not fidelity.heal_tokens:
            return self.job.evaluator.evaluate(blueprints, fidelity)
        return [self._restored(blueprint, fidelity) for blueprint in blueprints]

    def _restored(self, blueprint: Blueprint, fidelity: Fidelity) -> Measures:
        """Measured after a repair, a training, or one after the other."""
        job = self.job
        if fidelity.repair:
            blueprint = job.repaired(blueprint, fidelity.repair).blueprint
        if fidelity.heal_tokens:
            rows = slice(fidelity.start, fidelity.start + fidelity.sequences)
            kl, nll = job.training_aware.scores(blueprint, fidelity.heal_tokens, rows)
            parameters = job.evaluator.parameters(blueprint)
            measured = Measures(kl, nll, math.nan, math.nan, parameters, finite=math.isfinite(kl))
        else:
            measured = job.evaluator.evaluate([blueprint], fidelity)[0]
        for spec in blueprint.layers:
            job.bank.forget(spec)
        return measured


def computes_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16; others emulate it, slower than float32."""
    # torch before 2.11 cannot say.
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def open_job(recipe: Recipe) -> Job:
    """Pin, pull and open the base, and fix the target.

    Raises:
        SourceError, UnsupportedArchitecture, IncompatibleSources: the base cannot be used.
        InvalidRecipe: the target cannot be met.
    """
    pulled = hub.pull(recipe.base, allow_pickle=recipe.allow_pickle, trust_remote_code=recipe.trust_remote_code)
    parent = Parent.open(
        pulled.source,
        pulled.folder,
        pulled.adapter,
        allow_pickle=recipe.allow_pickle,
        trust_remote_code=recipe.trust_remote_code,
    )
    sizes = [parent.layer_parameters] * parent.depth
    target = layers_to_remove(recipe, parent.depth, sizes, parent.parameters)
    return Job(recipe, parent, target, pulled.card)
