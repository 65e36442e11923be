"""What the numbers of a report mean, in words: warnings, and who won.

Pure functions from the report to strings; nothing here measures or writes. Every number printed comes from the report.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

MUCH_WORSE, WORSE = 2.0, 1.25
"""Perplexity ratios from which a reader is warned: doubled, and clearly worse."""
NONE = "–"
OURS = ("hf_prune", "searched", "repaired")
"""Rows of the tables that are no baselines: the cut, as its search left it, and what a repair made of it."""
ACCURACY_NAMES = {"": "accuracy", "_norm": "acc_norm"}
"""How the names of an accuracy's figures end, and what it is called: acc_norm is by likelihood per character."""


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


def interval(value: str, ci: Sequence[Any] | None, show: Any = significant) -> str:
    """The value with its 95 % interval, when there is one."""
    return f"{value} ({show(ci[0])} to {show(ci[1])})" if ci else value


def corpora(report: Report) -> list[str]:
    """Corpora of the report split, all of them together first; a single corpus is not repeated as `all`."""
    names = [n for n in report.get("text") or {} if n != "all"]
    return ["all", *names] if "all" in (report.get("text") or {}) and len(names) != 1 else names or ["all"]


def total_text(report: Report) -> Mapping[str, Any] | None:
    """The measurements over the whole report split, or None."""
    text = report.get("text") or {}
    return text.get("all") or (next(iter(text.values())) if len(text) == 1 else None)


def perplexity_ratio(report: Report) -> float:
    """Pruned over dense perplexity on the report split; nan when it was not measured."""
    text = total_text(report)
    return number(text["pruned"]["perplexity"]) / number(text["dense"]["perplexity"]) if text else math.nan


def warnings(report: Report) -> list[str]:
    """What a reader must know before using the model, in plain words; empty when nothing is badly wrong."""
    found = _text_warnings(report) + _task_warnings(report) + _generation_warnings(report)
    if (report.get("certificate") or {}).get("ok") is False:
        found.append("The saved model does not reload as the model that was measured. Do not use it.")
    speed = report.get("speed")
    if speed and number(speed["pruned"]["decode_tokens_per_s"]) < number(speed["dense"]["decode_tokens_per_s"]):
        found.append("It does not decode faster than the dense model on the hardware it was measured on.")
    return found


def base_verdict(report: Report) -> list[str]:
    """Whether what was compressed is what stock transformers loads of the parents, and what is odd about them."""
    check = report.get("base_check") or {}
    rows, said = check.get("parents") or (), []
    for row in rows:
        name = "The base" if len(rows) == 1 else row["source"]
        how = {"whole": "", "layer by layer": " layer by layer"}.get(row["read"])
        fresh = f", and a fresh process that runs it{how} computes the same logits" if how is not None else ""
        apart = row.get("max_logit_difference")
        exact = f" (largest difference {significant(apart, 2)}, in {row['dtype']})" if apart is not None else ""
        said.append(f"{name} was checked: stock transformers loads the same {row['tensors']} tensors{fresh}{exact}.")
        said += row.get("notes") or ()
    if overflow := check.get("overflow"):
        said.append(
            f"The base itself overflows in {overflow['in']}, so all was measured in {overflow['measured_in']}; load "
            f"the result in that, too."
        )
    return said


def baseline_verdict(report: Report) -> str | None:
    """Whether the cut beats the best baseline on the report split, judged by the paired interval.

    Bare cuts are compared, before any repair or training. `log_ratio_ci_vs_ours` is the interval of log(baseline
    perplexity / ours): above zero the result is better.
    """
    rivals = [b for b in report.get("baselines") or () if b["name"] not in OURS and b.get("perplexity") is not None]
    text = total_text(report)
    if not rivals or text is None:
        return None
    best = min(rivals, key=lambda b: number(b["perplexity"]))
    ours, theirs = number(bare(report)["perplexity"]), number(best["perplexity"])
    own = "this model" if is_bare(report) else "this model's bare cut"
    name = f"{best['label']} (perplexity {significant(theirs)}, {own} {significant(ours)})"
    if best.get("removed") is not None and sorted(best["removed"]) == deleted(report):
        return f"The search did not beat the best baseline: {best['label']} removes the same layers."
    if not math.isfinite(theirs):
        return "No baseline of this size gives finite perplexity."
    ci = best.get("log_ratio_ci_vs_ours")
    if not ci:
        word = "lower than" if ours < theirs else "not lower than"
        return f"Perplexity is {word} that of the best baseline, {name}; without a paired interval this proves little."
    paired = f"paired 95 % interval of the log-perplexity difference: {decimals(ci[0], 3)} to {decimals(ci[1], 3)}"
    if number(ci[0]) <= 0 <= number(ci[1]):
        return (
            f"The search did not clearly beat the best baseline, {name}: the difference is within the noise ({paired})."
        )
    if ours < theirs:
        return f"The search beats the best baseline, {name}; {paired}."
    return f"The search lost to the best baseline, {name}; {paired}. Use that cut instead."


