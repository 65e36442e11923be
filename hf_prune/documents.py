"""What lies beside the weights of a finished folder: report.json, recipe.yaml, front.json, figures and the card."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import __version__, card, figures, front, report, speed
from hf_prune.assemble import quiet
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Outcome, Part, Trial
from hf_prune.evaluate import Evaluator
from hf_prune.job import Clock, Job, Scorer
from hf_prune.journal import Journal, Row
from hf_prune.plan import asked
from hf_prune.redaction import public_recipe
from hf_prune.search import drive

LABELS = {
    "random": "random (median of 5)",
    "last": "last layers",
    "shortgpt": "ShortGPT (block influence)",
    "window": "best window (Gromov et al.)",
    "greedy": "SLEB (greedy)",
}
FIGURES = {
    "layer_strip": "layers.png",
    "search_history": "search.png",
    "pareto": "front.png",
    "comparison": "comparison.png",
}
CORRELATED = 64
"""Candidates behind the rank correlations, evenly spaced over the ranks of the search."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A baseline's cut of the same size and its values on the search windows, in the job's columns."""

    name: str
    blueprint: Blueprint
    removed: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What the search brought home: the cut, and the winner it became by repair (the same without one)."""

    cut: Blueprint
    winner: Blueprint
    finalists: tuple[Outcome, ...] = ()
    rivals: tuple[Rival, ...] = ()
    front: list[dict[str, Any]] | None = None
    layer_tokens: int = 0
    repair: Mapping[str, Any] | None = None


def describe(
    job: Job,
    journal: Journal,
    found: Found,
    folder: Path,
    stored: tuple[int, int],
    certificate: Mapping[str, Any],
    clock: Clock,
) -> dict[str, Any]:
    """Measure the folder on the report split and write every document into it.

    Args:
        job: the run.
        journal: every trial of the run.
        found: the winner and what it is compared with.
        folder: holds the weights already.
        stored: parameters and bytes of the written weights.
        certificate: of `certify`.
        clock: closed for `report` here.

    Returns:
        The content of report.json.
    """
    result = {
        **_identity(job, found),
        "size": _size(job, found.winner, stored),
        "layers": report.fates(found.winner, job.parent.depth),
        "splits": report.splits(job.evidence),
        **_measured(job, found, folder),
        "merging": merging(job, journal, found),
        "search_summary": _summary(job, journal, found),
        "certificate": dict(certificate),
        "front": [front.public(member) for member in found.front] if found.front else None,
        "hypervolume": front.hypervolume(job, journal) if found.front else None,
        "hardware": report.hardware(job.device),
        "versions": {p: version(p) for p in ("torch", "transformers", "huggingface_hub", "safetensors", "numpy")},
    }
    clock.lap("report")
    result["seconds"] = clock.seconds
    result = plain(result)
    if found.front:
        _write(folder / "front.json", json.dumps(plain({"version": 1, "front": found.front}), indent=1) + "\n")
    _write(folder / "recipe.yaml", yaml.safe_dump(result["recipe"], sort_keys=False))
    publish(result, folder, _figures(job, journal, found, result, folder), parents_of(job))
    return result


def measured_again(job: Job, winner: Blueprint, folder: Path, before: Mapping[str, Any]) -> dict[str, Any]:
    """A finished folder under the job's report windows: figures of the search stay, what is measured is new.

    Args:
        job: with the evidence to use.
        winner: the folder's blueprint.
        folder: holds weights and earlier documents.
        before: its report.json.

    Returns:
        The new content of report.json.
    """
    depth = job.parent.depth
    rivals = tuple(
        Rival(b["name"], _dropped(job, b["removed"]), tuple(b["removed"]), ())
        for b in before["baselines"]
        if b["name"] != "hf_prune"
    )
    found = Found(winner, (), rivals, None, 0)
    result = plain(
        {
            **before,
            **_measured(job, found, folder),
            "layers": report.fates(winner, depth),
            "splits": {**before["splits"], **report.splits({"report": job.evidence["report"]})},
            "hardware": report.hardware(job.device),
        }
    )
    drawn = {n: f"figures/{f}" for n, f in FIGURES.items() if (folder / "figures" / f).is_file()}
    if rivals:
        figures.comparison(result, folder / "figures" / FIGURES["comparison"])
    publish(result, folder, drawn, parents_of(job))
    return result


def _dropped(job: Job, removed: Sequence[int]) -> Blueprint:
    scorer = job.deletions(len(removed))
    return scorer.blueprint(scorer.space.from_removed(removed))


def publish(
    result: Mapping[str, Any], folder: Path, drawn: Mapping[str, str], parents: Sequence[Mapping[str, Any]]
) -> None:
    """Write report.json and the card, each whole or not at all."""
    _write(folder / "report.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    card.write_card(result, folder, drawn, parents)


def parents_of(job: Job) -> list[dict[str, Any]]:
    """What the card inherits from."""
    source = job.parent.source
    own = {k: job.card.get(k) for k in ("license", "language", "pipeline_tag")}
    local = source.revision.startswith("sha256-")
    return [{"repo": source.repo, "revision": source.revision, "adapter": source.adapter, **own, "is_local": local}]


def _identity(job: Job, found: Found) -> dict[str, Any]:
    recipe = job.recipe
    local = [job.parent.source.repo] if job.parent.source.revision.startswith("sha256-") else []
    public = public_recipe(recipe.model_dump(mode="json", exclude_defaults=True), local)
    flags = " ".join(_flag(k, v) for k, v in public.items() if k not in ("base", "push_to", "public", "create_pr"))
    return {
        "version": 1,
        "hf_prune": __version__,
        "command": f"hf-prune compress {public['base']} {flags}".strip(),
        "recipe": public,
        "recipe_digest": recipe.digest,
        "digest": found.winner.digest,
        "sources": report.sources(found.winner, [job.card] * len(found.winner.sources)),
        "method": recipe.method,
        "search": "by hand" if recipe.drop else recipe.search,
        "objective": recipe.objective,
        "seed": recipe.seed,
    }


def _flag(name: str, value: Any) -> str:
    option = "--" + name.replace("_", "-")
    if value is True:
        return option
    return " ".join(f"{option} {v}" for v in (value if isinstance(value, list) else [value]))


def _size(job: Job, winner: Blueprint, stored: tuple[int, int]) -> dict[str, Any]:
    itemsize = job.parent.checkpoint.itemsize(next(iter(job.parent.shapes)))
    size = report.sizes(job.parent, winner, job.evaluator.parameters(winner), stored, itemsize)
    ratio = job.recipe.ratio
    if ratio is None and asked(job.recipe).startswith("ratio"):
        ratio = float(asked(job.recipe).split()[1])
    return {
        **size,
        "asked": asked(job.recipe),
        "asked_ratio": ratio,
        "miss": None if ratio is None else size["removed_ratio"] - ratio,
    }


def _loaded(job: Job, folder: Path) -> PreTrainedModel:
    """The finished folder as a user gets it, in the precision of the search so that both columns are alike."""
    code = job.recipe.trust_remote_code
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=job.dtype, local_files_only=True, trust_remote_code=code
        )
    return model.to(job.device).eval()


def _measured(job: Job, found: Found, folder: Path) -> dict[str, Any]:
    recipe, windows = job.recipe, job.evidence["report"]
    rng = np.random.default_rng(recipe.seed)
    models = {"dense": job.bank.model, "pruned": _loaded(job, folder)}
    evaluator = Evaluator(job.bank, windows.tokens)
    identity = Blueprint.identity(job.parent.source, job.parent.depth)
    dense, ours = evaluator.token_scores([identity, found.winner], Fidelity(len(windows.tokens)))
    entries = [("hf_prune", "hf_prune", found.winner), *((r.name, LABELS[r.name], r.blueprint) for r in found.rivals)]
    return {
        "text": report.text(dense, ours, windows),
        "baselines": report.baselines(entries, evaluator, windows, ours) if found.rivals else [],
        "tasks": report.task_scores(models, job.tokenizer, recipe.tasks, recipe.task_items, rng),
        "generation": report.samples(models, job.tokenizer, windows),
        "speed": speed.measure(models, rng),
    }


def scored(scorer: Scorer, journal: Journal, trials: Sequence[Trial]) -> tuple[Outcome, ...]:
    """Outcomes of given trials, through the journal."""

    def once() -> Any:
        return (yield tuple(trials))

    driving = drive(once(), scorer.evaluate, journal, scorer.key, total=len(trials))
    while True:
        try:
            next(driving)
        except StopIteration as stop:
            return stop.value


def merging(job: Job, journal: Journal, found: Found) -> dict[str, Any] | None:
    """Does merging beat deletion at the same partition?

    KL on the selection windows of the winner, or of the best candidate that merges where the winner does not, and of
    the best of its deletions; None when no candidate merged anything.
    """
    merged = [(o, b) for o, b in _full(job, journal) if any(map(_mixed, b.layers))]
    if not merged:
        return None
    best = found.winner if any(map(_mixed, found.winner.layers)) else min(merged, key=lambda pair: pair[0])[1]
    options = [best]
    for i, spec in enumerate(best.layers):
        if _mixed(spec):
            options = [_with(b, i, LayerSpec((Part(p.source, p.layer),))) for b in options for p in spec.parts][:256]
    measures = job.evaluator.evaluate([best, *options], job.selection)
    ours, deletion = measures[0].kl, min(m.kl for m in measures[1:])
    return {"ours": ours, "deletion": deletion, "helps": ours < deletion, "won": best.digest == found.winner.digest}


def _mixed(spec: LayerSpec) -> bool:
    return len(spec.parts) > 1 or spec.norms is not None


def _with(blueprint: Blueprint, index: int, spec: LayerSpec) -> Blueprint:
    layers = list(blueprint.layers)
    layers[index] = spec
    return Blueprint(blueprint.sources, tuple(layers), blueprint.embed, blueprint.head)


def _own(job: Job, journal: Journal) -> list[Row]:
    """Trials of the search's own space at its budget, on search windows: no half-way steps of a greedy baseline."""
    space = job.scorer.space
    return [
        row
        for row in journal.rows()
        if row.fidelity.start == 0
        and len(row.genome) == len(space.dense())
        and (space.budget is None or space.removed(row.genome) == space.budget)
    ]


