"""One run: a recipe with its base pinned and opened, its evidence, its evaluator and the meaning of its genomes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedModel

from hf_prune import hub
from hf_prune.assembly.assemble import Parent, assemble, check, quiet
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.assembly.patches import load_patches, save_patches
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part, Source
from hf_prune.data.task_sources import check_apart, load_tasks
from hf_prune.data.tasks import Task
from hf_prune.data.windows import Windows, windows
from hf_prune.errors import InvalidData, InvalidRecipe
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.objectives import OBJECTIVES, REVISION, Measures
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.evaluation.speed import computes_bfloat16
from hf_prune.methods import METHODS
from hf_prune.methods.width import WidthSpace
from hf_prune.models.numbering import sliced
from hf_prune.models.variants import beside, check_variants, pull_variant
from hf_prune.plan import Target, check_layers, layers_to_remove
from hf_prune.recipe import DEFAULT_DATA, TASK_OBJECTIVES, Recipe
from hf_prune.recovery.latency import width_budget
from hf_prune.recovery.levels import Kind, Levels, Options, made
from hf_prune.recovery.repair import Repaired, repair
from hf_prune.recovery.short_training import Lesson, TrainingAware
from hf_prune.session.scorer import Scorer

Progress = Callable[[int, int], None]
ALWAYS = ("kl", "perplexity", "similarity", "kl_similarity", "params")
"""What every trial is journaled with, so that reports and baselines need no second forward."""
CAPACITY = 64
"""Merged layers that are kept beside the base unless told otherwise."""
FINAL_STAGES = 3
"""Rounds of training-aware selection: each trains twice as long as the one before, and half of the finalists go on."""


@dataclass(frozen=True, eq=False)
class Job:
    """A run with its base pinned and opened; what is heavy is made when first asked for, once. When its search is
    `over` it asks no task of that again."""

    recipe: Recipe
    parents: tuple[Parent, ...]
    target: Target
    cards: tuple[Mapping[str, Any], ...]
    over: bool = False

    @property
    def parent(self) -> Parent:
        """The base."""
        return self.parents[0]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Base and variants, by which blueprints of this run are numbered."""
        return tuple(p.source for p in self.parents)

    @property
    def goal(self) -> str:
        """What the search is after, in words."""
        if not self.target.remove:
            return "every size"
        if self.recipe.latency is not None:
            return f"keep {self.recipe.latency:.0%} of the time"
        if self.recipe.method.startswith("width"):
            return f"remove {self.target.removed_ratio:.0%} of all parameters"
        return f"remove {self.target.remove} of {self.parent.depth} layers"

    def identity(self, number: int) -> Blueprint:
        """A parent, whole."""
        layers = tuple(LayerSpec((Part(number, i),)) for i in range(self.parent.depth))
        return Blueprint(self.sources, layers, number, number)

    def removed(self, blueprint: Blueprint) -> tuple[int, ...]:
        """Source layers that are the anchor of no output layer."""
        kept = {s.anchor.layer for s in blueprint.layers}
        return tuple(i for i in range(self.parent.depth) if i not in kept)

    def assembled(self, blueprint: Blueprint) -> PreTrainedModel:
        """A blueprint of this run as a model, in the precision and on the device of the search."""
        patches = self.bank.named(blueprint)
        return assemble(blueprint.over(self.sources), self.parents, patches, dtype=self.dtype, device=self.device)

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

    @property
    def lessons(self) -> int:
        """Windows that finalists may be trained on before the best is chosen."""
        return -(-self.recipe.search_heal * 2 ** (FINAL_STAGES - 1) // self.recipe.length)

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
        stored = self.parent.dtype
        native = self.device.type != "cpu" or stored == torch.bfloat16 and computes_bfloat16()
        return stored if native else torch.float32

    @cached_property
    def bank(self) -> LayerBank:
        """The dense model, resident."""
        identity = Blueprint.identity(self.parent.source, self.parent.depth)
        model = assemble(identity, [self.parent], dtype=self.dtype, device=self.device)
        return LayerBank(model, self.parents, self._capacity())

    def _capacity(self) -> int:
        """Merged layers kept beside the base."""
        memory = self.recipe.memory
        if memory is None:
            return CAPACITY
        layer = self.parent.layer_parameters * self.dtype.itemsize
        room = int((memory * 2**30 - self.parent.parameters * self.dtype.itemsize) / layer) - len(self.parents) + 1
        if room < 1:
            least = (self.parent.parameters * self.dtype.itemsize + len(self.parents) * layer) / 2**30
            raise InvalidRecipe(
                f"memory {memory:g} GiB is too little: base and layers being merged need {least:.2f}; raise --memory."
            )
        return room

    @cached_property
    def evaluator(self) -> Evaluator:
        """The sweep over the search windows, followed by the selection windows; each has its teacher."""
        if len(self.parents) > 1:
            splits = [self.evidence[s] for s in ("search", "selection")]
            self._untaught.teach([self.teacher(c) for s in splits for c in s.corpora])
        return self._untaught

    @cached_property
    def _untaught(self) -> Evaluator:
        """The same, every window compared with the base."""
        splits = [self.evidence[s] for s in ("search", "selection")]
        return Evaluator(
            self.bank,
            torch.cat([s.tokens for s in splits]),
            with_modules=OBJECTIVES[self.recipe.objective].needs_modules,
            corpora=[self.corpora.index(c) for s in splits for c in s.corpora],
            exam=(lambda dense: Exam(dense, self.searched, self.tokenizer, self.recipe.seed))
            if self.searched
            else None,
        )

    @cached_property
    def searched(self) -> tuple[Task, ...]:
        """The tasks of the search; no item of theirs is in the report."""
        if self.over or not self.recipe.search_tasks:
            return ()
        r = self.recipe
        found = load_tasks(r.search_tasks, "search", force=r.force_test_split)
        need = r.learned_items + r.selection_items
        learning = "tune_items" if r.learned_items > r.search_items else "search_items"
        if short := next((t for t in found if len(t.items) < need), None):
            raise InvalidData(
                f"The task {short.name} has {len(short.items)} items, but {learning} and selection_items ask for "
                f"{need}; lower them."
            )
        check_apart(found, self._report_tasks)
        return found

    @cached_property
    def reported(self) -> tuple[Task, ...]:
        """The tasks of the report: all its tables show the same `task_items` items of each, spread over the answers."""
        return tuple(t.spread(self.recipe.task_items) for t in self._report_tasks)

    @cached_property
    def _report_tasks(self) -> tuple[Task, ...]:
        return load_tasks(self.recipe.tasks)

    @cached_property
    def corpora(self) -> tuple[str, ...]:
        """Names of the corpora, in the order of the measures' texts."""
        return tuple(sorted({c for s in ("search", "selection") for c in self.evidence[s].corpora}))

    @cached_property
    def known(self) -> tuple[Measures, ...]:
        """Of every parent on the full search evidence."""
        return self._untaught.evaluate([self.identity(k) for k in range(len(self.parents))], self.full)

    def teacher(self, corpus: str) -> int:
        """The parent that knows a corpus best, by its search text; the base where a text was not searched on."""
        if len(self.parents) == 1 or corpus not in self.corpora:
            return 0
        column = self.corpora.index(corpus)
        return min(range(len(self.parents)), key=lambda k: self.known[k].texts[column])

    @property
    def dense(self) -> int:
        """The best parent on the search evidence: by tasks where there are some, else by text."""
        if len(self.parents) == 1:
            return 0
        worth = [m.error if m.tasks else m.text for m in self.known]
        return min(range(len(worth)), key=lambda k: worth[k])

    @property
    def full(self) -> Fidelity:
        """All the search evidence."""
        return self.fidelity(self.recipe.sequences)

    @property
    def text(self) -> Fidelity:
        """All the search text and no task."""
        return replace(self.full, items=0)

    @property
    def learning(self) -> Fidelity:
        """What gradient descent on weights learns from: tasks, too, where the objective looks at them."""
        r = self.recipe
        asks = self.searched and r.objective in TASK_OBJECTIVES
        return replace(self.full, items=(r.tune_items or r.search_items) if asks else 0)

    def fidelity(self, sequences: int) -> Fidelity:
        """So many windows of search text, and the same share of the items of every task."""
        share = self.recipe.search_items * sequences // self.recipe.sequences
        return Fidelity(sequences, items=max(1, share) if self.searched else 0)

    def repaired(
        self, cut: Blueprint, sequences: int, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Repaired:
        """A cut with its remaining weights refitted; the bank keeps them, and the run's folder until the run ends."""
        fit = self.training(sequences)
        path = self.home / "repairs" / f"{self.recipe.search_digest}-{cut.digest}-{fit.digest}.json"
        patches = path.with_suffix(".safetensors")
        if path.is_file():
            self.bank.patches.update(load_patches(patches))
            return Repaired.from_json(path.read_text(encoding="utf-8"))
        held = self.evidence["selection"]
        whose = [self.teacher(c) for windows in (fit, held) for c in windows.corpora]
        done = repair(self.bank, cut, fit.tokens, held.tokens, reach=self.recipe.reach, teachers=whose,
                      progress=progress)  # fmt: skip
        save_patches(self.bank.named(done.blueprint), patches)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, done.to_json())
        return done

    @property
    def items(self) -> Path:
        """Which items every candidate answered rightly."""
        return self.home / "items.jsonl"

    @cached_property
    def training_aware(self) -> TrainingAware:
        """Judges finalists after a training, on the selection windows."""
        train = self.training(self.lessons).tokens
        lesson = Lesson.of(self.evaluator.dense, train)
        return TrainingAware(self.evaluator, lesson, self.home / "trials", self.recipe.seed)

    @property
    def selection(self) -> Fidelity:
        """The windows that choose among finalists."""
        r = self.recipe
        tasks = {"items": r.selection_items, "first_item": r.learned_items} if self.searched else {}
        return Fidelity(r.selection_sequences, start=r.sequences, **tasks)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Objectives of every journaled value tuple; the searched one first."""
        each = [f"task:{t.name}" for t in self.searched]
        tasks = ("tasks", "tasks_norm", "doubt", *each) if each else ()
        text = ("text",) if len(self.parents) > 1 else ()
        return tuple(dict.fromkeys((self.recipe.objective, *ALWAYS, *tasks, *text)))

    @cached_property
    def scorer(self) -> Scorer:
        """Over the genomes of the recipe's method at this run's budget (free for a front)."""
        depth, remove, method = self.parent.depth, self.target.remove or None, METHODS[self.recipe.method]
        if self.recipe.method == "stitch":
            return Scorer(self, self.stitches(self.recipe.merges))
        if self.recipe.method.startswith("width"):
            return Scorer(self, self.widths)
        if self.recipe.method == "collapse":
            return Scorer(self, method(depth, remove, self.recipe.rules, self.recipe.norms, self.parent.kinds))
        return Scorer(self, method(depth, 2 * remove if remove and self.recipe.method == "halves" else remove))

    def stitches(self, merges: tuple[str, ...], blend: bool = True) -> Any:
        """The space of stitched models at this run's budget."""
        family = self.parent.family
        names = [n for n in self.parent.shapes if not n.startswith(family.prefix)]
        behind = [n for n in names if n.startswith((family.norm + ".", "lm_head."))]
        ends = [self._first_alike([n for n in names if n not in behind]), self._first_alike(behind)]
        return METHODS["stitch"](self.parent.depth, self.target.remove or None, len(self.parents), merges,
                                 self.recipe.mix_halves, blend, *ends)  # fmt: skip

    def library(self, kind: Kind = "obs", progress: Progress = lambda done, total: None) -> Levels:
        """The level library of a kind, made when it is first asked for; layers of this run may name it from then on."""
        if kind not in self._libraries:
            r = self.recipe
            text = self.training(r.library_sequences)
            multiple = r.multiple_of or (8 if self.device.type == "cpu" else 64)
            found = made(self.evaluator.dense, self.parent, text, Options(kind, r.levels, multiple, r.damping),
                         r.library and Path(r.library), progress)  # fmt: skip
            self.parent.levels[found.digest] = found
            self._libraries[kind] = found
        return self._libraries[kind]

    @cached_property
    def _libraries(self) -> dict[str, Levels]:
        return {}

    @cached_property
    def widths(self) -> WidthSpace:
        """The space of models cut to levels of the library, at this run's size."""
        costs, limit = width_budget(self)
        return WidthSpace(costs, limit, self.library().digest, self.recipe.method == "width+depth")

    def _first_alike(self, names: Sequence[str]) -> tuple[int, ...]:
        """For every parent the first that has the same tensors of these names."""
        tensors = [[parent.outside_tensor(n) for n in names] for parent in self.parents]
        return tuple(
            next(k for k, first in enumerate(tensors) if all(map(torch.equal, mine, first))) for mine in tensors
        )

    def deletions(self, remove: int, mix: tuple[float, ...] = (1.0,)) -> Scorer:
        """The baselines' space: plain deletions of `remove` layers of the base, or of a mix of the parents."""
        return Scorer(self, METHODS["collapse"](self.parent.depth, remove, ("keep",)), mix)

    def header(self) -> dict[str, Any]:
        """What a journal must agree on to be resumed."""
        # Scores of repaired or trained candidates depend on the text of that, too.
        changing = max(self.lessons, self.recipe.repair_sequences if self.recipe.repair else 0)
        return {
            "recipe": self.recipe.search_digest,
            "base": str(self.parent.source),
            **({"variants": [str(s) for s in self.sources[1:]]} if len(self.sources) > 1 else {}),
            "evidence": [self.evidence[s].digest for s in ("search", "selection")],
            **({"tasks": [t.digest for t in self.searched]} if self.searched else {}),
            **({"training": self.training(changing).digest} if changing else {}),
            "objectives": list(self.columns),
            "numerics": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
                         "dtype": str(self.dtype), "device": self.device.type, "objectives": REVISION},
        }  # fmt: skip


def open_job(recipe: Recipe) -> Job:
    """Pin, pull and open the base, and fix the target.

    Raises:
        SourceError, UnsupportedArchitecture, IncompatibleSources: the base cannot be used, or not by this method.
        InvalidRecipe: the target cannot be met.
    """
    trust = recipe.trust
    check_variants(recipe.base, recipe.variants, **trust)
    pulled = [hub.pull(recipe.base, **trust), *(pull_variant(recipe.base, v, **trust) for v in recipe.variants)]
    parent, *others = (Parent.open(p.source, p.folder, p.adapter, **trust) for p in pulled)
    parents = (parent, *(beside(parent, other) for other in others))
    check(Blueprint(tuple(p.source for p in parents), (LayerSpec((Part(0, 0),)),)), parents)
    # Refused now, not once the dense model has read all its text.
    check_layers(recipe, parent.family, parent.kinds)
    sizes = [parent.layer_parameters] * parent.depth
    target = layers_to_remove(recipe, parent.depth, sizes, parent.parameters)
    if recipe.drop:
        sliced(parent.config, parent.family, [i for i in range(parent.depth) if i not in recipe.dropped()])
    return Job(recipe, parents, target, tuple(p.card for p in pulled))
