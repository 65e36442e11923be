"""Who won: the result beside other ways to cut to its size, in words, and the command for one that is better.

Pure functions from the report; nothing here measures or writes.
"""

import math
import shlex
from typing import NamedTuple

from hf_prune.recipe import OPTIONS, flagged
from hf_prune.report.schema.model import removed_layers
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import Baseline, total
from hf_prune.report.schema.section import Interval
from hf_prune.report.verdicts import decimals, percent, points, significant

OURS = ("hf_prune", "searched", "repaired")
"""Rows of the tables that are no baselines: the cut, as its search left it, and what a repair made of it."""
OTHER_CUT = "other-cut.json"
"""File beside the report that holds the blueprint of a better cut which no flag can spell."""
OF_THE_CUT = frozenset(
    "base variants method ratio keep_layers drop_layers drop latency rules norms merges mix_halves levels multiple_of "
    "damping library_sequences library objective search evaluations population offspring search_tasks search_items "
    "selection_items search_heal tune tune_items repair_finalists baselines output overwrite push_to public create_pr "
    "commit_message gguf gguf_apart track".split()
)
"""Fields that a command for a given cut leaves out."""


def rivals(report: Report) -> list[Baseline]:
    """Other cuts whose perplexity is known, the best first."""
    found = [b for b in report.baselines if b.name not in OURS and not math.isnan(b.perplexity)]
    return sorted((b for b in found if not _is_ours(report, b)), key=lambda b: b.perplexity)


def _is_ours(report: Report, row: Baseline) -> bool:
    """Whether it is the very cut that the result is made of."""
    if report.found_by is not None and row.label == report.found_by:
        return True
    removed = removed_layers(report.layers)
    return row.removed is not None and removed is not None and sorted(row.removed) == list(removed)


def baseline_verdict(report: Report) -> str | None:
    """Which method found the cut, and whether it beats the best other one on the report split, judged by the paired
    interval.

    Bare cuts are compared, before any repair or training. `log_ratio_ci_vs_ours` is the interval of log(baseline
    perplexity / ours): above zero the result is better.
    """
    ours = bare(report)
    if ours is None or not any(b.name not in OURS and not math.isnan(b.perplexity) for b in report.baselines):
        return None
    own = "this model" if is_bare(report) else "this model's bare cut"
    return " ".join(said for said in (_finder(report), _against(report, ours, own)) if said)


def _finder(report: Report) -> str | None:
    if report.found_by:
        return f"This model is the cut of {report.found_by}, the best on the selection split."
    same = next((b.label for b in report.baselines if b.name not in OURS and _is_ours(report, b)), None)
    return same and f"The search did not beat {same}, which removes the same layers."


def _against(report: Report, ours: "Bare", own: str) -> str | None:
    """This model beside the best other cut."""
    best = next(iter(rivals(report)), None)
    if best is None:
        return None
    name = f"{best.label} (perplexity {significant(best.perplexity)}, {own} {significant(ours.perplexity)})"
    who = own.replace("this", "This", 1)
    if not math.isfinite(best.perplexity):
        return "No other cut of this size gives finite perplexity."
    ci = best.log_ratio_ci_vs_ours
    if not ci:
        word = "lower than" if ours.perplexity < best.perplexity else "not lower than"
        return f"Perplexity is {word} that of the best other cut, {name}; without a paired interval this proves little."
    paired = f"paired 95 % interval of the log-perplexity difference: {decimals(ci[0], 3)} to {decimals(ci[1], 3)}"
    if ci[0] <= 0 <= ci[1]:
        return f"{who} does not clearly beat the best other cut, {name}: the difference is within the noise ({paired})."
    if ours.perplexity < best.perplexity:
        return f"{who} beats the best other cut, {name}; {paired}."
    return f"{who} loses to the best other cut, {name}; {paired}."


def better_cut(report: Report) -> Baseline | None:
    """Another cut of this size that is better on the report split beyond noise."""
    best = next(iter(rivals(report)), None)
    ci = best and best.log_ratio_ci_vs_ours
    return best if ci and ci[1] < 0 else None


def better_command(report: Report) -> str | None:
    """What makes the better cut, repaired and trained as the result was; None where there is none."""
    best = better_cut(report)
    if best is None:
        return None
    if best.blueprint:
        return shlex.join(["hf-prune", "assemble", OTHER_CUT, "--output", "other-cut"])
    asked = {k: v for k, v in report.recipe.items() if k in OPTIONS and k not in OF_THE_CUT}
    flags = [word for k, v in asked.items() for word in flagged(k, v)]
    base, drop = str(report.recipe.get("base", "BASE")), ",".join(map(str, best.removed or ()))
    return shlex.join(["hf-prune", "compress", base, "--drop", drop, *flags, "--output", "other-cut"])


def is_bare(report: Report) -> bool:
    """Whether neither a repair nor a training changed the weights that were cut."""
    return not any(stage and stage.kept for stage in (report.repair, report.healing))


class Bare(NamedTuple):
    """Perplexity of the cut itself with its interval, and its KL to the dense model."""

    perplexity: float
    ci: Interval | None
    kl: float


def bare(report: Report) -> Bare | None:
    """What baselines are compared with; None where no text was measured."""
    text = total(report.text)
    if text is None:
        return None
    cut = None if is_bare(report) or report.stages is None else total(report.stages.text)
    if cut and cut.cut:
        return Bare(cut.cut.perplexity, cut.cut.ci, cut.cut.kl)
    return Bare(text.pruned.perplexity, text.pruned.ci, text.kl)


def retention_verdict(report: Report) -> list[str]:
    """Whether another way to cut keeps more of the tasks, a sentence for each accuracy, judged by the paired interval.

    What is judged is this model before any training, repaired if it was; the others are bare cuts.
    """
    section = report.retention
    ours = section and (section.row("repaired") or section.row("hf_prune"))
    rivals = [row for row in section.rows if row.name not in ("parent", *OURS)] if ours else []
    if not rivals:
        return []
    repaired, found = ", repaired," if ours.name == "repaired" else "", []
    for what in section.references:
        label, best = max(((row.label, row.kept(what)) for row in rivals), key=lambda pair: pair[1].mean_accuracy)
        if ours.kept(what).difference_ci is None or best.difference_ci is None:
            continue
        low, high = best.difference_ci
        outcome = (
            "this model keeps more" if high < 0 else "that one keeps more" if low > 0 else "a tie within the noise"
        )
        mine, theirs = (percent(kept.mean_accuracy) for kept in (ours.kept(what), best))
        found.append(
            f"Mean {what} over the tasks: this model{repaired} {mine}, the best of the other cuts, {label}, "
            f"{theirs}; {outcome} (the latter's lead: {points(low)} to {points(high)} points, paired 95 % interval)."
        )
    return found
