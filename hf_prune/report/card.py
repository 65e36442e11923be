"""Report -> README.md: the model card, from a template in model_cards/."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import ModelCard

from hf_prune.atomic_files import write_text
from hf_prune.blueprint import LOCAL
from hf_prune.data.bundled import bundled_folder
from hf_prune.errors import scrub
from hf_prune.recipe import nest
from hf_prune.report import comparisons, tables, verdicts
from hf_prune.report.card_data import card_data, title
from hf_prune.report.licence import inherited_licence
from hf_prune.report.load_note import load_note
from hf_prune.report.markdown import code, fence, md
from hf_prune.report.pace import time_verdict
from hf_prune.report.redaction import public_command, public_recipe, public_source, without_paths
from hf_prune.report.schema.model import SourceCard, removed_layers
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import AccuracyName, Baseline, Kept, Perplexity, Retention, RetentionRow, total
from hf_prune.report.schema.section import Interval


def write_card(
    report: Report, folder: Path, figures: Mapping[str, str] | None = None, parents: Sequence[SourceCard] = ()
) -> Path:
    """Write `folder`/README.md from the template model_cards/default.md.

    Args:
        report: what report.json holds.
        folder: where the model lies; must exist.
        figures: name (layer_strip, search_history, comparison, pareto) -> file, relative to `folder`.
        parents: what their own cards say, one per source; default: as the report has them.

    Returns:
        The path of the card, complete or not there at all.

    Raises:
        HfPruneError: the template is not installed.
    """
    parents = parents or report.sources
    data = card_data(report, parents)
    context = _context(report, figures or {}, parents)
    card = ModelCard.from_template(data, template_str=_template(), **context)
    card.text = scrub(card.text)
    path = Path(folder) / "README.md"
    write_text(path, card.content.rstrip() + "\n")
    return path


def _template() -> str:
    return (bundled_folder("model_cards") / "default.md").read_text(encoding="utf-8")


def _context(report: Report, figures: Mapping[str, str], parents: Sequence[SourceCard]) -> dict[str, Any]:
    """Names of the template."""
    return {
        "report": report,
        "title": title(report),
        "figures": {k: quote(_relative(v)) for k, v in figures.items()},
        **FORMATS,
        **_results(report, parents),
        **_making(report, parents),
    }


def _results(report: Report, parents: Sequence[SourceCard]) -> dict[str, Any]:
    """What the model is and can do."""
    generation = report.generation
    stage_header, stage_rows = tables.stage_table(report)
    return {
        "lead": _lead(report, parents),
        "strip_alt": f"What became of each of the {report.size.dense.layers} source layers",
        "warnings": verdicts.warnings(report),
        "header": tables.header(report),
        "table": tables.table(report),
        "beside_parents": tables.parents_table(report),
        "speed": verdicts.speed_verdict(report),
        "size_miss": verdicts.size_miss(report),
        "left_out": report.left_out,
        "zeroed": _zeroed(report),
        "stage_header": stage_header,
        "stage_rows": stage_rows,
        "recovery": verdicts.recovery_verdict(report),
        "trained": report.healing is not None and report.healing.kept,
        "adapter": _adapter(report),
        "samples": generation.samples if generation else (),
        "worst": generation.worst if generation else (),
        "baselines": _baselines(report),
        "baseline_verdict": comparisons.baseline_verdict(report),
        "retention": _retention(report.retention) if report.retention else (),
        "retention_verdict": comparisons.retention_verdict(report),
    }


def _making(report: Report, parents: Sequence[SourceCard]) -> dict[str, Any]:
    """How it was made, and how to use it."""
    local = {p.repo for p in parents if p.is_local}
    recipe = public_recipe(report.recipe, local)
    return {
        "search": _search(report),
        "merging_verdict": verdicts.merging_verdict(report),
        "tuning_verdict": verdicts.tuning_verdict(report),
        "correlations": _correlations(report),
        "load_from": json.dumps(str(report.push_to or "path/to/this/folder")),
        "remote_code": report.trusts_code or report.own_code,
        "load_note": load_note(report),
        "certificate": _certificate(report),
        "base_check": [md(x) for x in verdicts.base_verdict(report) + verdicts.vocabulary_verdict(report)],
        "command": _commands(report.command, local),
        "better_command": _commands(comparisons.better_command(report), local),
        "recipe": yaml.safe_dump(nest(recipe), sort_keys=False, allow_unicode=True),
        "sources": "; ".join(_parent_link(p) for p in parents),
        "licence_note": inherited_licence(parents)[1],
        "hardware": _hardware(report),
        "times": _times(report),
        "versions": _versions(report),
        "splits": _splits(report),
    }


def _lead(report: Report, parents: Sequence[SourceCard]) -> str:
    dense, pruned, text = report.size.dense, report.size.pruned, total(report.text)
    used = pruned.active_parameters or pruned.parameters
    gone = verdicts.percent(1 - used / dense.parameters)
    first = (
        f"A smaller {' + '.join(map(_parent_link, parents))}. It keeps {pruned.layers} of {dense.layers} "
        f"layers and uses {verdicts.amount(used)} of {verdicts.amount(dense.parameters)} parameters ({gone} fewer)."
    )
    if not text:
        return first
    if beside := report.beside_parents.get("all"):
        best, base, ours = map(_perplexity, (beside.best_parent, beside.base, beside.pruned))
        dense = f"; the figures of {md(report.dense_parent)}, the best parent on average, stand in the column dense"
        said = f"is {ours}; taking for each corpus the parent that knows it best, it was {best}, and of the base alone "
        said += f"{base}{dense if report.dense_parent else ''}"
        return f"{first}\nPerplexity on held-out text {said}. {_after(report)}"
    before, after = map(_perplexity, (text.dense, text.pruned))
    return f"{first}\nPerplexity on held-out text went from {before} to {after}. {_after(report)}"


def _perplexity(side: Perplexity) -> str:
    return verdicts.significant(side.perplexity)


def _after(report: Report) -> str:
    """What followed the cut."""
    repaired, healing = report.repair is not None and report.repair.kept, report.healing
    trained = f"was trained on {verdicts.amount(healing.tokens)} tokens" if healing and healing.kept else None
    if repaired and trained:
        return f"What stays was refitted in closed form, and {trained}."
    if trained:
        return f"What stays {trained}."
    return f"{'What stays was refitted in closed form; no' if repaired else 'No'} training followed."


def _commands(lines: str | None, local: set[str]) -> str:
    """One a line: a result may have been healed by a command of its own."""
    return "\n".join(public_command(line, local) for line in (lines or "").splitlines())


def _adapter(report: Report) -> str | None:
    """How to use training that was left out of the weights."""
    healing = report.healing
    if not healing or not healing.kept or healing.merged:
        return None
    return (
        "The training is not in the weights: it is a PEFT adapter in `adapter/`. The figures are those with it. "
        'Load it on top: `PeftModel.from_pretrained(model, ..., subfolder="adapter")`.'
    )


def _parent_link(parent: SourceCard) -> str:
    repo, revision = parent.repo, parent.revision or ""
    if parent.is_local:
        name = f"local model {code(public_source(repo, is_path=True))}"
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        name = f"[{md(repo)}](https://huggingface.co/{repo})"
    else:
        name = code(repo)
    commit = f" at {'fingerprint' if revision.startswith(LOCAL) else 'commit'} {code(revision)}" if revision else ""
    adapter = f" with the adapter {code(public_source(parent.adapter))} merged in" if parent.adapter else ""
    return name + commit + adapter + "".join(f", {md(how)}" for how in parent.how)


def _relative(figure: str) -> str:
    return Path(figure).name if Path(figure).is_absolute() or ".." in Path(figure).parts else Path(figure).as_posix()


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """A line of the comparison at equal size; `paired` is the interval of its log-perplexity above this model's."""

    label: str
    layers: int | None
    parameters: int | None
    removed: Sequence[int] | None
    perplexity: float
    ci: Interval | None
    kl: float
    paired: str


