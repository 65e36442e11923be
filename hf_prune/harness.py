"""EleutherAI's lm-evaluation-harness on a live model: its tasks, its prompts and its metrics, cached per model.

`lm_eval` is an optional extra, imported only when a task has to run. Data in a local task file are data: whatever in it
would run code is refused unless the caller allows it.
"""

import contextlib
import copy
import difflib
import hashlib
import importlib.metadata
import json
import logging
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jinja2 import StrictUndefined, UndefinedError
from jinja2.sandbox import SandboxedEnvironment, SecurityError

from hf_prune.errors import InvalidData, InvalidRecipe, SourceError, UnsafeSource

SEEDS = (0, 1234)
"""Of Python's generator, and of numpy, torch and few-shot sampling: those of lm_eval's command line."""


@dataclass(frozen=True, eq=False)
class HarnessScores:
    """What lm_eval measured on one task.

    `metrics` maps a metric to its value over the task, without standard errors; a task of several filters (ways to cut
    the answer out of a text) has "metric,filter" names. `higher_is_better` has those metrics of which the task says so.
    `items` float64 [documents], in document order, as the task gives them before it aggregates (1 or 0 for acc, natural
    logs for perplexities), NaN where a document has no value; metrics that are no number per document (bleu) are not in
    it. `version` names lm_eval's version and the task's.
    """

    task: str
    metrics: dict[str, float]
    higher_is_better: dict[str, bool]
    items: dict[str, np.ndarray]
    version: str


@dataclass(frozen=True, slots=True)
class _Request:
    """A task to run; all but the name are None for those of lm_eval. `sha256` is of the files and the local data."""

    task: str
    path: Path | None = None
    config: dict[str, Any] | None = None
    sha256: str | None = None


class _Code(str):
    """The target of a `!function`."""


class _Loader(yaml.SafeLoader):
    """Reads a task without importing anything."""


_Loader.add_constructor("!function", lambda loader, node: _Code(node.value))


def scores(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    *,
    digest: str,
    limit: int | None,
    cache: Path | None,
    include: Sequence[Path] = (),
    batch_size: int = 8,
    allow_code: bool = False,
) -> dict[str, HarnessScores]:
    """Run every task on the model, or read what an earlier call found; one entry per task, under the task's own name.

    The model keeps its device, precision, modes and weights, the tokenizer its padding, and the random generators
    their state. Relative data files of a local task are looked for beside the task's file first.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        names: tasks that come with lm_eval or lie in `include`, or paths of task files (.yaml).
        digest: tells this model from others in the cache.
        limit: only the first documents of every task; None for all.
        cache: folder of scores, made if need be; None to keep nothing.
        include: folders searched for task files, before lm_eval's own.
        batch_size: requests per forward pass.
        allow_code: let local task files run Python (`!function`, metrics of the Hub, unguarded templates).

    Raises:
        InvalidRecipe: lm_eval is not installed, or a name is unknown, a group, or given twice.
        InvalidData: a local task cannot be read or does not fit its data.
        UnsafeSource: a task would run code.
        SourceError: the data of a task cannot be fetched.
    """
    version = _version()
    if limit is not None and limit < 1:
        raise InvalidRecipe(f"limit is {limit}, but every task needs at least one document; raise it or leave it out.")
    requests = [_request(name, include, allow_code) for name in names]
    tasks = [r.task for r in requests]
    twice = next((t for t in tasks if tasks.count(t) > 1), None)
    if twice is not None:
        raise InvalidRecipe(f"The task {twice!r} is asked for twice; name it once or rename one of the files.")
    keys = {r.task: _key(r, digest, limit, version) for r in requests}
    known = {task: found for task, key in keys.items() if cache and (found := _read(cache, key))}
    missing = [r for r in requests if r.task not in known]
    if missing:
        with _quiet(), _untouched(model):
            for request, found in _run(model, tokenizer, missing, limit, batch_size, allow_code):
                known[request.task] = found
                if cache:
                    _write(cache, keys[request.task], found)
    return {task: known[task] for task in tasks}


def _version() -> str:
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        message = "Harness tasks need the package lm_eval, which is missing; run pip install 'hf-prune[eval]'."
        raise InvalidRecipe(message) from None


def _request(name: str, include: Sequence[Path], allow_code: bool) -> _Request:
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else _included(name, include)
    if path is None:
        return _Request(name)
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
    return _Request(config["task"], path, config, hashlib.sha256("".join(sums).encode()).hexdigest())


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
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise InvalidData(f"Cannot read the task file {path} ({_reason(e)}); it must be readable YAML.") from None
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


def _leaves(value: Any, kind: type = object) -> Iterator[Any]:
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part, kind)
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


def _key(request: _Request, digest: str, limit: int | None, version: str) -> str:
    parts = {"format": 1, "model": digest, "sha256": request.sha256, "limit": limit, "lm_eval": version}
    return json.dumps({"task": request.task, **parts})


