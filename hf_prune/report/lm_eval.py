"""EleutherAI's lm-evaluation-harness on a live model: its tasks, its prompts and its metrics, cached per model.

`lm_eval` is an optional extra, imported only when a task has to run.
"""

import contextlib
import copy
import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import UndefinedError

from hf_prune.atomic_files import write_text
from hf_prune.data.lm_eval_tasks import (
    Request,
    check_request,
    installed,
    open_task,
    quiet,
    reason,
    request_of,
    sandbox,
    task_manager,
)
from hf_prune.errors import InvalidData, InvalidRecipe

SEEDS = (0, 1234)
"""Of Python's generator, and of numpy, torch and few-shot sampling: those of lm_eval's command line."""


@dataclass(frozen=True, eq=False)
class HarnessScores:
    """What lm_eval measured on one task.

    `metrics` maps a metric to its value over the task, without standard errors; a task of several filters (ways to cut
    the answer out of a text) has "metric,filter" names. `higher_is_better` has those metrics of which the task says so.
    `items` float64 [documents], in document order, as the task gives them before it aggregates (1 or 0 for acc, natural
    logs for perplexities), NaN where a document has no value; metrics that are no number per document (bleu) are not in
    it. `version` names lm_eval's version and the task's. `split` has dataset of the Hub, config, split and examples
    before a question, where every row of that split was asked, by a task that comes with lm_eval.
    """

    task: str
    metrics: dict[str, float]
    higher_is_better: dict[str, bool]
    items: dict[str, np.ndarray]
    version: str
    split: tuple[str, str, str, int] | None = None


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
    version = installed()
    if limit is not None and limit < 1:
        raise InvalidRecipe(f"limit is {limit}, but every task needs at least one document; raise it or leave it out.")
    requests = [request_of(name, include, allow_code) for name in names]
    tasks = [r.task for r in requests]
    twice = next((t for t in tasks if tasks.count(t) > 1), None)
    if twice is not None:
        raise InvalidRecipe(f"The task {twice!r} is asked for twice; name it once or rename one of the files.")
    keys = {r.task: _key(r, digest, limit, version) for r in requests}
    known = {task: found for task, key in keys.items() if cache and (found := _read(cache, key))}
    missing = [r for r in requests if r.task not in known]
    if missing:
        with quiet(), _untouched(model):
            for request, found in _run(model, tokenizer, missing, limit, batch_size, allow_code):
                known[request.task] = found
                if cache:
                    _write(cache, keys[request.task], found)
    return {task: known[task] for task in tasks}


def _key(request: Request, digest: str, limit: int | None, version: str) -> str:
    parts = {"format": 2, "model": digest, "sha256": request.sha256, "limit": limit, "lm_eval": version}
    return json.dumps({"task": request.task, **parts})


def _place(cache: Path, key: str) -> Path:
    name = re.sub(r"[^\w.-]", "_", json.loads(key)["task"])[:80]
    return cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(cache: Path, key: str) -> HarnessScores | None:
    """Cached scores; a file that is not whole counts as none, since running the task again mends it."""
    try:
        raw = json.loads(_place(cache, key).read_text(encoding="utf-8"))
        items = {name: np.array(values, dtype=np.float64) for name, values in raw["scores"].pop("items").items()}
        split = raw["scores"].pop("split")
        found = HarnessScores(**raw["scores"], items=items, split=split and tuple(split))
        return found if raw["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(cache: Path, key: str, found: HarnessScores) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    path = _place(cache, key)
    fields = {**asdict(found), "items": {name: values.tolist() for name, values in found.items.items()}}
    write_text(path, json.dumps({"key": key, "scores": fields}))


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
    model: Any, tokenizer: Any, requests: Sequence[Request], limit: int | None, batch_size: int, allow_code: bool
) -> Iterator[tuple[Request, HarnessScores]]:
    from lm_eval.models.huggingface import HFLM

    manager = task_manager(any(r.config is None for r in requests))
    for request in requests:
        check_request(request, manager, allow_code)
    # A copy, since lm_eval gives the tokenizer a padding token.
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), backend="causal", batch_size=batch_size)
    for request in requests:
        with contextlib.nullcontext() if request.config is None or allow_code else sandbox(request.task):
            found = _measure(lm, manager, request, limit)
        yield request, found


def _measure(lm: Any, manager: Any, request: Request, limit: int | None) -> HarnessScores:
    """One task as lm_eval.simple_evaluate does it.

    That function itself also asks git, pip and the driver about the machine, on a stderr nobody can redirect.
    """
    import lm_eval

    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[1])
    loaded = open_task(manager, request)
    try:
        results = lm_eval.evaluate(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    except (AssertionError, LookupError, TypeError, ValueError, UndefinedError) as e:
        message = f"lm_eval cannot score the task {request.task!r} ({reason(e)}); check that every document has the "
        raise InvalidData(message + "fields it needs and no option is longer than the model's context.") from e
    (name,) = loaded["tasks"]
    found = _collected(request.task, name, results)
    return replace(found, split=_split(loaded["tasks"][name])) if request.config is None and limit is None else found


def _split(task: Any) -> tuple[str, str, str, int] | None:
    """The split of the Hub that a task asks as a whole."""
    config = task.config
    split = config.test_split or config.validation_split
    if "/" not in config.dataset_path or config.dataset_kwargs or len(task.eval_docs) != len(task.dataset[split]):
        return None
    return config.dataset_path, config.dataset_name or "default", split, int(config.num_fewshot or 0)


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
        version=f"lm_eval {installed()}, task {results['versions'].get(name)}",
    )


def _items(rows: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray | None:
    values = [row[metric] if metric in row["metrics"] else np.nan for row in rows]
    numeric = all(isinstance(v, int | float | np.number | np.bool_) for v in values)
    return np.array(values, dtype=np.float64) if numeric else None