def _baselines(report: Report) -> list[BaselineRow]:
    """This model first, then the baselines by perplexity."""
    rivals = sorted((b for b in report.baselines if b.name != "hf_prune"), key=lambda b: b.perplexity)
    rows = [_baseline(b) for b in rivals]
    bare, size = comparisons.bare(report), report.size.pruned
    if not rows or bare is None:
        return rows
    label = "this model" if comparisons.is_bare(report) else "this model's cut, before repair and training"
    return [BaselineRow(label, size.layers, size.parameters, removed_layers(report.layers), *bare, ""), *rows]


def _baseline(b: Baseline) -> BaselineRow:
    ci = b.log_ratio_ci_vs_ours
    paired = f"{verdicts.decimals(ci[0], 3)} to {verdicts.decimals(ci[1], 3)}" if ci else verdicts.NONE
    return BaselineRow(b.label, b.layers, b.parameters, b.removed, b.perplexity, b.ci, b.kl, paired)


@dataclass(frozen=True, slots=True)
class RetentionTable:
    """What every model keeps by one accuracy, as a share of that of the parent `reference`."""

    what: str
    reference: str
    tasks: Sequence[str]
    rows: Sequence[tuple[RetentionRow, Kept]]


KEPT_BY: Mapping[AccuracyName, str] = {
    "accuracy": "Accuracy",
    "acc_norm": "Accuracy by likelihood per character of an option (acc_norm of lm_eval)",
}


def _retention(section: Retention) -> list[RetentionTable]:
    return [
        RetentionTable(KEPT_BY[name], reference, section.tasks, [(row, row.kept(name)) for row in section.rows])
        for name, reference in section.references.items()
    ]


def _lead_over_us(kept: Kept) -> str:
    """How far a row is above this model, in points."""
    if kept.difference_ci is None:
        return ""
    return verdicts.interval(verdicts.points(kept.difference), kept.difference_ci, verdicts.points)


