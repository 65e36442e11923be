"""What lies beside the weights of a finished folder: report.json, recipe.yaml, front.json, figures and the card."""

import math
import shlex
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from hf_prune import __version__
from hf_prune.assembly.assemble import check
from hf_prune.atomic_files import write_text
from hf_prune.blueprint import Blueprint
from hf_prune.errors import InvalidBlueprint
from hf_prune.events import Event
from hf_prune.models.auto_classes import FILE
from hf_prune.planning import describe_target
from hf_prune.recipe import flagged, nest
from hf_prune.recovery.latency import foretold, retimed
from hf_prune.report import card, comparisons, figures, statistics
from hf_prune.report.fates import fates
from hf_prune.report.figures import FrontPoint
from hf_prune.report.measure import measure_folder
from hf_prune.report.redaction import public_recipe
from hf_prune.report.schema.course import BaseCheck, Healing, Merging, SearchSummary, TimeBudget
from hf_prune.report.schema.document import VERSION
from hf_prune.report.schema.model import Front, Size, SourceCard
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import Baseline
from hf_prune.report.schema.section import jsonable
from hf_prune.session import baselines as played
from hf_prune.session import front
from hf_prune.session.journal import Journal
from hf_prune.session.parents import found_of
from hf_prune.session.search_summary import compare_merging, own_trials, summarise
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session

PUBLISHING = ("push_to", "public", "create_pr")
"""Fields that no command in a report repeats: somebody else would publish under this name."""
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


def describe(
    journal: Journal,
    session: Session,
    winner: Winner,
    folder: Path,
    stored: tuple[int, int],
    certificate: Mapping[str, Any],
    healing: Mapping[str, Any] | None = None,
) -> Generator[Event, None, Report]:
    """Measure the folder on the report split and write every document into it.

    Args:
        journal: every trial of the run; copied into the folder.
        session: the run.
        winner: the model and what it is compared with.
        folder: holds the weights already.
        stored: parameters and bytes of the written weights.
        certificate: of `certify`.
        healing: figures of the training that followed, if one did.

    Returns:
        What report.json holds.
    """
    trained = Healing(**healing) if healing else None
    merging = compare_merging(session, journal, winner)
    report = Report(
        **_identity(session, winner),
        size=_size(session, winner.blueprint, stored),
        vocabulary=session.inputs.vocabulary,
        layers=fates(winner.blueprint.layers, session.inputs.base.depth),
        widths=statistics.widths(session.inputs.base, winner.blueprint),
        own_code=(folder / FILE).is_file(),
        **_lineage(session, winner),
        splits=statistics.splits(session.evidence.windows),
        **(yield from measure_folder(session, winner, folder, trained)),
        tuning=winner.tuning,
        repair=winner.repair,
        healing=trained,
        selection=winner.selection,
        found_by=winner.found_by,
        merging=merging and Merging(**merging),
        search_summary=SearchSummary(**summarise(session, journal, winner)),
        base_check=BaseCheck(**found) if (found := found_of(session)) else None,
        certificate=certificate,
        front=[front.public(member) for member in winner.front] if winner.front else None,
        time=TimeBudget(**session.timetable.summary()) if session.timetable else None,
        hypervolume=front.hypervolume(session, journal) if winner.front else None,
        hardware=statistics.hardware(session.device),
        versions={p: version(p) for p in ("torch", "transformers", "huggingface_hub", "safetensors", "numpy")},
    )
    latency = retimed(_foretold(session, winner.blueprint), report.speed and report.speed.model_dump())
    session.clock.lap("report")
    report = report.replace(latency=latency, seconds=session.clock.seconds)
    if winner.front:
        write_text(folder / "front.json", Front(version=VERSION, front=winner.front).to_json())
    write_text(folder / "recipe.yaml", yaml.safe_dump(nest(jsonable(report.recipe)), sort_keys=False))
    publish(report, folder, _figures(session, journal, winner, report, folder), parents_of(session))
    shutil.copyfile(journal.path, folder / "journal.jsonl")
    if session.workdir.items.is_file():
        shutil.copyfile(session.workdir.items, folder / "items.jsonl")
    return report


