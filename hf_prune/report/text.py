"""Plan, report and events in words and plain values, for the terminal and the app alike."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from hf_prune.planning import plans
from hf_prune.planning.memory import SHARE
from hf_prune.recipe import Recipe, flagged
from hf_prune.report import comparisons, verdicts
from hf_prune.report.pace import stages_told, time_verdict
from hf_prune.report.schema.report import Report
from hf_prune.report.verdicts import amount, percent

if TYPE_CHECKING:
    from hf_prune.events import Event
    from hf_prune.planning import Plan


def event_dict(event: "Event") -> dict[str, Any]:
    """`{"event": "Scored", ...}`: the event's name and its fields as plain values."""
    return {"event": type(event).__name__, **plain(event)}


def plain(value: Any) -> Any:
    """JSON values all the way down; infinities and NaN, which JSON lacks, become "inf", "-inf" and "nan"."""
    if isinstance(value, Recipe):
        return plain(value.flat())
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return [plain(v) for v in value] if isinstance(value, Iterable) else str(value)


DETAILS = ("layers", "search", "tokens")
"""Rows of a plan for those who know how a search counts."""


def plan_rows(plan: "Plan") -> dict[str, str]:
    """What a run would do: name and words of every figure, `DETAILS` among them."""
    layer = _span([amount(n) for n in plan.layer_parameters])
    tokens = f"at most {plan.forward_tokens:,} forward, {plan.layer_tokens:,} layer-tokens before sharing"
    tokens += f"; repairs read {plan.repair_tokens:,}" if plan.repair_tokens else ""
    tokens += f", trainings read {plan.train_tokens:,}" if plan.train_tokens else ""
    rows = {
        "model": f"{plan.base} ({plan.model_type}), {amount(plan.parameters)} parameters, {amount(plan.bytes, 'B')}",
        "layers": f"{plan.depth} of {layer} parameters each; {amount(plan.outside_parameters)} outside the layers",
        "before": "; ".join(plan.notes),
        "vocabulary": _planned_vocabulary(plan) if plan.tokens else "",
        "asked": plan.asked,
        "result": _planned_result(plan),
        "time": f"{stages_told(plan.seconds)} on this machine{_asked_time(plan)}" if plan.seconds else "",
        "left out": f"to fit into that time: {'; '.join(plan.left_out)}" if plan.left_out else "",
        "memory": _planned_memory(plan),
        "reading": _planned_reading(plan) if plan.streaming else "",
        "to fit": advised(plan),
        "disk": f"{amount(plan.disk_bytes, 'B')}, of which download {amount(plan.download_bytes, 'B')}",
        "text": _planned_text(plan) if plan.text or plan.own_tokens else "",
        "tasks": plan.tasks,
        "search": _planned_search(plan),
        "tokens": tokens,
        "files": plan.weight_files if "not read" in plan.weight_files else "",
        "notes": " ".join(plan.notes),
    }
    return {name: words for name, words in rows.items() if words}


def report_lines(report: Report) -> list[str]:
    """The card's warnings and verdicts, one sentence or two each."""
    found = (
        verdicts.size_miss(report),
        comparisons.baseline_verdict(report),
        verdicts.merging_verdict(report),
    )
    warned = [f"Warning: {w}" for w in verdicts.warnings(report)]
    return (
        warned
        + [report.left_out] * bool(report.left_out)
        + verdicts.base_verdict(report)
        + verdicts.vocabulary_verdict(report)
        + verdicts.recovery_verdict(report)
        + [v for v in found if v]
        + [f"For that cut: {command}" for command in (comparisons.better_command(report),) if command]
        + comparisons.retention_verdict(report)
        + time_verdict(report)
    )


def _planned_result(plan: "Plan") -> str:
    target = plan.target
    if not target.remove and target.miss is None:
        return "a Pareto front over every size"
    if not target.remove:
        return f"{target.goal}: {plan.result_layers} layers, {amount(plan.result_parameters)} parameters"
    layers = "1 layer" if target.remove == 1 else f"{target.remove} layers"
    gone = target.goal if target.exact else f"remove {layers}"
    return (
        f"{gone}, {percent(target.removed_ratio)} of {_whole(plan)}{_miss(target.miss)}: "
        f"{plan.result_layers} layers, {amount(plan.result_parameters)} parameters, "
        f"at most {amount(plan.result_bytes, 'B')}"
    )


