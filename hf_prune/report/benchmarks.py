"""Results of whole official splits of benchmarks, as the Hub keeps them beside a model: `.eval_results/*.yaml`.

https://huggingface.co/docs/hub/eval-results; which dataset is a benchmark, the Hub says itself.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from hf_prune import hub
from hf_prune.atomic_files import write_text
from hf_prune.report.lm_eval import HarnessScores

FOLDER = ".eval_results"


def write_benchmarks(folder: Path, scores: Mapping[str, HarnessScores]) -> None:
    """Put a file per benchmark into the folder of a result, and take away those of an earlier measurement.

    Args:
        folder: of the result.
        scores: of the finished model, by the task of lm_eval.
    """
    if (folder / FOLDER).is_dir():
        shutil.rmtree(folder / FOLDER)
    for one in scores.values():
        if (said := _said(one)) is not None:
            (folder / FOLDER).mkdir(exist_ok=True)
            name = re.sub(r"[^\w.-]", "-", f"{one.split[0]}-{one.task}")
            write_text(folder / FOLDER / f"{name}.yaml", said)


def _said(scores: HarnessScores) -> str | None:
    """The first metric of a task that is a share of right answers, in percent; None where there is nothing to say."""
    metric = next((m for m, v in scores.metrics.items() if scores.higher_is_better.get(m) and 0 <= v <= 1), None)
    if not scores.split or not metric:
        return None
    dataset, config, split, shots = scores.split
    if (task := hub.benchmark_task(dataset, config, split)) is None:
        return None
    notes = f"{scores.version}: {scores.task}, {shots}-shot, {metric}"
    return hub.benchmark_result(dataset, task, round(100 * scores.metrics[metric], 2), notes)
