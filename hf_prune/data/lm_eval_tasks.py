"""Tasks of EleutherAI's lm-evaluation-harness: found, checked and opened without running code that nobody allowed.

`lm_eval` is an optional extra, imported only when a task has to be opened. Data in a local task file are data: whatever
in it would run code is refused unless the caller allows it.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment, SecurityError

from hf_prune.data.local_files import here
from hf_prune.errors import InvalidData, InvalidRecipe, SourceError, UnsafeSource

YAML = (".yaml", ".yml")
"""What a task's file ends with."""
FEWSHOT_SEED = 1234
"""Of lm_eval's command line."""


@dataclass(frozen=True, slots=True)
class Request:
    """A task to run; all but the name are None for those of lm_eval. `sha256` is of the files and the local data."""

    task: str
    path: Path | None = None
    config: dict[str, Any] | None = None
    sha256: str | None = None


@functools.cache
def task_manager(builtin: bool) -> Any:
    """lm_eval's own finder of tasks; the list of those that come with it takes seconds to read, so it is read once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=builtin)


class _Code(str):
    """The target of a `!function`."""


class _Loader(yaml.SafeLoader):
    """Reads a task without importing anything."""


_Loader.add_constructor("!function", lambda loader, node: _Code(node.value))


def installed(name: str | None = None) -> str:
    """lm_eval's own version; `name` is the task that needs it, where that is not a file."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        who = f"There is no file {name} here, and harness tasks" if name else "Harness tasks"
        message = f"{who} need the package lm_eval, which is missing; run pip install 'hf-prune[eval]'."
        raise InvalidRecipe(message) from None


def request_of(name: str, include: Sequence[Path], allow_code: bool) -> Request:
    """A task by its name or its file (.yaml); nothing in it is run.

    Raises:
        InvalidData: the file describes no task.
        UnsafeSource: it names Python code, and `allow_code` is not set.
    """
    path = (here(name) or Path(name)) if name.endswith(YAML) else _included(name, include)
    if path is None:
        return Request(name)
    config, files = _load(path)
    if not isinstance(config.get("task"), str) or "group" in config:
        raise InvalidData(f"The task file {path} does not describe one task; give it a line 'task: NAME'.")
    code = next(_leaves(config, _Code), None)
    if code is not None and not allow_code:
        raise UnsafeSource(f"The task file {path} runs Python code ({code}); read that code, then allow it.")
    kwargs = config.get("dataset_kwargs") or {}
    if isinstance(kwargs, Mapping) and "data_files" in kwargs:
        config["dataset_kwargs"] = {**kwargs, "data_files": _located(kwargs["data_files"], path.parent)}
        files += [Path(p) for p in _leaves(config["dataset_kwargs"]["data_files"]) if Path(p).is_file()]
    sums = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    return Request(config["task"], path, config, hashlib.sha256("".join(sums).encode()).hexdigest())


def _included(name: str, include: Sequence[Path]) -> Path | None:
    """The file among the included folders that calls itself `name`."""
    for folder in include:
        for path in sorted(Path(folder).expanduser().rglob("*.yaml")):
            # A folder of tasks also holds fragments that others include and that are no tasks by themselves.
            with contextlib.suppress(InvalidData):
                if _load(path)[0].get("task") == name:
                    return path
    return None


