"""What a search was worth: how it went, whether its objectives foretell unseen text, whether merging helped."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_prune.blueprint import Blueprint, LayerSpec, Part
from hf_prune.metrics.rank_correlation import spearman
from hf_prune.session.journal import Journal, Row
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session

CORRELATED, SHARE = (8, 64), 0.05
"""Least and most candidates behind the rank correlations, evenly spaced over the ranks of the search; between the two,
they read this share of the windows that the search has read."""
DELETIONS = 16
"""Most that a merging model is compared with at once; of more, the best is found layer by layer."""


def summarise(session: Session, journal: Journal, winner: Winner) -> dict[str, Any]:
    """Trials, distinct models, the best value after each improvement, and rank correlations."""
    rows = own_trials(session, journal)
    full = [r.values[0] for r in rows if r.fidelity == session.evidence.foretelling(session.evidence.full)]
    best = np.minimum.accumulate(full) if full else np.array([])
    return {
        "evaluations": len(rows),
        "distinct": len({r.digest for r in rows}),
        "layer_tokens": winner.layer_tokens,
        "best": float(best[-1]) if len(best) else None,
        "history": [[i + 1, float(b)] for i, b in enumerate(best) if i == 0 or b < best[i - 1]],
        "finalists": len(winner.finalists),
        "rank_correlation": _correlations(session, journal),
    }


def own_trials(session: Session, journal: Journal) -> list[Row]:
    """Trials of the search's own space at its budget, on search windows: no half-way steps of a greedy baseline."""
    space = session.scorer.space
    return [
        row
        for row in journal.rows()
        if row.fidelity.start == 0
        and len(row.genome) == len(space.dense())
        and (space.budget is None or space.removed(row.genome) == space.budget)
    ]


def compare_merging(session: Session, journal: Journal, winner: Winner) -> dict[str, Any] | None:
    """Does merging beat deletion at the same partition?

    KL on the selection windows of the winner, or of the best candidate that merges where the winner does not, and of
    the best of its deletions; None when no candidate merged anything.
    """
    merged = [(o, b) for o, b in _full(session, journal) if any(map(_mixed, b.layers))]
    if not merged:
        return None
    best = winner.cut if any(map(_mixed, winner.cut.layers)) else min(merged, key=lambda pair: pair[0])[1]
    ours, deletion = _merged_and_deleted(session, best)
    return {"ours": ours, "deletion": deletion, "helps": ours < deletion, "won": best.digest == winner.cut.digest}


def _merged_and_deleted(session: Session, best: Blueprint) -> tuple[float, float]:
    """KL on the selection windows of a model that merges, and of the best that has one of the layers instead."""
    layers = [i for i, spec in enumerate(best.layers) if _mixed(spec)]
    parts = {i: _deletions(best.layers[i]) for i in layers}
    every = math.prod(map(len, parts.values())) <= DELETIONS
    options = [best]
    for i in layers:
        options = [_with(b, i, part) for b in options for part in parts[i]]
        if not every:
            measured = session.evaluator.evaluate(options, session.evidence.selection)
            options = [options[min(range(len(options)), key=lambda n, found=measured: found[n].kl)]]
    ours, *deletions = session.evaluator.evaluate([best, *options], session.evidence.selection)
    return ours.kl, min(m.kl for m in deletions)


def _full(session: Session, journal: Journal) -> list[tuple[tuple[float, ...], Blueprint]]:
    """Values and blueprints of every candidate that saw all search evidence."""
    rows = [
        r for r in own_trials(session, journal) if r.fidelity == session.evidence.foretelling(session.evidence.full)
    ]
    return [(r.values, session.scorer.blueprint(r.genome)) for r in rows]


def _correlations(session: Session, journal: Journal) -> dict[str, Any]:
    """Spearman correlation of every fitness on the search windows with KL on the selection windows."""
    candidates = sorted(_full(session, journal), key=lambda pair: pair[0])
    read = sum(row.fidelity.sequences for row in own_trials(session, journal))
    count = int(np.clip(SHARE * read / session.evidence.selection.sequences, *CORRELATED))
    candidates = _spaced([(v, b) for v, b in candidates if all(map(math.isfinite, v))], count)
    if len(candidates) < 3:
        return {}
    measured = session.evaluator.evaluate([b for _, b in candidates], session.evidence.selection)
    unseen = [m.kl for m in measured]
    return {
        name: {"spearman": spearman([v[i] for v, _ in candidates], unseen), "n": len(candidates)}
        for i, name in enumerate(session.columns)
        if name != "params" or session.recipe.every_size
    }


def _spaced(candidates: Sequence[Any], count: int) -> Sequence[Any]:
    """At most so many of them, evenly spaced."""
    if len(candidates) <= count:
        return candidates
    return [candidates[i] for i in np.linspace(0, len(candidates) - 1, count).round().astype(int)]


def _mixed(spec: LayerSpec) -> bool:
    return len(spec.parts) > 1 or spec.norms is not None or any(len(blend) > 1 for blend in spec.blends or ())


def _deletions(spec: LayerSpec) -> list[LayerSpec]:
    """What a merged layer is where nothing is merged: one of its layers, with the first expert of each blend."""
    blends = spec.blends and tuple(((blend[0][0], 1.0),) for blend in spec.blends)
    return [LayerSpec((Part(p.source, p.layer),), blends=blends) for p in spec.parts]


def _with(blueprint: Blueprint, index: int, spec: LayerSpec) -> Blueprint:
    layers = list(blueprint.layers)
    layers[index] = spec
    return Blueprint(blueprint.sources, tuple(layers), blueprint.embed, blueprint.head)