def _ranges(layers: Sequence[int] | None) -> str:
    """3, 7, 21-28; a dash when the cut is not a plain removal."""
    runs: list[list[int]] = []
    for layer in sorted(layers or ()):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs) or verdicts.NONE


def _zeroed(report: Report) -> str | None:
    """Which halves are switched off while their weights stay in the file."""
    pruned = report.size.pruned
    active = pruned.active_parameters
    fates = {"attn_removed": "attention", "mlp_removed": "MLP"}
    halves = {f: [x.source for x in report.layers if x.fate == f] for f in fates}
    if active is None or active >= pruned.parameters:
        return None
    which = " and ".join(f"the {fates[f]} of source layers {_ranges(x)}" for f, x in halves.items() if x)
    return (
        f"Zeroed rather than removed, so that stock transformers loads the model: {which or 'some halves of layers'}. "
        f"The file still holds all {verdicts.amount(pruned.parameters)} parameters; {verdicts.amount(active)} are "
        "in use. Size on disk, KV cache and speed are those of the whole file."
    )


def _search(report: Report) -> str | None:
    summary = report.search_summary
    if not summary:
        return None
    text = f"The search ({code(report.search)}) scored {summary.evaluations:,} candidates"
    if summary.distinct is not None:
        text += f", {summary.distinct:,} of them distinct,"
    if seconds := report.seconds.get("search"):
        text += f" in {verdicts.duration(seconds)}"
    if summary.layer_tokens:
        text += f" ({verdicts.amount(summary.layer_tokens)} layer-token products)"
    finalists = summary.finalists
    among = f"{finalists} finalists{' and the cuts they are compared with' if report.baselines else ''}"
    who = f"the cut of {md(report.found_by)}, so it" if report.found_by else "what"
    choice = f" Of {among} the best on the selection split is {who} became this model." if finalists else ""
    return f"{text}; its best {code(report.objective)} was {verdicts.significant(summary.best)}.{choice}"


@dataclass(frozen=True, slots=True)
class CorrelationRow:
    """A fitness, and its rank correlation over n candidates, in words."""

    name: str
    spearman: str
    n: int


def _correlations(report: Report) -> list[CorrelationRow]:
    found = report.search_summary.rank_correlation if report.search_summary else {}
    return [CorrelationRow(name, verdicts.decimals(row.spearman), row.n) for name, row in found.items()]


def _certificate(report: Report) -> str | None:
    c = report.certificate
    if not c:
        return None
    wrong = {"missing": c.missing, "unexpected": c.unexpected, "mismatched": c.mismatched}
    tensors = "; ".join(f"{k}: {', '.join(map(code, v))}" for k, v in wrong.items() if v)
    return (
        f"{'Passed' if c.ok else '**Failed**'}. Loaded in a fresh process with transformers {md(c.transformers)}: "
        f"{tensors or 'nothing missing, unexpected or mismatched'}. Largest difference of a logit to the measured "
        f"model: {verdicts.significant(c.max_logit_difference, 2)}; "
        f"of cached to uncached decoding: {verdicts.significant(c.cached_difference, 2)} "
        f"(in {md(c.dtype)}; allowed {verdicts.significant(c.tolerance, 2)})."
    )


def _hardware(report: Report) -> str:
    h = report.hardware
    if not h:
        return ""
    cores = f"{h.cores} cores" if h.cores else None
    threads = f"{h.threads} threads" if h.threads else None
    memory = f"{verdicts.significant(h.memory_gib)} GiB of memory" if h.memory_gib > 0 else None
    return ", ".join(md(without_paths(x)) for x in (h.accelerator, h.processor, cores, threads, memory) if x)


def _times(report: Report) -> str:
    steps = ", ".join(f"{md(k)} {verdicts.duration(v)}" for k, v in report.seconds.items() if k != "total")
    whole = report.seconds.get("total")
    told = f"{verdicts.duration(whole)} in all ({steps})" if whole is not None and steps else steps
    return ". ".join([told, *map(md, time_verdict(report))])


def _versions(report: Report) -> str:
    found = {"hf_prune": report.hf_prune, **report.versions}
    return ", ".join(f"{md(k)} {md(v)}" for k, v in found.items() if v)


@dataclass(frozen=True, slots=True)
class SplitRow:
    """A split, and in words which text is in it."""

    name: str
    windows: int
    tokens: int
    text: str


def _splits(report: Report) -> list[SplitRow]:
    rows = []
    for name, split in report.splits.items():
        texts = (f"{md(c)}: {md(without_paths(x.origin))} ({x.windows})" for c, x in split.corpora.items())
        rows.append(SplitRow(name, split.windows, split.tokens, "; ".join(texts)))
    return rows


FORMATS = {
    "md": md,
    "code": code,
    "fence": fence,
    "ranges": _ranges,
    "above": _lead_over_us,
    "amount": verdicts.amount,
    "interval": verdicts.interval,
    "percent": verdicts.percent,
    "significant": verdicts.significant,
}
"""Filters of the template."""
