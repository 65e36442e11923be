"""What candidates are judged by: windows of text and items of tasks, in disjoint splits, and how much of them."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hf_prune import hub
from hf_prune.blueprint import Fidelity
from hf_prune.data.corpora import Corpus, check_disjoint, load_corpora
from hf_prune.data.own_samples import is_own
from hf_prune.data.task_sources import check_apart, load_standard, load_tasks, open_harness
from hf_prune.data.tasks import Task
from hf_prune.data.windows import Windows, check_chats, cut
from hf_prune.errors import InvalidData
from hf_prune.planning import lessons
from hf_prune.recipe import DEFAULT_TASKS, TASK_OBJECTIVES, Recipe
from hf_prune.session.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything is read when it is first asked for, once. When the search is `over` none of its tasks is asked again.

    Args:
        recipe: says which text and tasks, and how much.
        tokenizer: of the base.
        repo: the base's name, for errors.
        rows: of its embedding.
        positions: most tokens it reads; None where it does not say.
        over: the search is done.
        entries: of data; the recipe's, or the default ones.
        own: what the base said itself, by entry; filled before the first window is asked for.
    """

    recipe: Recipe
    tokenizer: Any
    repo: str
    rows: int
    positions: int | None
    over: bool = False
    entries: tuple[str, ...] = ()
    own: dict[str, tuple[Corpus, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Inputs, entries: tuple[str, ...], over: bool = False) -> "Evidence":
        """For these inputs and entries of data."""
        rows = inputs.base.skeleton.get_input_embeddings().weight.shape[0]
        positions = getattr(inputs.base.config, "max_position_embeddings", None)
        repo = inputs.base.source.repo
        return cls(inputs.recipe, inputs.tokenizer, repo, rows, positions, over, entries)

    def read_tasks(self) -> None:
        """All that the run will ask, so that what cannot be read is told before anything long.

        Raises:
            HfPruneError: as `load_tasks` and `open_harness`.
        """
        self.searched, self.reported  # noqa: B018 - read, and kept
        for name in self.recipe.report.lm_eval:
            open_harness(name)

    # Text ----------------------------------------------------------------------------------------------------------

    @cached_property
    def windows(self) -> dict[str, Windows]:
        """The three disjoint splits: search, selection and report.

        Raises:
            InvalidData: as `windows`, or windows that are longer than the model reads.
        """
        r = self.recipe
        counts = {"search": r.data.sequences, "selection": r.data.selection_sequences, "report": r.report.sequences}
        if self.positions and r.data.length > self.positions:
            raise InvalidData(
                f"length is {r.data.length}, but {self.repo} reads at most {self.positions} tokens; lower --length."
            )
        if r.heal.tokens:
            check_chats(self._corpora, self.tokenizer)
        return {split: self._read(split, n) for split, n in counts.items()}

    def training(self, count: int) -> Windows:
        """At most `count` windows to fit and train on: the search split's, and behind them what is given for healing.

        Raises:
            InvalidData: as `windows`.
        """
        return self._read("heal", count, at_most=True)

    def _read(self, split: str, count: int, at_most: bool = False) -> Windows:
        length = self.recipe.data.length
        return cut(self._corpora, self.tokenizer, split, count, length, self.rows, at_most=at_most)

    @cached_property
    def _corpora(self) -> tuple[Corpus, ...]:
        found = load_corpora(self.entries, self.recipe.tasks.force_test_split, {**self.others, **self.own})
        check_disjoint(found)
        return found

    @cached_property
    def others(self) -> dict[str, tuple[Corpus, ...]]:
        """Text that the base did not say, by entry."""
        forced = self.recipe.tasks.force_test_split
        return {entry: load_corpora([entry], forced) for entry in self.entries if not is_own(entry)}

    @cached_property
    def corpora(self) -> tuple[str, ...]:
        """Names of the corpora, in the order of the measures' texts."""
        return tuple(sorted({c for s in ("search", "selection") for c in self.windows[s].corpora}))

    @property
    def lessons(self) -> int:
        """Windows that finalists may be trained on before the best is chosen."""
        return lessons(self.recipe)

    # Tasks ---------------------------------------------------------------------------------------------------------

    @cached_property
    def searched(self) -> tuple[Task, ...]:
        """The tasks of the search; no item of theirs is in the report."""
        r = self.recipe
        if self.over or not r.tasks.search:
            return ()
        found = load_tasks(r.tasks.search, "search", force=r.tasks.force_test_split)
        need = r.learned_items + r.tasks.selection_items
        learning = "tune_items" if r.learned_items > r.tasks.search_items else "search_items"
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
        return tuple(t.spread(self.recipe.tasks.items) for t in self._report_tasks)

    @cached_property
    def _report_tasks(self) -> tuple[Task, ...]:
        return load_tasks(self.recipe.tasks.names) if self.recipe.tasks.names else self._standard[0]

    @property
    def left_out(self) -> str | None:
        """Which of the standard tasks could not be read and why, a sentence; None where tasks were named."""
        return None if self.recipe.tasks.names else self._standard[1]

    @cached_property
    def _standard(self) -> tuple[tuple[Task, ...], str | None]:
        return load_standard(DEFAULT_TASKS, hub.has_answer)

    # How much ------------------------------------------------------------------------------------------------------

    def fidelity(self, sequences: int) -> Fidelity:
        """So many windows of search text, and the same share of the items of every task."""
        share = self.recipe.tasks.search_items * sequences // self.recipe.data.sequences
        return Fidelity(sequences, items=max(1, share) if self.searched else 0)

    @property
    def full(self) -> Fidelity:
        """All the search evidence."""
        return self.fidelity(self.recipe.data.sequences)

    def foretelling(self, fidelity: Fidelity) -> Fidelity:
        """The same where nothing is repaired afterwards; else with gaps bridged, which foretells what a repair does."""
        repaired = self.recipe.repair.enabled and not self.recipe.every_size
        return replace(fidelity, bridged=repaired)

    @property
    def text(self) -> Fidelity:
        """All the search text and no task."""
        return replace(self.full, items=0)

    @property
    def learning(self) -> Fidelity:
        """What gradient descent on weights learns from: tasks, too, where the objective looks at them."""
        r = self.recipe
        asks = self.searched and r.search.objective in TASK_OBJECTIVES
        return replace(self.full, items=(r.tune.items or r.tasks.search_items) if asks else 0)

    @property
    def selection(self) -> Fidelity:
        """What chooses among finalists."""
        r = self.recipe
        tasks = {"items": r.tasks.selection_items, "first_item": r.learned_items} if self.searched else {}
        return Fidelity(r.data.selection_sequences, start=r.data.sequences, **tasks)
