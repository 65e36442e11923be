"""What lies beside the weights of a finished folder: report.json, recipe.yaml, front.json, figures and the card."""

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
from hf_prune.blueprint import Blueprint
from hf_prune.events import Event
from hf_prune.models.auto_classes import FILE
from hf_prune.plan import asked
from hf_prune.recipe import flagged
from hf_prune.recovery.latency import foretold, retimed
from hf_prune.report import card, figures, statistics
from hf_prune.report.measure import measured
from hf_prune.report.redaction import public_recipe
from hf_prune.session import front
from hf_prune.session.baselines import Baseline
from hf_prune.session.journal import Journal
from hf_prune.session.parents import found_of
from hf_prune.session.search_summary import compare_merging, own_trials, summarise
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session

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
) -> Generator[Event, None, dict[str, Any]]:
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
        The content of report.json.
    """
    result = {
        **_identity(session, winner),
        "size": _size(session, winner.blueprint, stored),
        "layers": statistics.fates(winner.blueprint, session.inputs.base.depth),
        "widths": statistics.widths(session.inputs.base, winner.blueprint),
        "own_code": (folder / FILE).is_file(),
        **_lineage(session, winner),
        "splits": statistics.splits(session.evidence.windows),
        **(yield from measured(session, winner, folder, healing)),
        "tuning": winner.tuning,
        "repair": winner.repair,
        "healing": healing,
        "selection": winner.selection,
        "merging": compare_merging(session, journal, winner),
        "search_summary": summarise(session, journal, winner),
        "base_check": found_of(session),
        "certificate": dict(certificate),
        "front": [front.public(member) for member in winner.front] if winner.front else None,
        "hypervolume": front.hypervolume(session, journal) if winner.front else None,
        "hardware": statistics.hardware(session.device),
        "versions": {p: version(p) for p in ("torch", "transformers", "huggingface_hub", "safetensors", "numpy")},
    }
    result["latency"] = retimed(_foretold(session, winner.blueprint), result["speed"])
    session.clock.lap("report")
    result["seconds"] = session.clock.seconds
    result = plain(result)
    if winner.front:
        write_text(folder / "front.json", json.dumps(plain({"version": 1, "front": winner.front}), indent=1) + "\n")
    write_text(folder / "recipe.yaml", yaml.safe_dump(result["recipe"], sort_keys=False))
    publish(result, folder, _figures(session, journal, winner, result, folder), parents_of(session))
    shutil.copyfile(journal.path, folder / "journal.jsonl")
    if session.workdir.items.is_file():
        shutil.copyfile(session.workdir.items, folder / "items.jsonl")
    return result


def measured_again(
    before: Mapping[str, Any],
    session: Session,
    winner: Winner,
    folder: Path,
    stored: tuple[int, int] | None = None,
    certificate: Mapping[str, Any] | None = None,
    healing: Mapping[str, Any] | None = None,
) -> Generator[Event, None, dict[str, Any]]:
    """A folder measured under the session's report windows: figures of the search stay, what is measured is new.

    Args:
        before: the report of the folder it was, or was made from.
        session: with the evidence to use.
        winner: the folder's blueprint; its baselines are read from `before`.
        folder: holds the weights.
        stored: parameters and bytes, where the weights are new.
        certificate: of new weights.
        healing: figures of a training that was not there before.

    Returns:
        The new content of report.json.
    """
    baselines = tuple(
        Baseline(b["name"], _rebuilt(session, b), tuple(b["removed"]), (), b["label"])
        for b in before["baselines"]
        if b["name"] != "hf_prune"
    )
    winner = replace(winner, baselines=baselines, repair=winner.repair or before.get("repair"))
    healing = healing or before.get("healing")
    result = {
        **before,
        **(yield from measured(session, winner, folder, healing)),
        "repair": winner.repair,
        "healing": healing,
        "layers": statistics.fates(winner.blueprint, session.inputs.base.depth),
        "splits": {**before["splits"], **statistics.splits({"report": session.evidence.windows["report"]})},
        "hardware": statistics.hardware(session.device),
    }
    result["latency"] = retimed(before.get("latency"), result["speed"])
    if stored:
        again = _identity(session, winner)
        result |= {k: again[k] for k in ("hf_prune", "recipe", "recipe_digest", "digest")}
        result |= {"command": _then(before, again), "size": _size(session, winner.blueprint, stored)}
        result |= {"certificate": dict(certificate or {}), "seconds": {**before["seconds"], **session.clock.seconds}}
    result = plain(result)
    (folder / "figures").mkdir(exist_ok=True)
    if baselines:
        figures.comparison(result, folder / "figures" / FIGURES["comparison"])
    _stage_figures(result, folder)
    drawn = {n: f"figures/{f}" for n, f in FIGURES.items() if (folder / "figures" / f).is_file()}
    publish(result, folder, drawn, parents_of(session))
    return result


def _foretold(session: Session, blueprint: Blueprint) -> dict[str, Any] | None:
    """Shares of the dense time, where time was what is asked for."""
    asked_time = session.recipe.latency
    return None if asked_time is None else foretold(session.latencies, asked_time, blueprint, session.inputs.depth)


def _then(before: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    """The commands that made it, one a line."""
    fresh = {k: v for k, v in again["recipe"].items() if before["recipe"].get(k) != v and k != "base"}
    flags = [w for k, v in fresh.items() if k not in ("push_to", "public", "create_pr") for w in flagged(k, v)]
    return f"{before['command']}\nhf-prune heal FOLDER {shlex.join(flags)}".strip()


def _rebuilt(session: Session, row: Mapping[str, Any]) -> Blueprint:
    """A baseline's blueprint."""
    if row.get("blueprint"):
        return Blueprint.from_json(row["blueprint"])
    removed = row["removed"]
    scorer = session.deletions(len(removed))
    return scorer.blueprint(scorer.space.from_removed(removed))