def is_bare(report: Report) -> bool:
    """Whether neither a repair nor a training changed the weights that were cut."""
    return not any((report.get(k) or {}).get("kept") for k in ("repair", "healing"))


def bare(report: Report) -> Mapping[str, Any]:
    """Perplexity, its interval and KL of the cut itself, which is what baselines are compared with."""
    stages = report.get("stages")
    if stages and not is_bare(report):
        return total_text({"text": stages["text"]})["cut"]
    text = total_text(report) or {}
    return {**text["pruned"], "kl": text.get("kl")}


def retention_verdict(report: Report) -> list[str]:
    """Whether another way to cut keeps more of the tasks, a sentence for each accuracy, judged by the paired interval.

    What is judged is this model before any training, repaired if it was; the others are bare cuts.
    """
    section = report.get("retention") or {}
    rows = {r["name"]: r for r in section.get("rows") or ()}
    rivals = [r for r in section.get("rows") or () if r["name"] not in ("parent", *OURS)]
    ours, found = rows.get("repaired") or rows.get("hf_prune"), []
    repaired = ", repaired," if "repaired" in rows else ""
    for suffix, what in ACCURACY_NAMES.items():
        if not ours or not rivals or f"difference_ci{suffix}" not in ours:
            continue
        best = max(rivals, key=lambda r, how=f"mean_accuracy{suffix}": number(r[how]))
        low, high = best[f"difference_ci{suffix}"]
        outcome = (
            "this model keeps more" if high < 0 else "that one keeps more" if low > 0 else "a tie within the noise"
        )
        mine, theirs = (percent(r[f"mean_accuracy{suffix}"]) for r in (ours, best))
        found.append(
            f"Mean {what} over the tasks: this model{repaired} {mine}, the best of the other cuts, {best['label']}, "
            f"{theirs}; {outcome} (the latter's lead: {points(low)} to {points(high)} points, paired 95 % interval)."
        )
    return found


def tuning_verdict(report: Report) -> str | None:
    """What gradient descent on the weights of the mixes brought."""
    tuning = report.get("tuning")
    if not tuning:
        return None
    much, gain = _lessons(tuning), _gain(tuning)
    how = f"Weights of the mixes by gradient ({much}{_part_of(tuning)}, {gain})"
    if tuning["kept"]:
        return f"{how}: attention and MLP are mixed apart; the model as searched is among those it is compared with."
    return f"{how} did not help, so they stay as searched."


def _lessons(learning: Report) -> str:
    items = f" and {learning['items']} items of every search task" if learning.get("items") else ""
    return f"{learning['steps']} steps on {learning['windows']} search windows{items}"


def _gain(learning: Report) -> str:
    return f"{learning['objective']} {change(learning['before'], learning['after'])} on the selection split"


def _part_of(stage: Report) -> str:
    strength = stage.get("strength", 1)
    return f", taken {percent(strength, 0)} of the way" if strength < 1 else ""


def merging_verdict(report: Report) -> str | None:
    """Whether merging layers beat deleting them at the same partition, on the selection split."""
    merging = report.get("merging")
    if not merging:
        return None
    numbers = f"KL {significant(merging['ours'])} against {significant(merging['deletion'])} on the selection split"
    if not any(layer["fate"] in ("merged", "norms_only") for layer in report["layers"]):
        return f"Nothing is merged in this model. The best candidate that merges: {numbers} for its best deletion."
    if merging["helps"]:
        return f"Merging helped: it is better than the best deletion at the same partition ({numbers})."
    return f"Merging did not help: the best deletion at the same partition is as good or better ({numbers})."


def deleted(report: Report) -> list[int] | None:
    """The removed source layers, or None when the model is not a pure deletion."""
    layers = report["layers"]
    if any(layer["fate"] not in ("kept", "removed") for layer in layers):
        return None
    return [layer["source"] for layer in layers if layer["fate"] == "removed"]


def size_miss(report: Report) -> str | None:
    """How far size or time lies from what was asked; None when the size was hit or nothing was asked as a share."""
    if latency := report.get("latency"):
        shares = "{request} (prefill {prefill}, decoding {decode})"
        said = [shares.format(**{k: percent(v) for k, v in latency[w].items()}) for w in ("predicted", "measured")]
        return (
            f"The target was {percent(latency['asked'])} of the dense model's time for a request "
            f"({latency['prompt_tokens']} tokens in, {latency['answer_tokens']} out); the table of levels "
            f"predicts {said[0]}, the finished model takes {said[1]}."
        )
    asked, removed = (report["size"].get(f"{what}_ratio") for what in ("asked", "removed"))
    if asked is None or removed is None or abs(removed - asked) < 0.0005:
        return None
    word = "less" if removed < asked else "more"
    off = f"{100 * abs(removed - asked):.1f}"
    return (
        f"The target was to remove {percent(asked)} of the parameters; {percent(removed)} are gone, "
        f"{off} percentage points {word}. Whole units rarely add up to a target exactly."
    )


