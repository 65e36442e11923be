"""The numbers of a report in rows of text: dense beside pruned, and every stage beside the next.

Pure functions from the report to strings. Every number printed comes from the report.
"""

import math
from collections.abc import Iterator

from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import (
    Accuracy,
    BesideParents,
    Gain,
    HarnessMetric,
    Perplexity,
    Score,
    Stages,
    StageText,
    Task,
    Text,
    total,
)
from hf_prune.report.schema.section import Interval, StageName
from hf_prune.report.verdicts import (
    NONE,
    amount,
    corpora,
    decimals,
    interval,
    percent,
    points,
    ratio,
    significant,
)

Cells = tuple[str, str, str, str]
"""What is measured, dense, pruned, change."""


def header(report: Report) -> Cells:
    """Of `table`; where there are several parents, the dense one is named."""
    return "", f"dense ({report.dense_parent})" if report.dense_parent else "dense", "pruned", "change"


def table(report: Report) -> list[Cells]:
    """The one table of the card: dense | pruned | change, one row per measurement that the report holds."""
    return [
        *_text_rows(report),
        *_task_rows(report),
        *_generation_rows(report),
        *_size_rows(report),
        *_speed_rows(report),
    ]


def stage_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what every stage can do; differences from dense carry paired 95 % intervals."""
    stages = report.stages
    if not stages or not stages.names:
        return [""], []
    rows = [*_stage_texts(stages), *_stage_tasks(stages), *_stage_speech(stages), *_stage_harness(stages)]
    return ["", header(report)[1], *stages.names[1:]], rows


def parents_table(report: Report) -> list[list[str]]:
    """Per corpus: its best parent, perplexity of that, of the base and of the model, and the model's by theirs."""
    return [_beside(corpus, report.beside_parents[corpus]) for corpus in corpora(report.beside_parents)]


def _beside(corpus: str, row: BesideParents) -> list[str]:
    each = [interval(significant(side.perplexity), side.ci) for side in (row.best_parent, row.base, row.pruned)]
    gains = (_factor(row.log_ratio, row.log_ratio_ci), _factor(row.log_ratio_to_base, row.log_ratio_to_base_ci))
    return ["all text" if corpus == "all" else corpus, row.best, *each, *gains]


def _stage_texts(stages: Stages) -> Iterator[list[str]]:
    for corpus in corpora(stages.text):
        by = stages.text[corpus]
        where = "all text" if corpus == "all" else corpus
        yield [f"Perplexity, {where}", *(_stage_perplexity(by.of(n), n) for n in stages.names)]
        if math.isfinite(by.dense.bits_per_byte):
            yield [f"Bits per byte, {where}", *(significant(by.of(n).bits_per_byte) for n in stages.names)]
    if by := total(stages.text):
        yield ["KL to dense", *(NONE if n == "dense" else significant(by.of(n).kl) for n in stages.names)]


def _stage_tasks(stages: Stages) -> Iterator[list[str]]:
    for task, by in stages.tasks.items():
        for row in zip(*(by.of(n).accuracies for n in stages.names), strict=False):
            cells = [_stage_accuracy(accuracy, n) for accuracy, n in zip(row, stages.names, strict=True)]
            yield [f"{task} {row[0].name}", *cells]


def _stage_speech(stages: Stages) -> Iterator[list[str]]:
    said = [stages.generation.of(n) for n in stages.names] if stages.generation else []
    metrics = {
        "ROUGE-1": [row.rouge1 for row in said],
        "ROUGE-L": [row.rougeL for row in said],
        "Exact match": [row.exact_match for row in said],
    }
    for label, scores in metrics.items():
        # A row of zeros tells nothing.
        if all(scores) and any(score.value for score in scores):
            cells = [_stage_score(score, n) for score, n in zip(scores, stages.names, strict=True)]
            yield [f"{label} of greedy text with the corpus", *cells]


def _stage_harness(stages: Stages) -> Iterator[list[str]]:
    for task, by in stages.harness.items():
        for metric in by.of("dense").metrics:
            cells = [_stage_score(by.of(n).metrics[metric], n) for n in stages.names]
            yield [f"lm_eval {task}, {metric}", *cells]


def _stage_perplexity(row: StageText, stage: StageName) -> str:
    value = significant(row.perplexity)
    return value if stage == "dense" else f"{value}; {_times(row)}"


def _stage_accuracy(row: Accuracy, stage: StageName) -> str:
    if stage == "dense":
        return percent(row.dense.value)
    return f"{percent(row.pruned.value)}; {interval(points(row.change.value), row.change.ci, points)}"


