"""What the numbers of a report mean, in words: warnings, and who won.

Pure functions from the report to strings; nothing here measures or writes. Every number printed comes from the report.
"""

import math
from collections.abc import Mapping
from typing import Any

from hf_prune.data.own_samples import NAME as OWN
from hf_prune.report.schema.course import Healing, Learning, Repair
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import Text, total
from hf_prune.report.schema.section import Interval, StageName

MUCH_WORSE, WORSE = 2.0, 1.25
"""Perplexity ratios from which a reader is warned: doubled, and clearly worse."""
NONE = "–"


def number(value: Any) -> float:
    """A number of the report; null is nan and the text "inf" is infinite."""
    return math.nan if value is None else float(value)


def significant(value: Any, digits: int = 3) -> str:
    """`digits` significant digits without an exponent: 0.0123, 27.1, 5,530."""
    x = number(value)
    if not math.isfinite(x):
        return NONE if math.isnan(x) else "not finite"
    if x == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(x)))
    rounded = round(x, digits - 1 - magnitude)
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}".replace("-", "−")


def change(before: float, after: float) -> str:
    """From one value to another, with as many significant digits as tell them apart, 3 to 6: 16.64 → 16.60."""
    pairs = ((significant(before, digits), significant(after, digits)) for digits in range(3, 7))
    found = next((pair for pair in pairs if pair[0] != pair[1]), (significant(before), significant(after)))
    return " → ".join(found)


def percent(share: Any, digits: int = 1) -> str:
    """A share between 0 and 1 as a percentage."""
    x = number(share)
    return f"{100 * x:.{digits}f} %".replace("-", "−") if math.isfinite(x) else NONE


def points(share: Any) -> str:
    """A difference of two shares in percentage points."""
    return f"{100 * number(share):+.1f}".replace("-", "−")


def amount(value: Any, unit: str = "") -> str:
    """A large number with a decimal prefix: 3.41 M, 6.74 G (or B for counts), 512."""
    x = number(value)
    if not math.isfinite(x):
        return NONE
    for power, prefix in ((12, "T"), (9, "G" if unit else "B"), (6, "M"), (3, "k" if unit else "K")):
        if abs(x) >= 10**power:
            text = significant(x / 10**power)
            return f"{text} {prefix}{unit}" if unit else f"{text}{prefix}"
    return f"{x:,.0f} {unit}".strip()


def decimals(value: Any, digits: int = 2) -> str:
    """A number with a fixed count of decimals, as correlations are written."""
    x = number(value)
    return f"{x:.{digits}f}".replace("-", "−") if math.isfinite(x) else NONE