def _full(job: Job, journal: Journal) -> list[tuple[tuple[float, ...], Blueprint]]:
    """Values and blueprints of every candidate that saw all search evidence."""
    rows = [r for r in _own(job, journal) if r.fidelity == Fidelity(job.recipe.sequences)]
    return [(r.values, job.scorer.blueprint(r.genome)) for r in rows]


def _summary(job: Job, journal: Journal, found: Found) -> dict[str, Any]:
    rows = _own(job, journal)
    full = [r.values[0] for r in rows if r.fidelity == Fidelity(job.recipe.sequences)]
    best = np.minimum.accumulate(full) if full else np.array([])
    return {
        "evaluations": len(rows),
        "distinct": len({r.digest for r in rows}),
        "layer_tokens": found.layer_tokens,
        "best": float(best[-1]) if len(best) else None,
        "history": [[i + 1, float(b)] for i, b in enumerate(best) if i == 0 or b < best[i - 1]],
        "finalists": len(found.finalists),
        "rank_correlation": _correlations(job, journal),
    }


def _correlations(job: Job, journal: Journal) -> dict[str, Any]:
    """Spearman correlation of every fitness on the search windows with KL on the selection windows."""
    candidates = sorted(_full(job, journal), key=lambda pair: pair[0])
    candidates = [(v, b) for v, b in candidates if all(map(math.isfinite, v))]
    if len(candidates) > CORRELATED:
        candidates = [candidates[i] for i in np.linspace(0, len(candidates) - 1, CORRELATED).round().astype(int)]
    if len(candidates) < 3:
        return {}
    unseen = [m.kl for m in job.evaluator.evaluate([b for _, b in candidates], job.selection)]
    return {
        name: {"spearman": report.spearman([v[i] for v, _ in candidates], unseen), "n": len(candidates)}
        for i, name in enumerate(job.columns)
        if name != "params" or job.recipe.search == "nsga2"
    }


def _figures(job: Job, journal: Journal, found: Found, result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw what this run can show; name -> file relative to the folder."""
    (folder / "figures").mkdir(exist_ok=True)
    paths = {name: folder / "figures" / file for name, file in FIGURES.items()}
    objective = job.recipe.objective
    drawn = {"layer_strip": figures.layer_strip(result, paths["layer_strip"])}
    if found.finalists and not found.front:
        points = [(i + 1, r.values[0], r.fidelity.sequences) for i, r in enumerate(_own(job, journal))]
        rivals = {LABELS[r.name]: r.values[0] for r in found.rivals}
        drawn["search_history"] = figures.search_history(
            points, paths["search_history"], objective=objective, baselines=rivals
        )
    if found.front:
        drawn["pareto"] = figures.pareto(
            result["front"], front.points(job, journal), result["hypervolume"], paths["pareto"], objective=objective
        )
    if result["baselines"]:
        drawn["comparison"] = figures.comparison(result, paths["comparison"])
    return {name: str(path.relative_to(folder)) for name, path in drawn.items()}


def plain(value: Any) -> Any:
    """JSON types only; infinities become the text "inf", NaN null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return int(value) if isinstance(value, np.integer) else value


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
