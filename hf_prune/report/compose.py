"""What lies beside the weights of a finished folder: statistics.json, recipe.yaml, front.json, figures and the card."""

import json
import math
import shlex
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_prune import __version__
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint, LayerSpec, Outcome, Part, Trial
from hf_prune.events import Event, unwatched
from hf_prune.models.auto_classes import FILE
from hf_prune.plan import asked
from hf_prune.recipe import flagged
from hf_prune.recovery.latency import latency_report, retimed
from hf_prune.report import card, figures, statistics
from hf_prune.report.measure import measured
from hf_prune.report.redaction import public_recipe
from hf_prune.search import drive, once
from hf_prune.session import front
from hf_prune.session.baselines import label
from hf_prune.session.clock import Clock
from hf_prune.session.found import Found, Rival
from hf_prune.session.job import Job
from hf_prune.session.journal import Journal, Row
from hf_prune.session.scorer import Scorer

FIGURES = {
    "layer_strip": "layers.png",
    "search_history": "search.png",
    "pareto": "front.png",
    "comparison": "comparison.png",
    "capabilities": "capabilities.png",
    "healing": "healing.png",
    "layer_map": "parents.png",
    "layer_widths": "widths.png",
}
CORRELATED = 64
"""Candidates behind the rank correlations, evenly spaced over the ranks of the search."""


def describe(
    journal: Journal,
    job: Job,
    found: Found,
    folder: Path,
    stored: tuple[int, int],
    certificate: Mapping[str, Any],
    clock: Clock,
    healing: Mapping[str, Any] | None = None,
) -> Generator[Event, None, dict[str, Any]]:
    """Measure the folder on the report split and write every document into it.

    Args:
        journal: every trial of the run; copied into the folder.
        job: the run.
        found: the winner and what it is compared with.
        folder: holds the weights already.
        stored: parameters and bytes of the written weights.
        certificate: of `certify`.
        clock: closed for `report` here.
        healing: figures of the training that followed, if one did.

    Returns:
        The content of statistics.json.
    """
    result = {
        **_identity(job, found),
        "size": _size(job, found.winner, stored),
        "layers": statistics.fates(found.winner, job.parent.depth),
        "widths": statistics.widths(job.parent, found.winner),
        "own_code": (folder / FILE).is_file(),
        **_lineage(job, found),
        "splits": statistics.splits(job.evidence),
        **(yield from measured(job, found, folder, healing)),
        "tuning": found.tuning,
        "repair": found.repair,
        "healing": healing,
        "selection": found.selection,
        "merging": merging(job, journal, found),
        "search_summary": _summary(job, journal, found),
        "certificate": dict(certificate),
        "front": [front.public(member) for member in found.front] if found.front else None,
        "hypervolume": front.hypervolume(job, journal) if found.front else None,
        "hardware": statistics.hardware(job.device),
        "versions": {p: version(p) for p in ("torch", "transformers", "huggingface_hub", "safetensors", "numpy")},
    }
    result["latency"] = latency_report(job, found.winner, result["speed"])
    clock.lap("report")
    result["seconds"] = clock.seconds
    result = plain(result)
    if found.front:
        write_text(folder / "front.json", json.dumps(plain({"version": 1, "front": found.front}), indent=1) + "\n")
    write_text(folder / "recipe.yaml", yaml.safe_dump(result["recipe"], sort_keys=False))
    publish(result, folder, _figures(job, journal, found, result, folder), parents_of(job))
    shutil.copyfile(journal.path, folder / "journal.jsonl")
    if job.items.is_file():
        shutil.copyfile(job.items, folder / "items.jsonl")
    return result