def duration(seconds: Any) -> str:
    """4.2 s, 3 min 10 s, 2 h 5 min."""
    x = number(seconds)
    if not math.isfinite(x):
        return NONE
    if x < 60:
        return f"{significant(x, 2)} s"
    minutes, rest = divmod(round(x), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def interval(value: str, ci: Interval | None, show: Any = significant) -> str:
    """The value with its 95 % interval, when there is one."""
    return f"{value} ({show(ci[0])} to {show(ci[1])})" if ci else value


def ratio(ours: float, theirs: float) -> float:
    """One over the other; NaN where that is nothing."""
    return ours / theirs if theirs else math.nan


def corpora(rows: Mapping[str, Any]) -> list[str]:
    """Corpora of the report split, all of them together first; a single corpus is not repeated as `all`."""
    names = [n for n in rows if n != "all"]
    return ["all", *names] if "all" in rows and len(names) != 1 else names


def perplexity_ratio(text: Text | None) -> float:
    """Pruned over dense perplexity; NaN when it was not measured."""
    return ratio(text.pruned.perplexity, text.dense.perplexity) if text else math.nan


def warnings(report: Report) -> list[str]:
    """What a reader must know before using the model, in plain words; empty when nothing is badly wrong."""
    found = _own_text(report) + _text_warnings(report) + _task_warnings(report) + _generation_warnings(report)
    if report.certificate and not report.certificate.ok:
        found.append("The saved model does not reload as the model that was measured. Do not use it.")
    decode = report.speed and report.speed.decode
    if decode and decode.ci[1] < 1:
        found.append("It decodes more slowly than the dense model on the hardware it was measured on.")
    return found


def _own_text(report: Report) -> list[str]:
    """Said where the measure is what the dense model says itself."""
    split = report.splits.get("report")
    if not split or not any(name.startswith(OWN) for name in split.corpora):
        return []
    return ["Its figures on text are on own samples of the dense model, not on text that people wrote."]


def speed_verdict(report: Report) -> str | None:
    """What was timed and how; or why there are no figures of speed."""
    speed = report.speed
    if not speed:
        checked = report.base_check.parents if report.base_check else ()
        streamed = any(row.read == "layer by layer" and not row.tensors for row in checked)
        return "Speed and continued text are not told: layers were read as they were reached." if streamed else None
    if not (speed.prefill and speed.decode):
        busy = f"other work disturbed {speed.disturbed} of {speed.disturbed + speed.repeats} rounds"
        why = busy if speed.disturbed else "no rounds of both models were compared"
        return f"Speed is not told: {why}; run hf-prune report on a quiet machine for it."
    threads = f" with {speed.threads} threads" if speed.threads else ""
    left_out = f" ({speed.disturbed} others were disturbed and do not count)" if speed.disturbed else ""
    return (
        f"Speed: prefill of {speed.prefill_tokens} tokens, decoding of {speed.decode_tokens}, on {speed.device}"
        f"{threads}, {speed.dtype}; medians of {speed.repeats} rounds in which both models took turns{left_out}."
    )


def vocabulary_verdict(report: Report) -> list[str]:
    """How many tokens are left, what that spares and costs, and what was certified."""
    cut = report.vocabulary
    if not cut:
        return []
    longer = percent(ratio(cut.bytes_per_token_dense, cut.bytes_per_token) - 1)
    return [
        f"The vocabulary keeps {cut.kept:,} of {cut.dense:,} tokens, {amount(cut.parameters)} parameters fewer; text "
        f"takes {longer} more tokens. {cut.hard_texts:,} hard texts are said as before, {cut.same_pieces:,} of them in "
        "the same tokens. All figures on text, those of the dense model too, are in the kept tokens."
    ] + _token_cost(report)


def _token_cost(report: Report) -> list[str]:
    cost = report.token_cost
    both = [(total(side) or math.nan) for side in (cost.all_tokens, cost.kept_tokens)] if cost else [math.nan]
    if not all(map(math.isfinite, both)):
        return []
    return [
        f"That alone takes the base from {significant(both[0])} to {significant(both[1])} bits per byte of held-out "
        f"text ({percent(both[1] / both[0] - 1, 2)}), before anything else is cut."
    ]


def base_verdict(report: Report) -> list[str]:
    """Whether what was compressed is what stock transformers loads of the parents, and what is odd about them."""
    if report.base_check is None:
        return []
    rows, said = report.base_check.parents, []
    for row in rows:
        name = "The base" if len(rows) == 1 else row.source
        how = {"whole": "", "layer by layer": " layer by layer"}.get(row.read)
        fresh = f", and a fresh process that runs it{how} computes the same logits" if how is not None else ""
        apart = significant(row.max_logit_difference, 2)
        exact = "" if math.isnan(row.max_logit_difference) else f" (largest difference {apart}, in {row.dtype})"
        same = f"stock transformers loads the same {row.tensors} tensors{fresh}"
        if not row.tensors:
            same = f"a fresh process that runs it{how} with stock transformers computes the same logits"
        said.append(f"{name} was checked: {same}{exact}.")
        said += row.notes
    if overflow := report.base_check.overflow:
        said.append(
            f"The base itself overflows in {overflow.left}, so all was measured in {overflow.measured_in}; load "
            "the result in that, too."
        )
    return said


def tuning_verdict(report: Report) -> str | None:
    """What gradient descent on the weights of the mixes brought."""
    tuning = report.tuning
    if not tuning:
        return None
    much, gain = _lessons(tuning), _gain(tuning)
    how = f"Weights of the mixes by gradient ({much}{_part_of(tuning)}, {gain})"
    if tuning.kept:
        return f"{how}: attention and MLP are mixed apart; the model as searched is among those it is compared with."
    return f"{how} did not help, so they stay as searched."


def _lessons(learning: Learning) -> str:
    items = f" and {learning.items} items of every search task" if learning.items else ""
    return f"{learning.steps} steps on {learning.windows} search windows{items}"


def _gain(learning: Learning) -> str:
    return f"{learning.objective} {change(learning.before, learning.after)} on the selection split"


def _part_of(stage: Learning | Repair) -> str:
    return f", taken {percent(stage.strength, 0)} of the way" if stage.strength < 1 else ""


def merging_verdict(report: Report) -> str | None:
    """Whether merging layers beat deleting them at the same partition, on the selection split."""
    merging = report.merging
    if not merging:
        return None
    numbers = f"KL {significant(merging.ours)} against {significant(merging.deletion)} on the selection split"
    if not any(layer.fate in ("merged", "norms_only") for layer in report.layers):
        return f"Nothing is merged in this model. The best candidate that merges: {numbers} for its best deletion."
    if merging.helps:
        return f"Merging helped: it is better than the best deletion at the same partition ({numbers})."
    return f"Merging did not help: the best deletion at the same partition is as good or better ({numbers})."


def size_miss(report: Report) -> str | None:
    """How far size or time lies from what was asked; None when the size was hit or nothing was asked as a share."""
    if latency := report.latency:
        timed = not math.isnan(latency.measured.request)
        said = [
            f"{percent(took.request)} (prefill {percent(took.prefill)}, decoding {percent(took.decode)})"
            for took in (latency.predicted, latency.measured)
        ]
        return (
            f"The target was {percent(latency.asked)} of the dense model's time for a request "
            f"({latency.prompt_tokens} tokens in, {latency.answer_tokens} out); the table of levels "
            f"predicts {said[0]}, the finished model "
            f"{f'takes {said[1]}' if timed else 'could not be timed on a machine this busy'}."
        )
    asked, removed = report.size.asked_ratio, report.size.removed_ratio
    if not abs(removed - asked) >= 0.0005:
        return None
    word = "less" if removed < asked else "more"
    off = f"{100 * abs(removed - asked):.1f}"
    return (
        f"The target was to remove {percent(asked)} of the parameters; {percent(removed)} are gone, "
        f"{off} percentage points {word}. Whole units rarely add up to a target exactly."
    )


def recovered(report: Report, stage: StageName) -> float:
    """Share of the cut's gap in log-perplexity that a stage has closed, mean over corpora; NaN when not measured."""
    text = report.stages.text if report.stages else {}
    rows = [by.of(stage) for corpus, by in text.items() if corpus != "all" or len(text) == 1]
    return sum(row.closed if row else math.nan for row in rows) / len(rows) if rows else math.nan


NO_GAP = "the cut opened no gap in log-perplexity to close in at least one corpus"


def recovery_verdict(report: Report) -> list[str]:
    """What repair and training brought, a sentence each; also when they brought nothing."""
    found = []
    if repair := report.repair:
        found.append(_repair_verdict(repair, recovered(report, "repaired")))
        if repair.kept and repair.learning:
            found.append(_shares_verdict(repair.learning))
    if healing := report.healing:
        found.append(_healing_verdict(healing, recovered(report, "healed"), repair is not None))
    if chosen := report.selection:
        how = " and ".join(chosen.means)
        best = "another one was chosen than the best bare cut" if chosen.changed else "the best bare cut was chosen"
        rank = f" (rank correlation of before and after {decimals(chosen.spearman)})"
        known = "" if math.isnan(chosen.spearman) else rank
        by = f", by {chosen.by}" if chosen.by else ""
        found.append(f"{len(chosen.finalists)} finalists were {how} before the choice{by}: {best}{known}.")
    return found


def _repair_verdict(repair: Repair, share: float) -> str:
    kl = f"KL {change(repair.kl_before, repair.kl_after)} on the selection split"
    far = "" if repair.learning and repair.learning.kept else _part_of(repair)
    how = f"Repair (closed form{far}, {repair.windows} windows, {kl})"
    if not repair.kept:
        return f"{how} did not help, so the weights stay as they were."
    closes = f"it closes {percent(share, 0)} of the gap in log-perplexity that the cut opened"
    return f"{how}: {NO_GAP if math.isnan(share) else closes}."


def _healing_verdict(healing: Healing, share: float, after_repair: bool) -> str:
    loss = f"loss {change(healing.before, healing.after)} on the selection split"
    how = f"Training ({healing.method}, {amount(healing.tokens)} tokens, {loss})"
    if not healing.kept:
        return f"{how} did not help, so the weights before it stay."
    closes = f"it closes {percent(share, 0)} of the gap that the cut opened"
    if after_repair:
        closes = f"together {percent(share, 0)} of that gap are closed"
    return f"{how}: {NO_GAP if math.isnan(share) else closes}."


def _shares_verdict(learning: Learning) -> str:
    """What came of learning how far each half of a repair goes."""
    how = f"How far each half of a layer goes towards its repair, by gradient ({_lessons(learning)}, {_gain(learning)})"
    if not learning.kept:
        return f"{how}, did not help, so all go equally far."
    shares = [share for pair in learning.shares if pair for share in pair] or [math.nan]
    return f"{how}: from {percent(min(shares), 0)} to {percent(max(shares), 0)}."


def _text_warnings(report: Report) -> list[str]:
    beside = report.beside_parents.get("all")
    times = math.exp(min(beside.log_ratio, 700.0)) if beside else perplexity_ratio(total(report.text))
    if math.isnan(times):
        return []
    if not math.isfinite(times):
        return ["The model's perplexity is not finite: it is broken. Do not use it."]
    than = "the best parent of each corpus" if beside else "the dense model"
    said = f"Perplexity is {significant(times)} times that of {than}"
    if times >= MUCH_WORSE:
        return [f"{said}. Expect wrong and incoherent text; without further training this is not a usable model."]
    return [f"{said}. The text it writes is clearly worse."] if times >= WORSE else []


def _task_warnings(report: Report) -> list[str]:
    silent, found = [], []
    for name, task in report.tasks.items():
        dense, pruned = (side.ci is not None and side.ci[0] <= task.chance for side in (task.dense, task.pruned))
        if dense and pruned:
            silent.append(name)
        elif pruned:
            accuracy = interval(percent(task.pruned.accuracy), task.pruned.ci, percent)
            guess = f"chance is {percent(task.chance, 0)}"
            found.append(f"On {name} it cannot be told from guessing: {accuracy}, {guess}.")
    if silent:
        who = f"{silent[0]} says" if len(silent) == 1 else f"{', '.join(silent[:-1])} and {silent[-1]} say"
        found.insert(0, f"{who} nothing here: neither the dense nor the pruned model beats guessing.")
    return found


def _generation_warnings(report: Report) -> list[str]:
    if not (report.generation and report.generation.dense and report.generation.pruned):
        return []
    dense, pruned, found = report.generation.dense, report.generation.pruned, []
    if pruned.repetition > dense.repetition + 0.1 and pruned.repetition > 1.5 * dense.repetition:
        found.append(
            f"It repeats itself: {percent(pruned.repetition)} of its 4-grams repeat earlier ones, "
            f"dense {percent(dense.repetition)}."
        )
    if pruned.mean_length < 0.5 * dense.mean_length:
        found.append(
            f"It stops early: {significant(pruned.mean_length)} tokens on average, "
            f"dense {significant(dense.mean_length)}."
        )
    return found
