"""Benchmarks of the Hub: datasets that say by an eval.yaml which of their splits is which task."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, hf_hub_download

from hf_prune.data.plain_yaml import read_yaml
from hf_prune.hub.retries import Retry

FILE = "eval.yaml"
MOST = 2**20
"""Bytes; a file that is longer lists no tasks."""
ID = re.compile(r"\w[\w.-]{0,95}")


def benchmark_task(dataset: str, config: str, split: str, *, sleep: Callable[[float], None] = time.sleep) -> str | None:
    """The task of a benchmark that a split is; None where the dataset is no benchmark, or nobody can be asked.

    Args:
        dataset: NAMESPACE/NAME.
        config: of the dataset.
        split: of the config.
        sleep: pause between tries, in seconds.
    """
    try:
        path = Path(Retry(sleep)(hf_hub_download, dataset, FILE, repo_type="dataset"))
        raw = read_yaml(path.read_text(encoding="utf-8")) if path.stat().st_size <= MOST else None
    # Of no such file, no such dataset, no network or no YAML nothing follows but that it is no benchmark.
    except Exception:
        return None
    tasks = raw.get("tasks") if isinstance(raw, dict) else None
    for task in tasks if isinstance(tasks, list) else ():
        if isinstance(task, dict) and (str(task.get("config", "default")), task.get("split")) == (config, split):
            found = task.get("id")
            return found if isinstance(found, str) and ID.fullmatch(found) else None
    return None


def benchmark_result(dataset: str, task: str, value: float, notes: str) -> str:
    """What a file of a model says of a benchmark.

    Args:
        dataset: NAMESPACE/NAME.
        task: of `benchmark_task`.
        value: share of right answers, in percent.
        notes: how it was measured.
    """
    return yaml.safe_dump(eval_result_entries_to_yaml([EvalResultEntry(dataset, task, value, notes=notes)]))