def publish(
    result: Mapping[str, Any], folder: Path, drawn: Mapping[str, str], parents: Sequence[Mapping[str, Any]]
) -> None:
    """Write report.json and the card, each whole or not at all."""
    write_text(folder / "report.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    card.write_card(result, folder, drawn, parents)


def parents_of(session: Session) -> list[dict[str, Any]]:
    """What the card inherits from."""
    fields = ("license", "language", "pipeline_tag")
    return [
        {"repo": s.repo, "revision": s.revision, "adapter": s.adapter, **{k: card.get(k) for k in fields},
         "is_local": s.is_local}
        for s, card in zip(session.inputs.sources, session.inputs.cards, strict=True)
    ]  # fmt: skip


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


def _identity(session: Session, winner: Winner) -> dict[str, Any]:
    recipe = session.recipe
    local = [s.repo for s in session.inputs.sources if s.is_local]
    public = public_recipe(recipe.model_dump(mode="json", exclude_defaults=True), local)
    left_out = ("base", "push_to", "public", "create_pr")
    flags = [w for k, v in public.items() if k not in left_out for w in flagged(k, v)]
    return {
        "version": 1,
        "hf_prune": __version__,
        "command": shlex.join(["hf-prune", "compress", str(public["base"]), *flags]),
        "recipe": public,
        "recipe_digest": recipe.digest,
        "digest": winner.blueprint.digest,
        "sources": statistics.sources(winner.blueprint.over(session.inputs.sources), session.inputs.cards),
        "method": recipe.method,
        "search": "by hand" if recipe.drop else recipe.search,
        "objective": recipe.objective,
        "seed": recipe.seed,
    }


def _size(session: Session, winner: Blueprint, stored: tuple[int, int]) -> dict[str, Any]:
    base = session.inputs.base
    size = statistics.sizes(base, winner, session.evaluator.parameters(winner), stored, base.dtype.itemsize)
    ratio = session.recipe.ratio
    if ratio is None and asked(session.recipe).startswith("ratio"):
        ratio = float(asked(session.recipe).split()[1])
    return {
        **size,
        "asked": asked(session.recipe),
        "asked_ratio": ratio,
        "miss": None if ratio is None else size["removed_ratio"] - ratio,
    }


def _figures(
    session: Session, journal: Journal, winner: Winner, result: Mapping[str, Any], folder: Path
) -> dict[str, str]:
    """Draw what this run can show; name -> file relative to the folder."""
    (folder / "figures").mkdir(exist_ok=True)
    paths = {name: folder / "figures" / file for name, file in FIGURES.items()}
    objective = session.recipe.objective
    drawn = {"layer_strip": figures.layer_strip(result, paths["layer_strip"])}
    if "origins" in result:
        drawn["layer_map"] = figures.layer_map(result, paths["layer_map"])
    if result["widths"]:
        drawn["layer_widths"] = figures.layer_widths(result, paths["layer_widths"])
    if winner.finalists and not winner.front:
        points = [(i + 1, r.values[0], r.fidelity.sequences) for i, r in enumerate(own_trials(session, journal))]
        baselines = {r.label: r.values[0] for r in winner.baselines if r.values}
        drawn["search_history"] = figures.search_history(
            points, paths["search_history"], objective=objective, baselines=baselines
        )
    if winner.front:
        drawn["pareto"] = figures.pareto(
            result["front"], front.points(session, journal), result["hypervolume"], paths["pareto"], objective=objective
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