def measured_again(
    before: Mapping[str, Any],
    job: Job,
    found: Found,
    folder: Path,
    stored: tuple[int, int] | None = None,
    certificate: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    healing: Mapping[str, Any] | None = None,
) -> Generator[Event, None, dict[str, Any]]:
    """A folder measured under the job's report windows: figures of the search stay, what is measured is new.

    Args:
        before: the report of the folder it was, or was made from.
        job: with the evidence to use.
        found: the folder's blueprint; its baselines are read from `before`.
        folder: holds the weights.
        stored: parameters and bytes, where the weights are new.
        certificate: of new weights.
        clock: of what made them.
        healing: figures of a training that was not there before.

    Returns:
        The new content of statistics.json.
    """
    rivals = tuple(
        Rival(b["name"], _rebuilt(job, b), tuple(b["removed"]), (), b["label"])
        for b in before["baselines"]
        if b["name"] != "hf_prune"
    )
    found = replace(found, rivals=rivals, repair=found.repair or before.get("repair"))
    healing = healing or before.get("healing")
    result = {
        **before,
        **(yield from measured(job, found, folder, healing)),
        "repair": found.repair,
        "healing": healing,
        "layers": statistics.fates(found.winner, job.parent.depth),
        "splits": {**before["splits"], **statistics.splits({"report": job.evidence["report"]})},
        "hardware": statistics.hardware(job.device),
    }
    result["latency"] = retimed(before.get("latency"), result["speed"])
    if stored:
        again = _identity(job, found)
        result |= {k: again[k] for k in ("hf_prune", "recipe", "recipe_digest", "digest")}
        result |= {"command": _then(before, again), "size": _size(job, found.winner, stored)}
        result |= {"certificate": dict(certificate or {}), "seconds": {**before["seconds"], **clock.seconds}}
    result = plain(result)
    (folder / "figures").mkdir(exist_ok=True)
    if rivals:
        figures.comparison(result, folder / "figures" / FIGURES["comparison"])
    _stage_figures(result, folder)
    drawn = {n: f"figures/{f}" for n, f in FIGURES.items() if (folder / "figures" / f).is_file()}
    publish(result, folder, drawn, parents_of(job))
    return result