def _stage_score(row: Score | HarnessMetric, stage: StageName) -> str:
    value = significant(row.value)
    if stage == "dense" or row.difference_ci is None:
        return value
    return f"{value}; {interval(decimals(row.difference, 3), row.difference_ci, lambda x: decimals(x, 3))}"


def _text_rows(report: Report) -> list[Cells]:
    rows = []
    for name in corpora(report.text):
        entry, where = report.text[name], "all text" if name == "all" else name
        pair = [interval(significant(side.perplexity), side.ci) for side in (entry.dense, entry.pruned)]
        rows.append((f"Perplexity, {where}", *pair, _times(entry)))
        if math.isfinite(entry.dense.bits_per_byte):
            rows.append((f"Bits per byte, {where}", *_bits(entry.dense, entry.pruned)))
    entry = total(report.text)
    if entry and not math.isnan(entry.kl):
        rows.append(("KL to dense, nats per token", NONE, interval(significant(entry.kl), entry.kl_ci), ""))
    return rows


def _bits(dense: Perplexity, pruned: Perplexity) -> tuple[str, str, str]:
    pair = (interval(significant(side.bits_per_byte), side.bits_per_byte_ci) for side in (dense, pruned))
    return *pair, f"× {significant(ratio(pruned.bits_per_byte, dense.bits_per_byte))}"


def _times(entry: Text | StageText) -> str:
    return _factor(entry.log_ratio, entry.log_ratio_ci)


def _factor(log_ratio: float, ci: Interval | None) -> str:
    if math.isnan(log_ratio):
        return ""

    def factor(log_ratio: float) -> str:
        return significant(math.exp(log_ratio) if log_ratio < 700 else math.inf)

    return f"× {interval(factor(log_ratio), ci, factor)}"


def _task_rows(report: Report) -> list[Cells]:
    return [_task_row(name, task, accuracy) for name, task in report.tasks.items() for accuracy in task.accuracies]


def _task_row(name: str, task: Task, accuracy: Accuracy) -> Cells:
    sides = [interval(percent(side.value), side.ci, percent) for side in (accuracy.dense, accuracy.pruned)]
    gap, ci = accuracy.change
    change = "" if math.isnan(gap) else interval(f"{points(gap)} points", ci, points)
    return f"{name} {accuracy.name} ({task.items} items, chance {percent(task.chance, 0)})", *sides, change


def _generation_rows(report: Report) -> list[Cells]:
    said = report.generation
    if not (said and said.dense and said.pruned):
        return []
    dense, pruned = said.dense, said.pruned
    rows = (
        ("Repeated 4-grams in greedy samples", percent, dense.repetition, pruned.repetition),
        ("Distinct token pairs in greedy samples", percent, dense.distinct_2, pruned.distinct_2),
        ("Mean length of greedy samples, tokens", significant, dense.mean_length, pruned.mean_length),
    )
    return [(label, show(before), show(after), "") for label, show, before, after in rows]


def _size_rows(report: Report) -> list[Cells]:
    dense, pruned = report.size.dense, report.size.pruned
    rows = [("Layers", str(dense.layers), str(pruned.layers), f"−{dense.layers - pruned.layers}")]
    rows.append(_smaller("Parameters", dense.parameters, pruned.parameters, ""))
    active = pruned.active_parameters
    if active is not None and active < pruned.parameters:
        rows.append(_smaller("Parameters in use (not zeroed)", dense.parameters, active, ""))
    rows.append(_smaller("Size of the weights", dense.bytes, pruned.bytes, "B"))
    rows.append(_smaller("KV cache per token", dense.kv_bytes_per_token, pruned.kv_bytes_per_token, "B"))
    return rows


def _smaller(label: str, dense: int, pruned: int, unit: str) -> Cells:
    change = ratio(pruned, dense) - 1
    return label, amount(dense, unit), amount(pruned, unit), percent(change) if change else ""


def _speed_rows(report: Report) -> list[Cells]:
    """What was measured beyond doubt is told with its interval; a gain that may be none is called so."""
    speed = report.speed
    if not speed:
        return []
    rows = (
        ("Prefill", speed.dense.prefill_tokens_per_s, speed.pruned.prefill_tokens_per_s, speed.prefill),
        ("Decode", speed.dense.decode_tokens_per_s, speed.pruned.decode_tokens_per_s, speed.decode),
    )
    return [
        (f"{label}, tokens per second", significant(before), significant(after), _gain(gain))
        for label, before, after, gain in rows
        if gain
    ]


def _gain(gain: Gain) -> str:
    if gain.is_clear:
        return f"× {interval(significant(gain.value), gain.ci)}"
    return f"no clear difference (× {significant(gain.ci[0])} to {significant(gain.ci[1])})"
