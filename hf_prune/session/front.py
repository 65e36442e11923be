"""The Pareto front of size against quality: its members, how it grew, and which one is meant."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_prune.blueprint import Blueprint, Fidelity, Outcome
from hf_prune.errors import InvalidBlueprint
from hf_prune.search.pareto import hypervolume_history, knee
from hf_prune.session.journal import Journal
from hf_prune.session.session import Session


def members(session: Session, finalists: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Members of a front from dense to small, knee marked; each carries its blueprint, ready to be assembled."""
    objective = session.recipe.search.objective
    rows = []
    for outcome in finalists:
        blueprint = session.scorer.blueprint(outcome.trial.genome)
        live = session.evaluator.parameters(blueprint)
        rows.append(
            {
                "removed_ratio": 1 - live / session.inputs.base.original.parameters,
                "layers": len(blueprint.layers),
                "parameters": live,
                **dict(zip(session.columns, outcome.values, strict=True)),
                "digest": blueprint.digest,
                "blueprint": json.loads(blueprint.to_json()),
            }
        )
    rows.sort(key=lambda r: (r["removed_ratio"], r[objective]))
    at = knee([(-r["removed_ratio"], r[objective]) for r in rows])
    return [{**r, "knee": i == at} for i, r in enumerate(rows)]


def pick_member(front: Sequence[Mapping[str, Any]], pick: str) -> tuple[Blueprint, Mapping[str, Any]]:
    """One member: `knee`, a share of parameters removed (nearest), or `#3` counted from 0.

    Raises:
        InvalidBlueprint: nobody answers to that.
    """
    try:
        if pick == "knee":
            member = next(m for m in front if m["knee"])
        elif pick.startswith("#"):
            member = list(front)[int(pick[1:])]
        else:
            member = min(front, key=lambda m: abs(m["removed_ratio"] - float(pick)))
        return Blueprint.from_json(json.dumps(member["blueprint"])), member
    except (ValueError, IndexError, StopIteration, KeyError, TypeError):
        raise InvalidBlueprint(
            f"--pick {pick} names no member of the front; use knee, a share such as 0.25, or #0 to #{len(front) - 1}."
        ) from None


def public(member: Mapping[str, Any]) -> dict[str, Any]:
    """A member without its blueprint, for the report."""
    return {k: v for k, v in member.items() if k != "blueprint"}


def points(session: Session, journal: Journal) -> list[dict[str, Any]]:
    """Every candidate that saw all search evidence and did not break: share removed and its values by column."""
    total, where = session.inputs.base.original.parameters, session.columns.index("params")
    full = Fidelity(session.recipe.data.sequences)
    return [
        {"removed_ratio": 1 - r.values[where] / total, **dict(zip(session.columns, r.values, strict=True))}
        for r in journal.rows()
        if r.fidelity == full and math.isfinite(r.values[0])
    ]


def hypervolume(session: Session, journal: Journal) -> list[list[float]]:
    """History of the area that the front cuts from (nothing removed, worst finite quality seen)."""
    search = session.recipe.search
    seen = [(-p["removed_ratio"], p[search.objective]) for p in points(session, journal)]
    batches = [seen[i : i + search.offspring] for i in range(0, len(seen), search.offspring)]
    worst = max((v for _, v in seen), default=1.0)
    return [list(p) for p in hypervolume_history(batches, (0.0, worst))]
