"""The YAML header of a card: lineage, licence, languages, and results as the Hub's model-index has them."""

import math
import re
from collections.abc import Iterator, Sequence

from huggingface_hub import EvalResult, ModelCardData

from hf_prune.blueprint import LOCAL
from hf_prune.report import verdicts
from hf_prune.report.licence import inherited_licence, listed
from hf_prune.report.markdown import one_line
from hf_prune.report.redaction import without_paths
from hf_prune.report.schema.model import SourceCard
from hf_prune.report.schema.report import Report

METRICS = {"accuracy": "Accuracy", "acc_norm": "Length-normalised accuracy"}


def card_data(report: Report, parents: Sequence[SourceCard]) -> ModelCardData:
    """The YAML header: lineage, inherited licence and languages, tags, and results as a model-index."""
    bases = hub_parents(parents)
    merged = len(bases) > 1 or len(parents) > 1
    languages = list(dict.fromkeys(x for p in parents for x in listed(p.language)))
    results = list(_eval_results(report))
    licence, _ = inherited_licence(parents)
    extra = {}
    for parent in parents if licence == "other" else ():
        extra |= {"license_name": parent.license_name} if parent.license_name else {}
        extra |= {"license_link": parent.license_link} if parent.license_link else {}
    return ModelCardData(
        base_model=(bases if len(bases) > 1 else bases[0]) if bases else None,
        base_model_relation=("merge" if merged else "finetune") if bases else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=licence,
        language=languages or None,
        tags=["hf-prune", "pruned", report.method],
        model_name=one_line(title(report)) if results else None,
        eval_results=results or None,
        **extra,
    )


def hub_parents(parents: Sequence[SourceCard]) -> list[str]:
    """Repos of the Hub the model comes from, bases and adapters, without local folders and without revisions."""
    repos = []
    for parent in parents:
        if not parent.is_local:
            repos.append(parent.repo)
        adapter, _, revision = (parent.adapter or "").partition("@")
        if "/" in adapter and not revision.startswith(LOCAL):
            repos.append(adapter)
    # Old repos such as gpt2 have no namespace; anything else that is not spelled like a repo would break the header.
    repos = [r for r in repos if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", r)]
    return list(dict.fromkeys(repos))


def title(report: Report) -> str:
    """What the model is called: its parents, and how many layers are left."""
    dense, pruned = report.size.dense.layers, report.size.pruned.layers
    several = len(report.sources) > 1
    said = [(several and s.adapter or s.repo).partition("@")[0] for s in report.sources]
    names = " + ".join(name.rsplit("/", 1)[-1] for name in said)
    return f"{names}, pruned" if pruned == dense else f"{names} with {pruned} of {dense} layers"


def _eval_results(report: Report) -> Iterator[EvalResult]:
    for name in verdicts.corpora(report.text):
        text, where = report.text[name], "all text" if name == "all" else without_paths(name)
        label = f"{where}, report split of this run ({text.tokens:,} tokens)"
        yield from _result(name, label, "perplexity", "Perplexity", text.pruned.perplexity)
        yield from _result(name, label, "bits_per_byte", "Bits per byte", text.pruned.bits_per_byte)
    for name, task in report.tasks.items():
        kind = f"multiple choice, chance {verdicts.percent(task.chance, 0)}"
        label = f"{name}, {task.items} items of this run ({kind if task.chance else 'text to be generated'})"
        for accuracy in task.accuracies:
            yield from _result(name, label, accuracy.name, METRICS[accuracy.name], accuracy.pruned.value)
    for name, by in report.stages.harness.items() if report.stages and report.stages.names else ():
        last = by.of(report.stages.names[-1])
        for metric, row in last.metrics.items():
            items = f", {row.items} items" if row.items is not None else ""
            yield from _result(name, f"{name} ({last.version}{items})", metric, metric, row.value)


def _result(config: str, label: str, metric: str, metric_name: str, value: float) -> Iterator[EvalResult]:
    if math.isfinite(value):
        yield EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            # Not a data set of the Hub, so no name that the Hub would link to one.
            dataset_type="custom",
            dataset_name=one_line(label),
            dataset_config=one_line(config),
            dataset_split="report",
            metric_type=metric,
            metric_name=metric_name,
            metric_value=float(f"{value:.4g}"),
        )