def measure_again(
    before: Report,
    session: Session,
    winner: Winner,
    folder: Path,
    stored: tuple[int, int] | None = None,
    certificate: Mapping[str, Any] | None = None,
    healing: Mapping[str, Any] | None = None,
) -> Generator[Event, None, Report]:
    """A folder measured under the job's report windows: figures of the search stay, what is measured is new.

    Args:
        before: the report of the folder it was, or was made from; what this version does not know of it stays, too.
        session: with the evidence to use.
        winner: the folder's blueprint; its baselines are read from `before`.
        folder: holds the weights.
        stored: parameters and bytes, where the weights are new.
        certificate: of new weights.
        healing: figures of a training that was not there before.

    Returns:
        What the new report.json holds.
    """
    baselines = tuple(
        played.Baseline(b.name, _rebuilt(session, b), b.removed or (), (), b.label)
        for b in before.baselines
        if b.name != "hf_prune"
    )
    winner = replace(winner, baselines=baselines)
    trained = Healing(**healing) if healing else before.healing
    report = before.replace(
        **(yield from measure_folder(session, winner, folder, trained)),
        repair=winner.repair or before.repair,
        healing=trained,
        layers=fates(winner.blueprint.layers, session.inputs.base.depth),
        splits={**before.splits, **statistics.splits({"report": session.evidence.windows["report"]})},
        hardware=statistics.hardware(session.device),
    )
    before_latency = before.latency and before.latency.to_dict()
    report = report.replace(latency=retimed(before_latency, report.speed and report.speed.model_dump()))
    if stored:
        recipe = _public(session)
        report = report.replace(
            hf_prune=__version__,
            command=_then(before, recipe),
            recipe=recipe,
            recipe_digest=session.recipe.digest,
            digest=winner.blueprint.digest,
            size=_size(session, winner.blueprint, stored),
            certificate=certificate,
            seconds={**before.seconds, **session.clock.seconds},
        )
    (folder / "figures").mkdir(exist_ok=True)
    if baselines:
        figures.comparison(report, folder / "figures" / FIGURES["comparison"])
    _stage_figures(report, folder)
    drawn = {n: f"figures/{f}" for n, f in FIGURES.items() if (folder / "figures" / f).is_file()}
    publish(report, folder, drawn, parents_of(session))
    return report


def _foretold(session: Session, blueprint: Blueprint) -> dict[str, Any] | None:
    """Shares of the dense time, where time was what is asked for."""
    asked_time = session.recipe.size.latency
    return None if asked_time is None else foretold(session.latencies, asked_time, blueprint, session.inputs.depth)


def _then(before: Report, recipe: Mapping[str, Any]) -> str:
    """The commands that made it, one a line."""
    fresh = {k: v for k, v in recipe.items() if before.recipe.get(k) != v and k != "base"}
    flags = [w for k, v in fresh.items() if k not in PUBLISHING for w in flagged(k, v)]
    return f"{before.command or ''}\nhf-prune heal FOLDER {shlex.join(flags)}".strip()


def _rebuilt(session: Session, row: Baseline) -> Blueprint:
    """A baseline's blueprint, which may be a stranger's.

    Raises:
        InvalidBlueprint: it is not one that the parents of the result can serve.
    """
    if row.blueprint:
        found = Blueprint.from_json(row.blueprint)
        if not set(found.sources) <= set(session.inputs.sources):
            raise InvalidBlueprint(
                f"The baseline {row.label[:40]!r} was made from other sources than this result; measure a folder that "
                "compress wrote."
            )
        check(found.over(session.inputs.sources), session.inputs.parents)
        return found
    scorer = session.deletions(len(row.removed or ()))
    return scorer.blueprint(scorer.space.from_removed(row.removed or ()))


