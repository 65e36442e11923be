"""One run on one device: the dense model, its evaluator and teachers, its libraries, and what its genomes mean."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import torch
import transformers
from transformers import PreTrainedModel

from hf_prune.assembly.assemble import Parent, alive, assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.assembly.patches import load_patches, save_patches
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint, Fidelity, Genome
from hf_prune.evaluation.comparison import block_distance, block_influence, influence
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.objectives import OBJECTIVES, REVISION, Measures
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.methods.collapse import CollapseSpace
from hf_prune.methods.method import Facts
from hf_prune.models.devices import device_of
from hf_prune.models.numbering import is_writable
from hf_prune.planning import Demand
from hf_prune.recipe import Recipe
from hf_prune.recovery import expert_scores
from hf_prune.recovery.latency import Latencies, time_levels, within
from hf_prune.recovery.levels import HALVES, Kind, Levels
from hf_prune.recovery.repair import RepairedCut, repair
from hf_prune.recovery.short_training import Lesson, TrainingAware
from hf_prune.search import SEARCHERS, Schedule, Scores, Space
from hf_prune.session.clock import Clock
from hf_prune.session.dense_model import dtype_of, need_of, open_bank
from hf_prune.session.entries import entries_of
from hf_prune.session.evidence import Evidence
from hf_prune.session.inputs import Inputs, open_inputs
from hf_prune.session.libraries import library_of
from hf_prune.session.scorer import Scorer
from hf_prune.session.timetable import Limit, Timetable
from hf_prune.session.workdir import Workdir

Progress = Callable[[int, int], None]
ALWAYS = ("kl", "perplexity", "similarity", "kl_similarity", "params")
"""What every trial is journaled with, so that reports and baselines need no second forward."""
BATCH, STEP_SECONDS = 2048, 20.0
"""Most candidates of one sweep: many, because they share prefixes; few enough that a killed run has lost little."""
BRIDGED = 32
"""Windows that bridges are fitted on."""
FINALISTS = 16
"""Most that a search returns."""


@dataclass(frozen=True, eq=False)
class Session:
    """A run with its sources opened; what is heavy is made when it is first asked for, once.

    `precision` stands in for an automatic one in which the base overflows. `timetable` says how long it may take; None
    where nothing is bounded.
    """

    inputs: Inputs
    evidence: Evidence
    workdir: Workdir
    clock: Clock = field(default_factory=Clock)
    precision: torch.dtype | None = None
    timetable: Timetable | None = None

    @property
    def asked(self) -> Recipe:
        """The recipe as it was given, before its budgets were decided."""
        return self.timetable.asked if self.timetable else self.recipe

    def limit(self, name: str, stage: str) -> Limit | None:
        """When a search or training must end; None where somebody asked for its length, and for no time."""
        lasting = self.asked.search.evaluations or stage == "heal"
        if self.timetable is None or self.asked.machine.time is None and lasting:
            return None
        return self.timetable.limit(name, stage)

    @property
    def recipe(self) -> Recipe:
        """What is asked for."""
        return self.inputs.recipe

    # The dense model -----------------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Where the search runs."""
        return device_of(self.recipe.machine.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of the search."""
        return self.precision or dtype_of(self.recipe, self.inputs.base, self.device)

    @cached_property
    def need(self) -> Demand:
        """What the search needs on its device; errors as `need_of`."""
        return need_of(self.recipe, self.inputs.base, self.dtype, self.device)

    @property
    def streams(self) -> bool:
        """Whether layers of the dense model are read as they are reached, since it does not fit."""
        return self.need.share(self.recipe.machine.memory).layers is not None

    @cached_property
    def bank(self) -> LayerBank:
        """The layers of the dense model."""
        return open_bank(self.inputs, self.need, self.dtype, self.device, self.workdir.folder)

    def assembled(self, blueprint: Blueprint) -> PreTrainedModel:
        """A blueprint of this run as a model, in the precision and on the device of the search."""
        numbered = blueprint.over(self.inputs.sources)
        patches = self.bank.named(blueprint)
        return assemble(numbered, self.inputs.parents, patches, dtype=self.dtype, device=self.device)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The sweep over the search windows, followed by the selection windows; each has its teacher."""
        if len(self.inputs.parents) > 1:
            self._untaught.teach([self.teacher(c) for c in self._texts()])
        return self._untaught

    @cached_property
    def _untaught(self) -> Evaluator:
        """The same, every window compared with the base."""
        evidence = self.evidence
        return Evaluator(
            self.bank,
            torch.cat([evidence.windows[s].tokens for s in ("search", "selection")]),
            with_modules=OBJECTIVES[self.recipe.search.objective].needs_modules,
            corpora=[evidence.corpora.index(c) for c in self._texts()],
            exam=(lambda dense: Exam(dense, evidence.searched, evidence.tokenizer, self.recipe.seed))
            if evidence.searched
            else None,
            bridges=self.to_bridge,
        )

    def to_bridge(self) -> torch.Tensor:
        """Windows that maps over gaps are fitted on, int64 [M, T]."""
        return self.evidence.training(min(BRIDGED, self.recipe.repair.sequences)).tokens

    def _texts(self) -> Iterator[str]:
        """Corpus of every window of the evaluator."""
        for split in ("search", "selection"):
            yield from self.evidence.windows[split].corpora

    # Who teaches ---------------------------------------------------------------------------------------------------

    @cached_property
    def known(self) -> tuple[Measures, ...]:
        """Of every parent on the full search evidence."""
        parents = [self.inputs.identity(k) for k in range(len(self.inputs.parents))]
        return self._untaught.evaluate(parents, self.evidence.full)

    def teacher(self, corpus: str) -> int:
        """The parent that knows a corpus best, by its search text; the base where a text was not searched on."""
        if len(self.inputs.parents) == 1 or corpus not in self.evidence.corpora:
            return 0
        column = self.evidence.corpora.index(corpus)
        return min(range(len(self.inputs.parents)), key=lambda k: self.known[k].texts[column])

    @property
    def dense(self) -> int:
        """The best parent on the search evidence: by tasks where there are some, else by text."""
        if len(self.inputs.parents) == 1:
            return 0
        worth = [m.error if m.tasks else m.text for m in self.known]
        return min(range(len(worth)), key=lambda k: worth[k])

    # What genomes mean ---------------------------------------------------------------------------------------------

    def facts(self, remove: int | None = None, *, judged: bool = False) -> Facts:
        """What a method builds its space from; `remove` layers instead of the target's. `judged`: with what is known
        once the dense models have read the search evidence."""
        several, libraries = len(self.inputs.parents) > 1, self.inputs.method.libraries(self.recipe)
        embed_of, head_of = self._ends if several else ((), ())
        levels = tuple(kind for kind in libraries if kind in get_args(Kind))
        costs, limit = self.budget if levels else ((), None)
        known = {"best": self.dense, "influence": block_influence(self.evaluator.reference)} if judged else {}
        return Facts(
            self.inputs.depth,
            self.inputs.target.remove if remove is None else remove,
            self.recipe.every_size,
            len(self.inputs.parents),
            self.inputs.names,
            embed_of=embed_of,
            head_of=head_of,
            libraries={kind: self.library(kind).digest for kind in libraries},
            costs=costs,
            limit=limit,
            losses=self._losses(self.library(levels[0])) if levels else (),
            kinds=self.inputs.base.kinds,
            mixture=self.inputs.base.mixture,
            scores={} if levels == libraries else self.library(expert_scores.KIND).tables,
            **known,
        )

    @cached_property
    def _ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.inputs.ends()

    @cached_property
    def scorer(self) -> Scorer:
        """Over the genomes of the recipe's method at this run's budget (free for a front)."""
        return self.scoring(self.inputs.method.space(self.recipe, self.facts()))

    def scoring(self, space: Space, mix: tuple[float, ...] = (1.0,)) -> Scorer:
        """Over the genomes of any space."""
        items = self.workdir.items
        return Scorer(space, self.inputs.sources, self.measure, self.columns, items, mix, self.writable)

    def writable(self, blueprint: Blueprint) -> bool:
        """Whether a config can say which layers are left; almost always."""
        base = self.inputs.base
        return is_writable(base.config, base.family, [s.anchor.layer for s in alive(blueprint).layers])

    def deletions(self, remove: int, mix: tuple[float, ...] = (1.0,)) -> Scorer:
        """Over plain deletions of `remove` layers of the base, or of a mix of the parents."""
        return self.scoring(CollapseSpace(self.inputs.depth, remove, ("keep",)), mix)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Objectives of every journaled value tuple; the searched one first."""
        each = [f"task:{t.name}" for t in self.evidence.searched]
        tasks = ("tasks", "tasks_norm", "doubt", *each) if each else ()
        text = ("text",) if len(self.inputs.parents) > 1 else ()
        return tuple(dict.fromkeys((self.recipe.search.objective, *ALWAYS, *tasks, *text)))

    def measure(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> Sequence[Measures]:
        """As they are, in one sweep; or each after the repair and the training that the fidelity asks for."""
        if not fidelity.repair and not fidelity.heal_tokens:
            return self.evaluator.evaluate(blueprints, fidelity)
        return [self._restored(blueprint, fidelity) for blueprint in blueprints]

    def _restored(self, blueprint: Blueprint, fidelity: Fidelity) -> Measures:
        if fidelity.repair:
            blueprint = self.repaired(blueprint, fidelity.repair).blueprint
        if fidelity.heal_tokens:
            rows = slice(fidelity.start, fidelity.start + fidelity.sequences)
            items = (fidelity.first_item, fidelity.items)
            kl, nll, tasks = self.training_aware.scores(blueprint, fidelity.heal_tokens, rows, items)
            parameters = self.evaluator.parameters(blueprint)
            measured = Measures(kl, nll, math.nan, math.nan, parameters, finite=math.isfinite(kl), tasks=tasks)
        else:
            measured = self.evaluator.evaluate([blueprint], fidelity)[0]
        for spec in blueprint.layers:
            self.bank.forget(spec)
        return measured

    def schedule(self, trials: int, seeds: tuple[Genome, ...] = (), finalists: int = FINALISTS) -> Schedule:
        """What the recipe's search may spend."""
        recipe = self.recipe
        stages = SEARCHERS[recipe.search.searcher].stages(recipe.data.sequences, recipe.data.length)
        fidelities = tuple(self.evidence.foretelling(self.evidence.fidelity(n)) for n in stages)
        return Schedule(
            fidelities,
            max(trials, 1),
            recipe.search.population,
            recipe.search.offspring,
            seeds,
            finalists,
            self.scores(),
        )

    @cached_property
    def batch(self) -> int:
        """Most candidates of one step of the journal: as many as take about `STEP_SECONDS` here, sharing nothing.

        Measured once and kept with the run, since the last bits of a value may depend on what is computed beside it.
        """
        path = self.workdir.batch
        if not path.is_file():
            whole = self.inputs.identity(0)
            started = time.perf_counter()
            self.evaluator.evaluate([replace(whole, layers=whole.layers[1:])], self.evidence.full)
            seconds = time.perf_counter() - started
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(max(1, min(BATCH, int(STEP_SECONDS / seconds)))))
        return json.loads(path.read_text(encoding="utf-8"))

    def scores(self, whole: Blueprint | None = None) -> Scores:
        """One-shot scores of the dense model, or of another whole one."""
        if whole is not None:
            return Scores(influence(self.evaluator.states(whole, self.recipe.data.sequences)))
        reference = self.evaluator.reference
        return Scores(block_influence(reference), block_distance(reference))

    # Levels of widths ----------------------------------------------------------------------------------------------

    def library(self, kind: str, progress: Progress = lambda done, total: None) -> Levels | expert_scores.ExpertScores:
        """The library of a kind, made when it is first asked for; layers of this run may name levels from then on."""
        if kind not in self._libraries:
            text = self.evidence.training(self.recipe.width.sequences)
            dense, base = self.evaluator.dense, self.inputs.base
            self._libraries[kind] = library_of(kind, dense, base, text, self.recipe, progress)
        return self._libraries[kind]

    @cached_property
    def _libraries(self) -> dict[str, Levels | expert_scores.ExpertScores]:
        return {}

    @cached_property
    def budget(self) -> tuple[tuple[tuple[float, ...], ...], float | None]:
        """What every level of every half costs (attentions, then MLPs), and the most of the sum; None for a free size.

        Raises:
            InvalidRecipe: the time asked for is less than the model takes without its layers.
        """
        base, depth, target = self.inputs.base, self.inputs.depth, self.inputs.target
        if self.recipe.size.latency is not None:
            return within(self.latencies.request, depth, self.recipe.size.latency)
        levels = self.library(self.inputs.method.libraries(self.recipe)[0])
        sizes = [levels.sizes(base, i) for i in range(depth)]
        costs = tuple(tuple(map(float, s[half])) for half in HALVES for s in sizes)
        removed = target.removed_ratio * base.parameters
        return costs, sum(c[0] for c in costs) - removed if target.remove else None

    @cached_property
    def latencies(self) -> Latencies:
        """What every level costs in time, measured once; a resumed run reads it, so that its budget stays."""
        path = self.workdir.latencies
        if not path.is_file():
            levels = self.library(self.inputs.method.libraries(self.recipe)[0])
            seed, whole = self.recipe.seed, self.bank.model
            table = time_levels(levels, self.inputs.depth, self.inputs.sources, self.assembled, whole, seed)
            write_text(path, json.dumps(asdict(table)))
        return Latencies.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def _losses(self, levels: Levels) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(levels.losses(i, half).tolist()) for half in HALVES for i in range(self.inputs.depth))

    # What gives back -----------------------------------------------------------------------------------------------

    def repaired(self, cut: Blueprint, sequences: int, progress: Progress = lambda done, total: None) -> RepairedCut:
        """A cut with its remaining weights refitted; the bank keeps them, and the run's folder until the run ends."""
        fit = self.evidence.training(sequences)
        path = self.workdir.repair(self.recipe.search_digest, cut.digest, fit.digest)
        patches = path.with_suffix(".safetensors")
        if path.is_file():
            self.bank.patches.update(load_patches(patches))
            return RepairedCut.from_json(path.read_text(encoding="utf-8"))
        held = self.evidence.windows["selection"]
        whose = [self.teacher(c) for windows in (fit, held) for c in windows.corpora]
        reach = self.recipe.repair.reach
        done = repair(self.bank, cut, fit.tokens, held.tokens, reach=reach, teachers=whose, progress=progress)
        save_patches(self.bank.named(done.blueprint), patches)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, done.to_json())
        return done

    @cached_property
    def training_aware(self) -> TrainingAware:
        """Judges finalists after a training, on the selection windows."""
        train = self.evidence.training(self.evidence.lessons).tokens
        lesson = Lesson.of(self.evaluator.dense, train)
        return TrainingAware(self.evaluator, lesson, self.workdir.trials, self.recipe.seed)

    def header(self) -> dict[str, Any]:
        """What a journal must agree on to be resumed."""
        recipe, evidence, sources = self.recipe, self.evidence, self.inputs.sources
        # Scores of repaired or trained candidates depend on the text of that, too.
        changing = max(evidence.lessons, recipe.repair.sequences if recipe.repair.enabled else 0)
        return {
            "recipe": recipe.search_digest,
            "base": str(self.inputs.base.source),
            **({"variants": [str(s) for s in sources[1:]]} if len(sources) > 1 else {}),
            "evidence": [evidence.windows[s].digest for s in ("search", "selection")],
            **({"tasks": [t.digest for t in evidence.searched]} if evidence.searched else {}),
            **({"training": evidence.training(changing).digest} if changing else {}),
            "objectives": list(self.columns),
            "numerics": {
                "torch": torch.__version__.split("+")[0],
                "transformers": transformers.__version__,
                "dtype": str(self.dtype),
                "device": self.device.type,
                "objectives": REVISION,
            },
        }


def open_session(recipe: Recipe, parents: Sequence[Parent] = (), over: bool = False) -> Session:
    """Open what a recipe names; see `open_inputs` and `Evidence`."""
    workdir = Workdir.beside(recipe.output)
    inputs = open_inputs(recipe, parents, lambda: entries_of(recipe, workdir))
    return Session(inputs, Evidence.of(inputs, entries_of(recipe, workdir), over), workdir)