def _then(before: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    """The commands that made it, one a line."""
    fresh = {k: v for k, v in again["recipe"].items() if before["recipe"].get(k) != v and k != "base"}
    flags = [w for k, v in fresh.items() if k not in ("push_to", "public", "create_pr") for w in flagged(k, v)]
    return f"{before['command']}\nhf-prune heal FOLDER {shlex.join(flags)}".strip()


def _rebuilt(job: Job, row: Mapping[str, Any]) -> Blueprint:
    """A baseline's blueprint."""
    if row.get("blueprint"):
        return Blueprint.from_json(row["blueprint"])
    removed = row["removed"]
    scorer = job.deletions(len(removed))
    return scorer.blueprint(scorer.space.from_removed(removed))


def publish(
    result: Mapping[str, Any], folder: Path, drawn: Mapping[str, str], parents: Sequence[Mapping[str, Any]]
) -> None:
    """Write statistics.json and the card, each whole or not at all."""
    write_text(folder / "report.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    card.write_card(result, folder, drawn, parents)


def parents_of(job: Job) -> list[dict[str, Any]]:
    """What the card inherits from."""
    fields = ("license", "language", "pipeline_tag")
    return [
        {"repo": s.repo, "revision": s.revision, "adapter": s.adapter, **{k: card.get(k) for k in fields},
         "is_local": s.is_local}
        for s, card in zip(job.sources, job.cards, strict=True)
    ]  # fmt: skip


def _lineage(job: Job, found: Found) -> dict[str, Any]:
    """Of several parents: their names, which of them knows each corpus best, and what every layer is made of."""
    if len(job.parents) == 1:
        return {}
    names = [label(job, k) for k in range(len(job.parents))]
    winner = found.winner.over(job.sources)
    return {
        "parents": names,
        "dense_parent": names[job.dense],
        "teachers": {c: names[job.teacher(c)] for c in job.corpora},
        "origins": statistics.origins(winner, names),
        "ends": {"embedding": names[winner.embed], "head": names[winner.head]},
    }


def _identity(job: Job, found: Found) -> dict[str, Any]:
    recipe = job.recipe
    local = [s.repo for s in job.sources if s.is_local]
    public = public_recipe(recipe.model_dump(mode="json", exclude_defaults=True), local)
    left_out = ("base", "push_to", "public", "create_pr")
    flags = [w for k, v in public.items() if k not in left_out for w in flagged(k, v)]
    return {
        "version": 1,
        "hf_prune": __version__,
        "command": shlex.join(["hf-prune", "compress", str(public["base"]), *flags]),
        "recipe": public,
        "recipe_digest": recipe.digest,
        "digest": found.winner.digest,
        "sources": statistics.sources(found.winner.over(job.sources), job.cards),
        "method": recipe.method,
        "search": "by hand" if recipe.drop else recipe.search,
        "objective": recipe.objective,
        "seed": recipe.seed,
    }


def _size(job: Job, winner: Blueprint, stored: tuple[int, int]) -> dict[str, Any]:
    live, cached = job.evaluator.parameters(winner), job.parent.dtype.itemsize
    size = statistics.sizes(job.parent, winner, live, stored, cached)
    ratio = job.recipe.ratio
    if ratio is None and asked(job.recipe).startswith("ratio"):
        ratio = float(asked(job.recipe).split()[1])
    return {
        **size,
        "asked": asked(job.recipe),
        "asked_ratio": ratio,
        "miss": None if ratio is None else size["removed_ratio"] - ratio,
    }


def scored(scorer: Scorer, journal: Journal, trials: Sequence[Trial]) -> tuple[Outcome, ...]:
    """Outcomes of given trials, through the journal."""
    return unwatched(drive(once(trials), scorer.evaluate, journal, scorer.key, total=len(trials)))


def merging(job: Job, journal: Journal, found: Found) -> dict[str, Any] | None:
    """Does merging beat deletion at the same partition?

    KL on the selection windows of the winner, or of the best candidate that merges where the winner does not, and of
    the best of its deletions; None when no candidate merged anything.
    """
    merged = [(o, b) for o, b in _full(job, journal) if any(map(_mixed, b.layers))]
    if not merged:
        return None
    best = found.cut if any(map(_mixed, found.cut.layers)) else min(merged, key=lambda pair: pair[0])[1]
    options = [best]
    for i, spec in enumerate(best.layers):
        if _mixed(spec):
            options = [_with(b, i, LayerSpec((Part(p.source, p.layer),))) for b in options for p in spec.parts][:256]
    measures = job.evaluator.evaluate([best, *options], job.selection)
    ours, deletion = measures[0].kl, min(m.kl for m in measures[1:])
    return {"ours": ours, "deletion": deletion, "helps": ours < deletion, "won": best.digest == found.cut.digest}


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
    rows = [r for r in _own(job, journal) if r.fidelity == job.full]
    return [(r.values, job.scorer.blueprint(r.genome)) for r in rows]


def _summary(job: Job, journal: Journal, found: Found) -> dict[str, Any]:
    rows = _own(job, journal)
    full = [r.values[0] for r in rows if r.fidelity == job.full]
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
        name: {"spearman": statistics.spearman([v[i] for v, _ in candidates], unseen), "n": len(candidates)}
        for i, name in enumerate(job.columns)
        if name != "params" or job.recipe.search == "nsga2"
    }


def _figures(job: Job, journal: Journal, found: Found, result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw what this run can show; name -> file relative to the folder."""
    (folder / "figures").mkdir(exist_ok=True)
    paths = {name: folder / "figures" / file for name, file in FIGURES.items()}
    objective = job.recipe.objective
    drawn = {"layer_strip": figures.layer_strip(result, paths["layer_strip"])}
    if "origins" in result:
        drawn["layer_map"] = figures.layer_map(result, paths["layer_map"])
    if result["widths"]:
        drawn["layer_widths"] = figures.layer_widths(result, paths["layer_widths"])
    if found.finalists and not found.front:
        points = [(i + 1, r.values[0], r.fidelity.sequences) for i, r in enumerate(_own(job, journal))]
        rivals = {r.label: r.values[0] for r in found.rivals if r.values}
        drawn["search_history"] = figures.search_history(
            points, paths["search_history"], objective=objective, baselines=rivals
        )
    if found.front:
        drawn["pareto"] = figures.pareto(
            result["front"], front.points(job, journal), result["hypervolume"], paths["pareto"], objective=objective
        )
    if result["baselines"]:
        drawn["comparison"] = figures.comparison(result, paths["comparison"])
    return {n: str(path.relative_to(folder)) for n, path in drawn.items()} | _stage_figures(result, folder)


def _stage_figures(result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """What the cut cost and what came back; and the course of the training, if there was one."""
    drawn = {"capabilities": figures.capabilities(result, folder / "figures" / FIGURES["capabilities"])}
    if result.get("healing"):
        drawn["healing"] = figures.healing(result, folder / "figures" / FIGURES["healing"])
    return {n: str(path.relative_to(folder)) for n, path in drawn.items()}


def plain(value: Any) -> Any:
    """JSON types only; infinities become the text "inf", NaN null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return int(value) if isinstance(value, np.integer) else value
