"""What lies beside the weights of a finished folder: report.json, recipe.yaml, front.json, figures and the card."""

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
from hf_prune.assembly.assemble import check
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint, LayerSpec, Outcome, Part, Trial
from hf_prune.errors import InvalidBlueprint
from hf_prune.events import Event, unwatched
from hf_prune.models.auto_classes import FILE
from hf_prune.plan import asked
from hf_prune.recipe import flagged
from hf_prune.recovery.latency import latency_report, retimed
from hf_prune.report import card, figures, statistics
from hf_prune.report.fates import fates
from hf_prune.report.figures import FrontPoint
from hf_prune.report.measure import measured
from hf_prune.report.redaction import public_recipe
from hf_prune.report.schema.course import Correlation, Healing, Merging, SearchSummary
from hf_prune.report.schema.document import VERSION
from hf_prune.report.schema.model import Front, Size, SourceCard
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import Baseline
from hf_prune.report.schema.section import jsonable
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
) -> Generator[Event, None, Report]:
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
        What report.json holds.
    """
    trained = Healing(**healing) if healing else None
    report = Report(
        **_identity(job, found),
        size=_size(job, found.winner, stored),
        layers=fates(found.winner.layers, job.parent.depth),
        widths=statistics.widths(job.parent, found.winner),
        own_code=(folder / FILE).is_file(),
        **_lineage(job, found),
        splits=statistics.splits(job.evidence),
        **(yield from measured(job, found, folder, trained)),
        tuning=found.tuning,
        repair=found.repair,
        healing=trained,
        selection=found.selection,
        merging=merging(job, journal, found),
        search_summary=_summary(job, journal, found),
        certificate=certificate,
        front=[front.public(member) for member in found.front] if found.front else None,
        hypervolume=front.hypervolume(job, journal) if found.front else None,
        hardware=statistics.hardware(job.device),
        versions={p: version(p) for p in ("torch", "transformers", "huggingface_hub", "safetensors", "numpy")},
    )
    latency = latency_report(job, found.winner, report.speed.to_dict())
    clock.lap("report")
    report = report.replace(latency=latency, seconds=clock.seconds)
    if found.front:
        write_text(folder / "front.json", Front(version=VERSION, front=found.front).to_json())
    write_text(folder / "recipe.yaml", yaml.safe_dump(jsonable(report.recipe), sort_keys=False))
    publish(report, folder, _figures(job, journal, found, report, folder), parents_of(job))
    shutil.copyfile(journal.path, folder / "journal.jsonl")
    if job.items.is_file():
        shutil.copyfile(job.items, folder / "items.jsonl")
    return report


def measured_again(
    before: Report,
    job: Job,
    found: Found,
    folder: Path,
    stored: tuple[int, int] | None = None,
    certificate: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    healing: Mapping[str, Any] | None = None,
) -> Generator[Event, None, Report]:
    """A folder measured under the job's report windows: figures of the search stay, what is measured is new.

    Args:
        before: the report of the folder it was, or was made from; what this version does not know of it stays, too.
        job: with the evidence to use.
        found: the folder's blueprint; its baselines are read from `before`.
        folder: holds the weights.
        stored: parameters and bytes, where the weights are new.
        certificate: of new weights.
        clock: of what made them.
        healing: figures of a training that was not there before.

    Returns:
        What the new report.json holds.
    """
    rivals = tuple(
        Rival(b.name, _rebuilt(job, b), b.removed or (), (), b.label) for b in before.baselines if b.name != "hf_prune"
    )
    found = replace(found, rivals=rivals)
    trained = Healing(**healing) if healing else before.healing
    report = before.replace(
        **(yield from measured(job, found, folder, trained)),
        repair=found.repair or before.repair,
        healing=trained,
        layers=fates(found.winner.layers, job.parent.depth),
        splits={**before.splits, **statistics.splits({"report": job.evidence["report"]})},
        hardware=statistics.hardware(job.device),
    )
    before_latency = before.latency and before.latency.to_dict()
    report = report.replace(latency=retimed(before_latency, report.speed.to_dict()))
    if stored:
        recipe = _public(job)
        report = report.replace(
            hf_prune=__version__,
            command=_then(before, recipe),
            recipe=recipe,
            recipe_digest=job.recipe.digest,
            digest=found.winner.digest,
            size=_size(job, found.winner, stored),
            certificate=certificate,
            seconds={**before.seconds, **clock.seconds},
        )
    (folder / "figures").mkdir(exist_ok=True)
    if rivals:
        figures.comparison(report, folder / "figures" / FIGURES["comparison"])
    _stage_figures(report, folder)
    drawn = {n: f"figures/{f}" for n, f in FIGURES.items() if (folder / "figures" / f).is_file()}
    publish(report, folder, drawn, parents_of(job))
    return report


def _then(before: Report, recipe: Mapping[str, Any]) -> str:
    """The commands that made it, one a line."""
    fresh = {k: v for k, v in recipe.items() if before.recipe.get(k) != v and k != "base"}
    flags = [w for k, v in fresh.items() if k not in ("push_to", "public", "create_pr") for w in flagged(k, v)]
    return f"{before.command or ''}\nhf-prune heal FOLDER {shlex.join(flags)}".strip()


def _rebuilt(job: Job, row: Baseline) -> Blueprint:
    """A baseline's blueprint, which may be a stranger's.

    Raises:
        InvalidBlueprint: it is not one that the parents of the result can serve.
    """
    if row.blueprint:
        found = Blueprint.from_json(row.blueprint)
        if not set(found.sources) <= set(job.sources):
            raise InvalidBlueprint(
                f"The baseline {row.label[:40]!r} was made from other sources than this result; measure a folder that "
                "compress wrote."
            )
        check(found.over(job.sources), job.parents)
        return found
    scorer = job.deletions(len(row.removed or ()))
    return scorer.blueprint(scorer.space.from_removed(row.removed or ()))


def publish(report: Report, folder: Path, drawn: Mapping[str, str], parents: Sequence[SourceCard]) -> None:
    """Write report.json and the card, each whole or not at all."""
    write_text(folder / "report.json", report.to_json())
    card.write_card(report, folder, drawn, parents)


def parents_of(job: Job) -> list[SourceCard]:
    """What the card inherits from."""
    return statistics.sources(job.sources, job.cards)


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


def _public(job: Job) -> dict[str, Any]:
    """What was asked for, without paths."""
    local = [s.repo for s in job.sources if s.is_local]
    return jsonable(public_recipe(job.recipe.model_dump(mode="json", exclude_defaults=True), local))


def _identity(job: Job, found: Found) -> dict[str, Any]:
    recipe, public = job.recipe, _public(job)
    left_out = ("base", "push_to", "public", "create_pr")
    flags = [w for k, v in public.items() if k not in left_out for w in flagged(k, v)]
    return {
        "version": VERSION,
        "hf_prune": __version__,
        "command": shlex.join(["hf-prune", "compress", str(public["base"]), *flags]),
        "recipe": public,
        "recipe_digest": recipe.digest,
        "digest": found.winner.digest,
        "sources": statistics.sources(job.sources, job.cards),
        "method": recipe.method,
        "search": "by hand" if recipe.drop else recipe.search,
        "objective": recipe.objective,
        "seed": recipe.seed,
    }


def _size(job: Job, winner: Blueprint, stored: tuple[int, int]) -> Size:
    itemsize = job.parent.checkpoint.itemsize(next(iter(job.parent.shapes)))
    size = statistics.sizes(job.parent, winner, job.evaluator.parameters(winner), stored, itemsize)
    ratio = job.recipe.ratio
    if ratio is None and asked(job.recipe).startswith("ratio"):
        ratio = float(asked(job.recipe).split()[1])
    ratio = math.nan if ratio is None else ratio
    return size.replace(asked=asked(job.recipe), asked_ratio=ratio, miss=size.removed_ratio - ratio)


def scored(scorer: Scorer, journal: Journal, trials: Sequence[Trial]) -> tuple[Outcome, ...]:
    """Outcomes of given trials, through the journal."""
    return unwatched(drive(once(trials), scorer.evaluate, journal, scorer.key, total=len(trials)))


def merging(job: Job, journal: Journal, found: Found) -> Merging | None:
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
    return Merging(ours=ours, deletion=deletion, helps=ours < deletion, won=best.digest == found.cut.digest)


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


def _summary(job: Job, journal: Journal, found: Found) -> SearchSummary:
    rows = _own(job, journal)
    full = [r.values[0] for r in rows if r.fidelity == job.full]
    best = np.minimum.accumulate(full) if full else np.array([])
    return SearchSummary(
        evaluations=len(rows),
        distinct=len({r.digest for r in rows}),
        layer_tokens=found.layer_tokens,
        best=best[-1] if len(best) else math.nan,
        history=tuple((i + 1, b) for i, b in enumerate(best) if i == 0 or b < best[i - 1]),
        finalists=len(found.finalists),
        rank_correlation=_correlations(job, journal),
    )


def _correlations(job: Job, journal: Journal) -> dict[str, Correlation]:
    """Spearman correlation of every fitness on the search windows with KL on the selection windows."""
    candidates = sorted(_full(job, journal), key=lambda pair: pair[0])
    candidates = [(v, b) for v, b in candidates if all(map(math.isfinite, v))]
    if len(candidates) > CORRELATED:
        candidates = [candidates[i] for i in np.linspace(0, len(candidates) - 1, CORRELATED).round().astype(int)]
    if len(candidates) < 3:
        return {}
    unseen = [m.kl for m in job.evaluator.evaluate([b for _, b in candidates], job.selection)]
    return {
        name: Correlation(spearman=statistics.spearman([v[i] for v, _ in candidates], unseen), n=len(candidates))
        for i, name in enumerate(job.columns)
        if name != "params" or job.recipe.search == "nsga2"
    }


def _figures(job: Job, journal: Journal, found: Found, report: Report, folder: Path) -> dict[str, str]:
    """Draw what this run can show; name -> file relative to the folder."""
    (folder / "figures").mkdir(exist_ok=True)
    paths = {name: folder / "figures" / file for name, file in FIGURES.items()}
    objective = job.recipe.objective
    drawn = {"layer_strip": figures.layer_strip(report, paths["layer_strip"])}
    if report.origins:
        drawn["layer_map"] = figures.layer_map(report, paths["layer_map"])
    if report.widths:
        drawn["layer_widths"] = figures.layer_widths(report, paths["layer_widths"])
    if found.finalists and not found.front:
        points = [(i + 1, r.values[0], r.fidelity.sequences) for i, r in enumerate(_own(job, journal))]
        rivals = {r.label: r.values[0] for r in found.rivals if r.values}
        drawn["search_history"] = figures.search_history(
            points, paths["search_history"], objective=objective, baselines=rivals
        )
    if report.front:
        members = [FrontPoint(m.removed_ratio, m.value(objective), m.layers, m.knee) for m in report.front]
        others = [FrontPoint(point["removed_ratio"], point[objective]) for point in front.points(job, journal)]
        drawn["pareto"] = figures.pareto(members, others, report.hypervolume, paths["pareto"], objective=objective)
    if report.baselines:
        drawn["comparison"] = figures.comparison(report, paths["comparison"])
    return {n: str(path.relative_to(folder)) for n, path in drawn.items()} | _stage_figures(report, folder)


def _stage_figures(report: Report, folder: Path) -> dict[str, str]:
    """What the cut cost and what came back; and the course of the training, if there was one."""
    drawn = {"capabilities": figures.capabilities(report.stages, folder / "figures" / FIGURES["capabilities"])}
    if report.healing and report.healing.curve:
        drawn["healing"] = figures.healing(report.healing, folder / "figures" / FIGURES["healing"])
    return {n: str(path.relative_to(folder)) for n, path in drawn.items()}