def _load(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """A task as lm_eval merges it from its file and those it includes, and all files that decide what it does."""
    path = path.resolve()
    if path in above:
        raise InvalidData(f"The task file {path} includes itself; remove one of the include lines.")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except Exception as e:
        # Whatever PyYAML's constructors raise: dates without such a day, numbers without end, nesting without end.
        raise InvalidData(f"Cannot read the task file {path} ({reason(e)}); it must be readable YAML.") from None
    if not isinstance(config, dict):
        raise InvalidData(f"The task file {path} is no table of settings; give it lines like 'task: NAME'.")
    modules = {path.parent / f"{code.rpartition('.')[0].replace('.', '/')}.py" for code in _leaves(config, _Code)}
    files, merged = [path, *(m for m in sorted(modules) if m.is_file())], {}
    included = config.pop("include", [])
    for other in included if isinstance(included, list) else [included]:
        below, more = _load(path.parent / str(other), (*above, path))
        merged |= {k: v for k, v in below.items() if k != "task_list"}
        files += more
    return merged | config, files


def _leaves(value: Any, kind: type = object, seen: set[int] | None = None) -> Iterator[Any]:
    """What is inside of that kind; what aliases repeat, once."""
    seen = set() if seen is None else seen
    if isinstance(value, Mapping | list):
        if id(value) not in seen:
            seen.add(id(value))
            for part in value.values() if isinstance(value, Mapping) else value:
                yield from _leaves(part, kind, seen)
    elif isinstance(value, kind):
        yield value


def _located(files: Any, folder: Path) -> Any:
    """Data files with those that lie beside the task's file made absolute."""
    if isinstance(files, Mapping):
        return {k: _located(v, folder) for k, v in files.items()}
    if isinstance(files, list):
        return [_located(f, folder) for f in files]
    near = folder / str(files)
    return str(near.resolve()) if near.is_file() else str(files)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stdout, and on stderr only what HF_PRUNE_DEBUG=1 asks for: lm_eval prints, logs and draws bars."""
    if os.environ.get("HF_PRUNE_DEBUG") == "1":
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    before = logging.root.manager.disable
    # Handlers of transformers and datasets keep the stderr they were made with, so redirecting is not enough.
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        logging.disable(before)


def check_request(request: Request, manager: Any, allow_code: bool) -> None:
    """Refuse what lm_eval would only find out after fetching the data, or not at all."""
    from lm_eval.api import registry

    config = request.config or _known(request.task, manager)
    if config.get("unsafe_code"):
        raise UnsafeSource(f"The task {request.task!r} runs code that the model writes; choose another task.")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise InvalidRecipe(f"The task {request.task!r} needs images or sound; choose one of text alone.")
    listed = [] if request.config is None or allow_code else config.get("metric_list") or []
    for entry in listed if isinstance(listed, list) else []:
        name = entry.get("metric") if isinstance(entry, Mapping) else None
        if name is not None and (entry.get("hf_evaluate") or name not in registry.metric_registry):
            raise UnsafeSource(
                f"The task {request.task!r} takes the metric {name!r} from a script outside lm_eval; use one of "
                "lm_eval's metrics, or read that script and allow it."
            )


def _known(name: str, manager: Any) -> dict[str, Any]:
    """Settings of a task of lm_eval's own."""
    entry = manager.task_index.get(name)
    if name in manager.all_subtasks:
        return entry.cfg
    if entry is not None:
        members = entry.tags if name in manager.all_tags else entry.cfg["task"]
        shown = sorted(m if isinstance(m, str) else str(m.get("task", m.get("group"))) for m in members)[:3]
        raise InvalidRecipe(f"{name!r} is a group of tasks in lm_eval; name members, such as {', '.join(shown)}.")
    near = difflib.get_close_matches(name, manager.all_subtasks, 3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "lm-eval ls subtasks lists them."
    raise InvalidRecipe(f"There is no file {name} here, and lm_eval {installed()} has no task {name!r}; {hint}")


@contextlib.contextmanager
def sandbox(task: str) -> Iterator[None]:
    """lm_eval fills templates without a guard, so that one in a task file could reach any Python object."""
    from lm_eval import utils

    own = utils.env
    utils.env = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    utils.env.filters = own.filters
    try:
        yield
    except SecurityError as e:
        raise UnsafeSource(f"A template of the task {task!r} would run code ({e}); remove it or allow it.") from None
    finally:
        utils.env = own


def open_task(manager: Any, request: Request) -> Any:
    """lm_eval's table of one task with its data; lm_eval also tries the templates on the first document.

    Raises:
        InvalidData: the task's file does not fit its data.
        SourceError: the data of a task of lm_eval's own cannot be fetched.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    spec: Any = request.config or request.task
    try:
        if next(_leaves(spec, _Code), None) is not None:
            # Its functions imported, and the data files where they were found.
            spec = {**load_yaml(request.path), "dataset_kwargs": request.config.get("dataset_kwargs")}
        found = manager.load([spec])
    except SecurityError:
        raise
    except Exception as e:
        message = f"lm_eval cannot load the task {request.task!r} ({reason(e)}); "
        if request.config is None:
            raise SourceError(message + "check the connection to the Hub.") from e
        raise InvalidData(message + "correct its file.") from e
    (task,) = found["tasks"].values()
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return found


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(f"{type(error).__name__} {error}".split())[:300]
