"""The numbers of a report in rows of text: dense beside pruned, and every stage beside the next.

Pure functions from the report to strings. Every number printed comes from the report.
"""

import math
from collections.abc import Mapping
from typing import Any

from hf_prune.report.verdicts import (
    ACCURACY_NAMES,
    NONE,
    Report,
    amount,
    corpora,
    decimals,
    interval,
    number,
    percent,
    points,
    significant,
    total_text,
)

Row = tuple[str, str, str, str]
"""What is measured, dense, pruned, change."""


def table(report: Report) -> list[Row]:
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
    stages = report.get("stages") or {}
    names = list(stages.get("names") or ())
    rows = []
    for corpus in corpora({"text": stages.get("text") or {}}) if names else ():
        by = stages["text"][corpus]
        label = f"Perplexity, {'all text' if corpus == 'all' else corpus}"
        rows.append([label, *(_stage_perplexity(by[n], n) for n in names)])
    if text := total_text({"text": stages.get("text") or {}}):
        rows.append(["KL to dense", *(NONE if n == "dense" else significant(text[n]["kl"]) for n in names)])
    for task, by in (stages.get("tasks") or {}).items():
        for suffix in accuracies(by["dense"]):
            rows.append([f"{task} {ACCURACY_NAMES[suffix]}", *(_stage_accuracy(by[n], n, suffix) for n in names)])
    generation = stages.get("generation") or {}
    for key, label in (("rouge1", "ROUGE-1"), ("rougeL", "ROUGE-L"), ("exact_match", "Exact match")) if names else ():
        if key in generation["dense"]:
            if not any(generation[n][key]["value"] for n in names):
                continue
            cells = [_stage_score(generation[n][key], n) for n in names]
            rows.append([f"{label} of greedy text with the corpus", *cells])
    for task, by in (stages.get("harness") or {}).items():
        for metric in by["dense"]["metrics"]:
            rows.append([f"lm_eval {task}, {metric}", *(_stage_score(by[n]["metrics"][metric], n) for n in names)])
    return ["", *names], rows


def _stage_perplexity(row: Mapping[str, Any], stage: str) -> str:
    value = significant(row["perplexity"])
    return value if stage == "dense" else f"{value}; {_times(row)}"


def _stage_accuracy(row: Mapping[str, Any], stage: str, suffix: str) -> str:
    if stage == "dense":
        return percent(row["dense"][f"accuracy{suffix}"])
    change = interval(points(row[f"difference{suffix}"]), row[f"difference_ci{suffix}"], points)
    return f"{percent(row['pruned'][f'accuracy{suffix}'])}; {change}"


def accuracies(task: Mapping[str, Any]) -> list[str]:
    """Suffixes of the accuracies that a task has; both are one where text is to be generated."""
    return [suffix for suffix in ACCURACY_NAMES if not suffix or (task["chance"] and f"difference{suffix}" in task)]


def _stage_score(row: Mapping[str, Any], stage: str) -> str:
    value = significant(row["value"])
    if stage == "dense" or "difference" not in row:
        return value
    return f"{value}; {interval(decimals(row['difference'], 3), row['difference_ci'], lambda x: decimals(x, 3))}"


def _text_rows(report: Report) -> list[Row]:
    text = report.get("text") or {}
    rows = []
    for name in (n for n in corpora(report) if n in text):
        entry = text[name]
        pair = [interval(significant(entry[k]["perplexity"]), entry[k].get("ci")) for k in ("dense", "pruned")]
        rows.append((f"Perplexity, {'all text' if name == 'all' else name}", *pair, _times(entry)))
    entry = total_text(report)
    if entry and entry.get("kl") is not None:
        rows.append(("KL to dense, nats per token", NONE, interval(significant(entry["kl"]), entry.get("kl_ci")), ""))
    return rows


def _times(entry: Mapping[str, Any]) -> str:
    if entry.get("log_ratio") is None:
        return ""

    def factor(log_ratio: Any) -> str:
        x = number(log_ratio)
        return f"× {significant(math.exp(x) if x < 700 else math.inf)}"

    ci = entry.get("log_ratio_ci")
    return interval(factor(entry["log_ratio"]), ci, lambda x: factor(x).removeprefix("× "))


def _task_rows(report: Report) -> list[Row]:
    return [
        _task_row(name, task, suffix)
        for name, task in (report.get("tasks") or {}).items()
        for suffix in accuracies(task)
    ]


def _task_row(name: str, task: Mapping[str, Any], suffix: str) -> Row:
    sides = [
        interval(percent(task[k][f"accuracy{suffix}"]), task[k].get(f"ci{suffix}"), percent)
        for k in ("dense", "pruned")
    ]
    gap = task.get(f"difference{suffix}")
    change = "" if gap is None else interval(f"{points(gap)} points", task.get(f"difference_ci{suffix}"), points)
    label = f"{name} {ACCURACY_NAMES[suffix]} ({task['items']} items, chance {percent(task['chance'], 0)})"
    return label, *sides, change


def _generation_rows(report: Report) -> list[Row]:
    generation = report.get("generation") or {}
    dense, pruned = generation.get("dense") or {}, generation.get("pruned") or {}
    labels = (
        ("repetition", "Repeated 4-grams in greedy samples", percent),
        ("distinct_2", "Distinct token pairs in greedy samples", percent),
        ("mean_length", "Mean length of greedy samples, tokens", significant),
    )
    return [(label, show(dense[k]), show(pruned[k]), "") for k, label, show in labels if k in dense and k in pruned]


def _size_rows(report: Report) -> list[Row]:
    dense, pruned = report["size"]["dense"], report["size"]["pruned"]
    rows = [("Layers", str(dense["layers"]), str(pruned["layers"]), f"−{dense['layers'] - pruned['layers']}")]
    rows.append(_smaller("Parameters", dense["parameters"], pruned["parameters"], ""))
    active = pruned.get("active_parameters")
    if active is not None and active < pruned["parameters"]:
        rows.append(_smaller("Parameters in use (not zeroed)", dense["parameters"], active, ""))
    rows.append(_smaller("Size of the weights", dense["bytes"], pruned["bytes"], "B"))
    rows.append(_smaller("KV cache per token", dense["kv_bytes_per_token"], pruned["kv_bytes_per_token"], "B"))
    return rows


def _smaller(label: str, dense: Any, pruned: Any, unit: str) -> Row:
    change = number(pruned) / number(dense) - 1 if dense else math.nan
    return label, amount(dense, unit), amount(pruned, unit), percent(change) if change else ""


def _speed_rows(report: Report) -> list[Row]:
    speed = report.get("speed") or {}
    rows = []
    for key, label in (("prefill", "Prefill"), ("decode", "Decode")) if speed else ():
        dense, pruned = (speed[k][f"{key}_tokens_per_s"] for k in ("dense", "pruned"))
        gain = f"× {significant(number(pruned) / number(dense))}" if dense and pruned else ""
        rows.append((f"{label}, tokens per second", significant(dense), significant(pruned), gain))
    return rows