def recovered(report: Report, stage: str) -> float:
    """Share of the cut's gap in log-perplexity that a stage has closed, mean over corpora; nan when not measured."""
    text = (report.get("stages") or {}).get("text") or {}
    shares = [number(text[c].get(stage, {}).get("closed")) for c in text if c != "all" or len(text) == 1]
    return sum(shares) / len(shares) if shares else math.nan


NO_GAP = "the cut opened no gap in log-perplexity to close in at least one corpus"


def recovery_verdict(report: Report) -> list[str]:
    """What repair and training brought, a sentence each; also when they brought nothing."""
    found = []
    repair, healing = report.get("repair") or {}, report.get("healing") or {}
    if "kept" in repair:
        kl = f"KL {change(repair['kl_before'], repair['kl_after'])} on the selection split"
        share = recovered(report, "repaired")
        closes = f"it closes {percent(share, 0)} of the gap in log-perplexity that the cut opened"
        closes = NO_GAP if math.isnan(share) else closes
        far = "" if (repair.get("learning") or {}).get("kept") else _part_of(repair)
        how = f"Repair (closed form{far}, {repair['windows']} windows, {kl})"
        found.append(
            f"{how}: {closes}." if repair["kept"] else f"{how} did not help, so the weights stay as they were."
        )
        if repair["kept"] and repair.get("learning"):
            found.append(_shares_verdict(repair["learning"]))
    if healing:
        loss = f"loss {change(healing['before'], healing['after'])} on the selection split"
        how = f"Training ({healing['method']}, {amount(healing['tokens'])} tokens, {loss})"
        share = recovered(report, "healed")
        closes = f"together {percent(share, 0)} of that gap are closed"
        if "kept" not in repair:
            closes = f"it closes {percent(share, 0)} of the gap that the cut opened"
        closes = NO_GAP if math.isnan(share) else closes
        found.append(f"{how}: {closes}." if healing["kept"] else f"{how} did not help, so the weights before it stay.")
    if chosen := report.get("selection"):
        how = " and ".join(chosen["means"])
        best = "another one was chosen than the best bare cut" if chosen["changed"] else "the best bare cut was chosen"
        rank = f" (rank correlation of before and after {decimals(chosen['spearman'])})"
        known = rank if chosen["spearman"] is not None else ""
        found.append(f"{len(chosen['finalists'])} finalists were {how} before the choice: {best}{known}.")
    return found


def _shares_verdict(learning: Report) -> str:
    """What came of learning how far each half of a repair goes."""
    how = f"How far each half of a layer goes towards its repair, by gradient ({_lessons(learning)}, {_gain(learning)})"
    if not learning["kept"]:
        return f"{how}, did not help, so all go equally far."
    least, most = (percent(f(s for pair in learning["shares"] if pair for s in pair), 0) for f in (min, max))
    return f"{how}: from {least} to {most}."


def _text_warnings(report: Report) -> list[str]:
    ratio, text = perplexity_ratio(report), total_text(report)
    if text is None or math.isnan(ratio):
        return []
    if not math.isfinite(ratio):
        return ["The model's perplexity is not finite: it is broken. Do not use it."]
    times = f"Perplexity is {significant(ratio)} times that of the dense model"
    if ratio >= MUCH_WORSE:
        return [f"{times}. Expect wrong and incoherent text; without further training this is not a usable model."]
    return [f"{times}. The text it writes is clearly worse."] if ratio >= WORSE else []


def _task_warnings(report: Report) -> list[str]:
    found = []
    for name, task in (report.get("tasks") or {}).items():
        chance, at_chance = task["chance"], [number(task[k]["ci"][0]) <= task["chance"] for k in ("dense", "pruned")]
        guess = f"chance is {percent(chance, 0)}"
        if all(at_chance):
            found.append(f"{name} says nothing here: neither the dense nor the pruned model beats guessing ({guess}).")
        elif at_chance[1]:
            accuracy = interval(percent(task["pruned"]["accuracy"]), task["pruned"]["ci"], percent)
            found.append(f"On {name} it cannot be told from guessing: {accuracy}, {guess}.")
    return found


def _generation_warnings(report: Report) -> list[str]:
    generation = report.get("generation") or {}
    dense, pruned = generation.get("dense") or {}, generation.get("pruned") or {}
    found = []
    before, after = number(dense.get("repetition")), number(pruned.get("repetition"))
    if after > before + 0.1 and after > 1.5 * before:
        found.append(
            f"It repeats itself: {percent(after)} of its 4-grams repeat earlier ones, dense {percent(before)}."
        )
    before, after = number(dense.get("mean_length")), number(pruned.get("mean_length"))
    if after < 0.5 * before:
        found.append(f"It stops early: {significant(after)} tokens on average, dense {significant(before)}.")
    return found