def _whole(plan: "Plan") -> str:
    return "all parameters" if plan.kept_tokens == plan.tokens else "what the smaller vocabulary leaves"


def _planned_vocabulary(plan: "Plan") -> str:
    share, trim = plan.token_parameters / plan.parameters, plan.trim
    said = f"{plan.tokens:,} tokens, {percent(share)} of all parameters"
    longer = f"unseen text takes {percent(trim.growth)} more tokens" if trim else ""
    if plan.kept_tokens < plan.tokens:
        return f"{said}; {plan.kept_tokens:,} are kept" + (f" by your text, {longer}" if trim else "")
    if plan.counted:
        return f"{said}; how many are kept is known once the text has been read"
    if trim is None or plan.trimmed_layers is None:
        trimmed = "; --vocabulary auto keeps the tokens that the text needs, and more layers can stay"
        return said + trimmed * (share > plans.LARGE)
    fewer = round(plan.token_parameters * (1 - trim.kept / plan.tokens))
    return (
        f"{said}; --vocabulary auto would keep {trim.kept:,} by your text, {amount(fewer)} parameters fewer "
        f"({percent(fewer / plan.parameters)}): {longer}, and {plan.trimmed_layers} of {plan.depth} layers would stay"
    )


def _planned_text(plan: "Plan") -> str:
    mix = (
        f"as none is named, {', '.join(plan.text)} (self alone where the Hub cannot be reached); " if plan.text else ""
    )
    return f"{mix}self is what the base says at temperature 1, about {plan.own_tokens:,} tokens"


def _planned_memory(plan: "Plan") -> str:
    said = f"about {amount(plan.memory_bytes, 'B')} at the peak of the search"
    if plan.restoring_bytes > plan.memory_bytes:
        said += f", {amount(plan.restoring_bytes, 'B')} for what gives back"
    room = plan.room
    if room is None:
        return said
    whose, there = "machine", f"{amount(room.host, 'B')}"
    if room.accelerated:
        said += f" on the device, {amount(plan.host_bytes, 'B')} beside it"
        whose, there = "device", f"{amount(room.device, 'B')}, and the machine {there}"
    share = amount(SHARE * (room.device if room.accelerated else room.host), "B")
    if plan.fits:
        return f"{said}; it fits: this {whose} has {there}"
    return f"{said}; too much: this {whose} has {there}, of which a run can have {share}"


def _planned_reading(plan: "Plan") -> str:
    """How a base that does not fit is read, and what that costs."""
    read = plan.streaming
    said = (
        f"{read.staying} of {read.depth} layers stay in memory, the others are read when the search reaches them: "
        f"{amount(read.bytes, 'B')} in each of about {read.passes:,} passes"
    )
    if read.bound is None:
        return said
    reading, computing = (verdicts.duration(seconds) for seconds in (read.reading, read.computing))
    return f"{said}; of one reading takes {reading} and computing {computing}, so {read.bound} bounds the search"


def advised(plan: "Plan") -> str:
    """The flags with which a run fits, or what is needed at least."""
    if not plan.advice:
        return "" if plan.fits is not False else "a machine with more memory, no option takes less"
    flags = " ".join(word for name, value in plan.advice.changes.items() for word in flagged(name, value))
    size = amount(plan.advice.need.device, "B")
    if plan.advice.fits:
        return f"{flags} (about {size})"
    return f"a machine with more memory: even with {flags} it takes about {size}"


def _asked_time(plan: "Plan") -> str:
    return f", of {verdicts.duration(plan.time)} asked for" if plan.time else ""


def _planned_search(plan: "Plan") -> str:
    rivals = f"{plan.baseline_evaluations:,} evaluations of baselines"
    if not plan.evaluations:
        return f"none, the layers are given; {rivals}"
    among = f"at most {_shortly(plan.candidates)} candidates"
    return f"{plan.search}, at most {plan.evaluations:,} evaluations among {among}; {rivals}"


def _shortly(number: int) -> str:
    return f"{number:,}" if number < 10**9 else f"{number:.1e}" if number < 10**300 else "10^300"


def _miss(miss: float | None) -> str:
    if miss is None:
        return ""
    word = "less" if miss < 0 else "more"
    return "" if abs(miss) < 5e-4 else f", {100 * abs(miss):.1f} percentage points {word} than asked"


def _span(texts: list[str]) -> str:
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} to {texts[-1]}"
