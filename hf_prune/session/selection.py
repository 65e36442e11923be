"""Which of a search's finalists is built: the one that is best on windows the search has not seen."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_prune.blueprint import Blueprint, Fidelity, Outcome, Trial
from hf_prune.errors import HfPruneError
from hf_prune.evaluation.objectives import OBJECTIVES
from hf_prune.events import Event, Stage, exhaust
from hf_prune.limits import FINAL_STAGES
from hf_prune.metrics.rank_correlation import spearman
from hf_prune.search import drive, finals, focus, once
from hf_prune.session.baselines import Baseline
from hf_prune.session.journal import Journal
from hf_prune.session.scorer import Scorer
from hf_prune.session.session import Session


@dataclass(frozen=True, slots=True)
class Winner:
    """What a search brought home.

    cut: the model as it was found. blueprint: what it became by repair, the same without one. The rest: what it was
    chosen among, is compared with, and went through.
    """

    cut: Blueprint
    blueprint: Blueprint
    finalists: tuple[Outcome, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    front: list[dict[str, Any]] | None = None
    layer_tokens: int = 0
    repair: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None
    selection: Mapping[str, Any] | None = None


def score(scorer: Scorer, journal: Journal, trials: Sequence[Trial]) -> tuple[Outcome, ...]:
    """Outcomes of given trials, through the journal."""
    return exhaust(drive(once(trials), scorer.evaluate, journal, scorer.key, total=len(trials)))


def best_unseen(
    session: Session, journal: Journal, finalists: Sequence[Outcome]
) -> Generator[Event, None, tuple[Blueprint, dict[str, Any] | None]]:
    """The finalist that is best on the selection windows: the search's best are a lucky draw of its own evidence.

    Where a repair follows, or `search_heal` is asked for, the best few are repaired or trained first, since that
    changes their order.

    Returns:
        The winner, and what the finalists were worth before and after.
    """
    if not finalists:
        raise HfPruneError("The search ended without a candidate; raise --evaluations.")
    scorer = session.scorer
    trials = [Trial(o.trial.genome, session.evidence.selection) for o in finalists]
    order = sorted(score(scorer, journal, trials), key=lambda o: o.values[0])
    if not np.isfinite(order[0].values[0]):
        raise HfPruneError(
            "Every finalist breaks (NaN or infinite activations) on the selection windows; remove fewer layers."
        )
    few, stages = _last_rounds(session, order)
    if len(few) < 2:
        return scorer.blueprint(order[0].trial.genome), None
    means = ["repaired"] * session.recipe.repair.enabled + ["trained"] * bool(session.recipe.heal.finalist_tokens)
    yield Stage("select", f"{len(few)} finalists, {' and '.join(means)}")
    # What training does not measure cannot tell candidates apart.
    column = 0 if OBJECTIVES[session.recipe.search.objective].of_trained else session.columns.index("kl")
    genomes = [o.trial.genome for o in few]
    asking, total = focus(finals(genomes, stages), (column,)), _asked(len(few), len(stages))
    ranked = yield from drive(asking, scorer.evaluate, journal, scorer.key, batch=1, total=total)
    after = [journal.get(scorer.key(Trial(g, stages[0])))[column] for g in genomes]
    before = [o.values[column] for o in few]
    removed = [list(session.inputs.removed(scorer.blueprint(g))) for g in genomes]
    summary = {
        "means": means,
        "finalists": [
            {"removed": gone, "before": b, "after": a} for gone, b, a in zip(removed, before, after, strict=True)
        ],
        "spearman": spearman(before, after),
        "changed": ranked[0].trial.genome != genomes[0],
    }
    return scorer.blueprint(ranked[0].trial.genome), summary


def _last_rounds(session: Session, order: Sequence[Outcome]) -> tuple[Sequence[Outcome], list[Fidelity]]:
    """Who takes part in the last rounds, and what each round gives them."""
    recipe, selection = session.recipe, session.evidence.selection
    repair = recipe.repair.sequences if recipe.repair.enabled else 0
    if recipe.heal.finalist_tokens:
        tokens = [recipe.heal.finalist_tokens * 2**i for i in range(FINAL_STAGES)]
        return order[: 2**FINAL_STAGES], [replace(selection, heal_tokens=t, repair=repair) for t in tokens]
    return order[: recipe.repair.finalists if repair else 1], [replace(selection, repair=repair)]


def _asked(candidates: int, stages: int) -> int:
    return sum(-(-candidates // 2**i) for i in range(stages))
