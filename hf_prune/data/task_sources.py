"""Where tasks come from: JSONL files, datasets of the Hub, and tasks of lm_eval; each gives another split to the search
than to the report.

An entry is a .jsonl file, `repo[:config[:split]]` of a dataset with one of the usual layouts (`LAYOUTS`), a .yaml file
of lm_eval, or the name of a task that comes with it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hf_prune.data.hub_datasets import dataset_rows, explained, split_names
from hf_prune.data.lm_eval_tasks import (
    YAML,
    check_request,
    installed,
    open_task,
    quiet,
    reason,
    request_of,
    sandbox,
    task_manager,
)
from hf_prune.data.local_files import ON_HUB, here, looks_local, parts
from hf_prune.data.records import ENDINGS, kind_of
from hf_prune.data.tasks import Item, Task, load_file
from hf_prune.errors import HfPruneError, InvalidData, InvalidRecipe

Use = Literal["search", "report"]
MOST_ITEMS = 5000
"""Of one task: more are thinned out evenly."""
OFFLINE = "the Hub cannot be reached"
SPOILS = "searching on it spoils every figure reported on it"


def load_tasks(entries: Sequence[str | Path], use: Use = "report", *, force: bool = False) -> tuple[Task, ...]:
    """Read tasks.

    Args:
        entries: files, datasets and names.
        use: the search takes the training side of a dataset or of a task of lm_eval, the report the held-out side.
        force: let a search take a public test split.

    Raises:
        InvalidData: a task is missing, empty or malformed, or the search would take a public test split.
        InvalidRecipe: lm_eval is not installed, or does not know a name.
        UnsafeSource: a task would run code.
        SourceError: the data of a task cannot be fetched.
    """
    tasks = tuple(_task(str(e), use, force) for e in entries)
    names = [t.name for t in tasks]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InvalidData(f"Two tasks are called {twice!r}, which would mix their figures; rename one of them.")
    return tasks


def load_standard(entries: Sequence[str], reachable: Callable[[str], bool]) -> tuple[tuple[Task, ...], str | None]:
    """Datasets that nobody named, for the report: those that can be read now, and a sentence about the others.

    Args:
        entries: spelled like other tasks.
        reachable: whether the Hub answers when it is asked for a dataset.
    """
    found, missing, why = [], [], ""
    for entry in entries:
        if why == OFFLINE or not reachable(parts(entry, 2)[0]):
            why = OFFLINE
        else:
            try:
                found += load_tasks([ON_HUB + entry])
                continue
            except HfPruneError as e:
                why = str(e).rstrip(".")
        missing.append(entry)
    if not missing:
        return tuple(found), None
    none = "No task is measured" if not found else "Not all standard tasks are measured"
    return tuple(found), f"{none}: {', '.join(missing)} left out, since {why}. Name tasks of your own with --tasks."


def check_apart(searched: Sequence[Task], reported: Sequence[Task]) -> None:
    """Refuse a search on items of the report.

    Raises:
        InvalidData: an item is in both.
    """
    shown = {(i.context, i.choices): t.name for t in reported for i in t.items}
    for task in searched:
        common = [i for i in task.items if (i.context, i.choices) in shown]
        if common:
            there = shown[common[0].context, common[0].choices]
            raise InvalidData(
                f"{len(common)} items of the search task {task.name} are also in the report's {there}, whose figures "
                "would then be those of a search; give other items to --search-tasks."
            )


def check_entries(entries: Sequence[str], use: Use = "report", *, force: bool = False) -> None:
    """Read the files among entries of tasks, and look for the datasets and tasks that others name.

    Args:
        entries: as `load_tasks` takes them.
        use: as there.
        force: as there.

    Raises:
        HfPruneError: as `load_tasks`.
    """
    for entry in entries:
        if entry.endswith(YAML):
            check_harness(entry)
        elif _of_file(entry) is None:
            if here(entry) or "/" in entry:
                _side(entry, use, force)
            else:
                check_harness(entry)


def check_harness(name: str) -> None:
    """Read the file of a task of lm_eval, which is not run; look for its name among those of lm_eval.

    Args:
        name: a name or a file (.yaml).

    Raises:
        HfPruneError: as `load_tasks`.
    """
    request = request_of(name, (), False)
    installed(None if request.path else name)
    with quiet():
        check_request(request, task_manager(request.config is None), False)


def open_harness(name: str) -> None:
    """Fetch the data of a task of lm_eval, and try its templates on the first document.

    Raises:
        HfPruneError: as `load_tasks`.
    """
    request = request_of(name, (), False)
    installed(None if request.path else name)
    with quiet():
        manager = task_manager(request.config is None)
        check_request(request, manager, False)
        with sandbox(request.task):
            open_task(manager, request)


def _task(entry: str, use: Use, force: bool) -> Task:
    if not entry.endswith(YAML):
        if (task := _of_file(entry)) is not None:
            return task
        if here(entry) or "/" in entry:
            return _of_dataset(entry, use, force)
    return _of_harness(entry, use, force)


def _of_file(entry: str) -> Task | None:
    path = here(entry)
    if path and path.is_file() or entry.endswith(ENDINGS):
        return load_file(path or Path(entry))
    if path is None and looks_local(entry):
        raise InvalidData(f"There is no task file or folder {entry} here; check the path given as --tasks.")
    return None


# Datasets -------------------------------------------------------------------------------------------------------------


def _ours(row: Mapping[str, Any]) -> Item:
    return Item(row["context"], tuple(row["choices"]), row["answer"])


def _lettered(row: Mapping[str, Any]) -> Item:
    """ARC, OpenBookQA, CommonsenseQA: options with labels."""
    options, question = row["choices"], row.get("question", row.get("question_stem"))
    return Item(_asked(question), tuple(options["text"]), list(options["label"]).index(row["answerKey"]))


def _numbered(row: Mapping[str, Any]) -> Item:
    """MMLU and its kin: a list of options and the number of the right one."""
    return Item(_asked(row["question"]), tuple(row["choices"]), row["answer"])


def _continued(row: Mapping[str, Any]) -> Item:
    """HellaSwag, SWAG: endings of a text."""
    return Item(row["ctx"], tuple(row["endings"]), int(row["label"]))


def _paired(row: Mapping[str, Any]) -> Item:
    """PIQA: two ways to reach a goal."""
    return Item(_asked(row["goal"]), (row["sol1"], row["sol2"]), int(row["label"]))


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


LAYOUTS: Mapping[frozenset[str], Callable[[Mapping[str, Any]], Item]] = {
    frozenset({"context", "choices", "answer"}): _ours,
    frozenset({"question", "choices", "answerKey"}): _lettered,
    frozenset({"question_stem", "choices", "answerKey"}): _lettered,
    frozenset({"question", "choices", "answer"}): _numbered,
    frozenset({"ctx", "endings", "label"}): _continued,
    frozenset({"goal", "sol1", "sol2", "label"}): _paired,
}
"""Columns of a dataset that make it a multiple-choice task, and how a row is read."""
UNNAMED = ("", "default", "main")
"""Configs whose name says nothing."""
SIDES: Mapping[Use, tuple[str, ...]] = {"search": ("train",), "report": ("validation", "test")}


def _side(entry: str, use: Use, force: bool) -> tuple[str, str, str]:
    """What an entry says of a dataset: repo, config, and the split for a use."""
    repo, config, split = parts(entry, 3)
    available = split_names(repo, config, entry)
    side = split or next((s for s in SIDES[use] if s in available), "")
    if side not in available:
        raise InvalidData(
            f"The dataset {entry} has no {side or ' or '.join(SIDES[use])} split for the {use} (only "
            f"{', '.join(available)}); name one: repo:config:split."
        )
    if use == "search" and side.startswith("test") and not force:
        raise InvalidData(
            f"{entry} is a public test split: {SPOILS}; take the train split, or insist with --force-test-split."
        )
    return repo, config, side


def _of_dataset(entry: str, use: Use, force: bool) -> Task:
    repo, config, side = _side(entry, use, force)
    name = config if config not in UNNAMED else repo.rstrip("/").rsplit("/", 1)[-1]
    with explained(entry):
        columns, rows = dataset_rows(repo, config, side)
        layout = next((make for needed, make in LAYOUTS.items() if needed <= set(columns)), None)
        if layout is None:
            raise InvalidData(
                f"The dataset {entry} has the columns {', '.join(columns)}, which are no layout of a multiple-choice "
                "task; write it as JSONL of context, choices and answer."
            )
        items = tuple(_thinned([_whole(layout, row, entry, n) for n, row in enumerate(rows)]))
    if not items:
        raise InvalidData(f"The {side} split of {entry} is empty; choose another one.")
    return Task(name, items)


def _whole(layout: Callable[[Mapping[str, Any]], Item], row: Mapping[str, Any], entry: str, number: int) -> Item:
    try:
        item = layout(row)
        if any(isinstance(row.get(options), str) for options in ("choices", "endings")):
            raise TypeError
        if not 0 <= item.answer < len(item.choices) or len(item.choices) < 2:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise InvalidData(
            f"Row {number} of the dataset {entry} has no answer among its options; choose a split with answers."
        ) from None
    if (other := next((t for t in (item.context, *item.choices) if not isinstance(t, str)), "")) != "":
        raise InvalidData(
            f"Row {number} of the dataset {entry} has {kind_of(other)} where a text belongs; choose another dataset."
        )
    return item


def _thinned(items: Sequence[Item]) -> Iterator[Item]:
    count = min(len(items), MOST_ITEMS)
    return (items[i * len(items) // count] for i in range(count))


# lm_eval --------------------------------------------------------------------------------------------------------------


def _of_harness(name: str, use: Use, force: bool) -> Task:
    installed(None if name.endswith(YAML) else name)
    request = request_of(name, (), False)
    with quiet():
        manager = task_manager(request.config is None)
        check_request(request, manager, False)
        with sandbox(request.task):
            (task,) = open_task(manager, request)["tasks"].values()
            try:
                documents = list(_thinned(list(_documents(task, request.task, use, force))))
                items = tuple(_item(task, document, request.task) for document in documents)
            except (LookupError, TypeError, ValueError, AttributeError) as e:
                raise InvalidData(f"The task {request.task!r} does not fit its data ({reason(e)}).") from None
    kind = "choice" if task.OUTPUT_TYPE == "multiple_choice" else "exact"
    return Task(request.task, items, kind)


def _documents(task: Any, name: str, use: Use, force: bool) -> Any:
    """The training side for a search, and what lm_eval itself would score for the report."""
    if use == "report" or force and not task.has_training_docs():
        return task.eval_docs
    if task.has_training_docs():
        return task.training_docs()
    if task.has_test_docs() and task.has_validation_docs():
        return task.validation_docs()
    raise InvalidData(
        f"The task {name} of lm_eval has only the split it is scored on: {SPOILS}; choose a task with a training "
        "split, or insist with --force-test-split."
    )


def _item(task: Any, document: Any, name: str) -> Item:
    context = task.fewshot_context(document, task.config.num_fewshot)
    target, joint = task.doc_to_target(document), task.config.target_delimiter
    kind = task.OUTPUT_TYPE
    if kind not in ("multiple_choice", "loglikelihood", "generate_until") or not isinstance(context, str):
        raise InvalidRecipe(
            f"The task {name} is neither of multiple choice nor of one answer ({kind}, or with several contexts), so "
            "it cannot be asked in a search; use it with --lm-eval, which measures the result."
        )
    if kind != "multiple_choice":
        answer = target[0] if isinstance(target, list) else str(target)
        return Item(context, (answer,), 0, joint if kind == "generate_until" else "")
    choices = task.doc_to_choice(document)
    answer = choices.index(target) if isinstance(target, str) else target
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise InvalidData(f"The task {name} has an item without one right answer; it cannot be asked in a search.")
    return Item(context, tuple(choices), answer, joint)