def publish(report: Report, folder: Path, drawn: Mapping[str, str], parents: Sequence[SourceCard]) -> None:
    """Write report.json, the blueprint of a better cut that no flag spells, and the card, each whole or not at all."""
    write_text(folder / "report.json", report.to_json())
    other = comparisons.better_cut(report)
    if other and other.blueprint:
        write_text(folder / comparisons.OTHER_CUT, other.blueprint)
    else:
        (folder / comparisons.OTHER_CUT).unlink(missing_ok=True)
    card.write_card(report, folder, drawn, parents)


def parents_of(session: Session) -> list[SourceCard]:
    """What the card inherits from."""
    return statistics.sources(session.inputs.sources, session.inputs.cards)


def _lineage(session: Session, winner: Winner) -> dict[str, Any]:
    """Of several parents: their names, which of them knows each corpus best, and what every layer is made of."""
    if len(session.inputs.parents) == 1:
        return {}
    names = session.inputs.names
    winner = winner.blueprint.over(session.inputs.sources)
    return {
        "parents": names,
        "dense_parent": names[session.dense],
        "teachers": {c: names[session.teacher(c)] for c in session.evidence.corpora},
        "origins": statistics.origins(winner, names),
        "ends": {"embedding": names[winner.embed], "head": names[winner.head]},
    }


def _public(session: Session) -> dict[str, Any]:
    """What was asked for, without paths."""
    local = [s.repo for s in session.inputs.sources if s.is_local]
    return jsonable(public_recipe(session.recipe.changed(), local))


def _identity(session: Session, winner: Winner) -> dict[str, Any]:
    recipe, public = session.recipe, _public(session)
    flags = [w for k, v in public.items() if k not in ("base", *PUBLISHING) for w in flagged(k, v)]
    return {
        "version": VERSION,
        "hf_prune": __version__,
        "command": shlex.join(["hf-prune", "compress", str(public["base"]), *flags]),
        "recipe": public,
        "recipe_digest": session.asked.digest,
        "digest": winner.blueprint.digest,
        "sources": statistics.sources(session.inputs.sources, session.inputs.cards),
        "method": recipe.method,
        "search": "by hand" if recipe.size.drop else recipe.search.searcher,
        "objective": recipe.search.objective,
        "seed": recipe.seed,
    }


def _size(session: Session, winner: Blueprint, stored: tuple[int, int]) -> Size:
    base = session.inputs.base
    size = statistics.sizes(base, winner, session.evaluator.parameters(winner), stored, base.dtype.itemsize)
    ratio = session.recipe.size.ratio
    if ratio is None and describe_target(session.recipe).startswith("ratio"):
        ratio = float(describe_target(session.recipe).split()[1])
    ratio = math.nan if ratio is None else ratio
    return size.replace(asked=describe_target(session.recipe), asked_ratio=ratio, miss=size.removed_ratio - ratio)


def _figures(session: Session, journal: Journal, winner: Winner, report: Report, folder: Path) -> dict[str, str]:
    """Draw what this run can show; name -> file relative to the folder."""
    (folder / "figures").mkdir(exist_ok=True)
    paths = {name: folder / "figures" / file for name, file in FIGURES.items()}
    objective = session.recipe.search.objective
    drawn = {"layer_strip": figures.layer_strip(report, paths["layer_strip"])}
    if report.origins:
        drawn["layer_map"] = figures.layer_map(report, paths["layer_map"])
    if report.widths:
        drawn["layer_widths"] = figures.layer_widths(report, paths["layer_widths"])
    if winner.finalists and not winner.front:
        points = [(i + 1, r.values[0], r.fidelity.sequences) for i, r in enumerate(own_trials(session, journal))]
        baselines = {r.label: r.values[0] for r in winner.baselines if r.values}
        drawn["search_history"] = figures.search_history(
            points, paths["search_history"], objective=objective, baselines=baselines
        )
    if report.front:
        members = [FrontPoint(m.removed_ratio, m.value(objective), m.layers, m.knee) for m in report.front]
        others = [FrontPoint(point["removed_ratio"], point[objective]) for point in front.points(session, journal)]
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