def _place(cache: Path, key: str) -> Path:
    name = re.sub(r"[^\w.-]", "_", json.loads(key)["task"])[:80]
    return cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(cache: Path, key: str) -> HarnessScores | None:
    """Cached scores; a file that is not whole counts as none, since running the task again mends it."""
    try:
        raw = json.loads(_place(cache, key).read_text(encoding="utf-8"))
        items = {name: np.array(values, dtype=np.float64) for name, values in raw["scores"].pop("items").items()}
        return HarnessScores(**raw["scores"], items=items) if raw["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(cache: Path, key: str, found: HarnessScores) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    path = _place(cache, key)
    fields = {**asdict(found), "items": {name: values.tolist() for name, values in found.items.items()}}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps({"key": key, "scores": fields}), encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


@contextlib.contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Put back what lm_eval changes: it calls model.eval(), and tasks draw from the global random generators."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])


def _run(
    model: Any, tokenizer: Any, requests: Sequence[_Request], limit: int | None, batch_size: int, allow_code: bool
) -> Iterator[tuple[_Request, HarnessScores]]:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # The list of lm_eval's own tasks takes seconds to read.
    manager = TaskManager(include_defaults=any(r.config is None for r in requests))
    for request in requests:
        _check(request, manager, allow_code)
    # A copy, since lm_eval gives the tokenizer a padding token.
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size)
    for request in requests:
        with contextlib.nullcontext() if request.config is None or allow_code else _sandbox(request.task):
            found = _measure(lm, manager, request, limit)
        yield request, found


def _check(request: _Request, manager: Any, allow_code: bool) -> None:
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
    raise InvalidRecipe(f"lm_eval {_version()} has no task {name!r}; {hint}")


@contextlib.contextmanager
def _sandbox(task: str) -> Iterator[None]:
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


def _measure(lm: Any, manager: Any, request: _Request, limit: int | None) -> HarnessScores:
    """One task as lm_eval.simple_evaluate does it.

    That function itself also asks git, pip and the driver about the machine, on a stderr nobody can redirect.
    """
    import lm_eval

    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[1])
    loaded = _loaded(manager, request)
    (task,) = loaded["tasks"].values()
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(SEEDS[1])
    try:
        results = lm_eval.evaluate(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    except (AssertionError, LookupError, TypeError, ValueError, UndefinedError) as e:
        message = f"lm_eval cannot score the task {request.task!r} ({_reason(e)}); check that every document has the "
        raise InvalidData(message + "fields it needs and no option is longer than the model's context.") from e
    (name,) = loaded["tasks"]
    return _collected(request.task, name, results)


def _loaded(manager: Any, request: _Request) -> Any:
    """The task with its data; lm_eval also tries the templates on the first document."""
    from lm_eval.tasks._yaml_loader import load_yaml

    spec: Any = request.config or request.task
    try:
        if next(_leaves(spec, _Code), None) is not None:
            # Its functions imported, and the data files where they were found.
            spec = {**load_yaml(request.path), "dataset_kwargs": request.config.get("dataset_kwargs")}
        return manager.load([spec])
    except SecurityError:
        raise
    except Exception as e:
        message = f"lm_eval cannot load the task {request.task!r} ({_reason(e)}); "
        if request.config is None:
            raise SourceError(message + "check the connection to the Hub.") from e
        raise InvalidData(message + "correct its file.") from e


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]


def _collected(task: str, name: str, results: Mapping[str, Any]) -> HarnessScores:
    rows = sorted(results["samples"][name], key=lambda row: row["doc_id"])
    filters = sorted({row["filter"] for row in rows})
    suffix = {f: "" if len(filters) == 1 else f",{f}" for f in filters}
    pairs = [key.rpartition(",") for key in results["results"][name] if "," in key]
    pairs = [(metric, f) for metric, _, f in pairs if not metric.endswith("_stderr")]
    better = results["higher_is_better"].get(name) or {}
    items = {m + suffix[f]: _items([r for r in rows if r["filter"] == f], m) for m, f in pairs}
    return HarnessScores(
        task=task,
        metrics={m + suffix[f]: float(results["results"][name][f"{m},{f}"]) for m, f in pairs},
        higher_is_better={m + suffix[f]: bool(better[m]) for m, f in pairs if better.get(m) is not None},
        items={m: values for m, values in items.items() if values is not None},
        version=f"lm_eval {_version()}, task {results['versions'].get(name)}",
    )


def _items(rows: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray | None:
    values = [row[metric] if metric in row["metrics"] else np.nan for row in rows]
    numeric = all(isinstance(v, int | float | np.number | np.bool_) for v in values)
    return np.array(values, dtype=np.float64) if numeric else None
