"""Plays what a method is compared with, see `methods.method.Comparison`: searched on the same evidence, or fixed."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from hf_prune.blueprint import Blueprint, Outcome, Trial
from hf_prune.evaluation.objectives import values
from hf_prune.events import Event, Stage
from hf_prune.methods.method import Comparison, Facts
from hf_prune.planning import evaluations
from hf_prune.search import SEARCHERS, Schedule, drive, focus, once
from hf_prune.session.journal import Journal
from hf_prune.session.scorer import Scorer
from hf_prune.session.session import FINALISTS, Session
from hf_prune.session.timetable import Limit

Searching = Generator[Event, None, Outcome]
AS_MANY_AS_IT_TAKES = 1 << 30
LEADERS = 5
"""Finalists of a baseline's search, of which it takes the best or the median."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A model of the same size as the result, with its values on the search windows in the session's columns."""

    name: str
    blueprint: Blueprint
    removed: tuple[int, ...]
    values: tuple[float, ...]
    label: str = ""


def play(session: Session, journal: Journal, remove: int) -> Generator[Event, None, tuple[Baseline, ...]]:
    """Everything the recipe's method is compared with at that many layers less, in its order."""
    facts = session.facts(remove, judged=True)
    found: list[Baseline] = []
    for told, stage in groupby(session.inputs.method.comparisons(session.recipe, facts), lambda c: c.told):
        yield Stage("baselines", told)
        comparisons = list(stage)
        for one in comparisons:
            if not one.layers:
                best = yield from _searched(session, journal, one, facts, found)
                found += [best] if best else []
        found += _fixed(session, [one for one in comparisons if one.layers], found)
        session.clock.lap(comparisons[0].lap)
    for left in (b for b in found if not session.writable(b.blueprint)):
        yield Stage("baselines", f"{left.name} is left out: a config cannot say which layers it has left")
    return tuple(b for b in found if session.writable(b.blueprint))


def _limit(session: Session, one: Comparison) -> Limit | None:
    return session.limit(f"baseline {one.name}", "baselines")


def _cuts(found: Sequence[Baseline]) -> dict[str, tuple[int, ...]]:
    return {b.name: b.removed for b in found}


def _fixed(session: Session, comparisons: Sequence[Comparison], found: Sequence[Baseline]) -> list[Baseline]:
    """Models that need no search, measured in one sweep."""
    if not comparisons:
        return []
    cuts, sources = _cuts(found), session.inputs.sources
    # What was ended before it was small enough is missing, and what is made of it with it.
    comparisons = [one for one in comparisons if set(one.needs) <= cuts.keys()]
    blueprints = [Blueprint(sources, one.layers(cuts)).canonical() for one in comparisons]
    measured = session.evaluator.evaluate(blueprints, session.evidence.full)
    return [
        Baseline(one.name, blueprint, session.inputs.removed(blueprint), values(m, session.columns), one.label)
        for one, blueprint, m in zip(comparisons, blueprints, measured, strict=True)
    ]


def _searched(
    session: Session, journal: Journal, one: Comparison, facts: Facts, found: Sequence[Baseline]
) -> Generator[Event, None, Baseline | None]:
    """The best of a search; None where its time was up and half of it is nothing."""
    scorer = session.scoring(one.space, one.mix) if one.space else session.deletions(facts.remove, one.mix)
    if one.as_result:
        best = yield from _like_the_result(session, journal, one, scorer, facts, found)
    else:
        best = yield from _on_text(session, journal, one, scorer)
    blueprint = scorer.blueprint(best.trial.genome)
    ended = (limit := _limit(session, one)) and limit.trials is not None
    if ended and not SEARCHERS[one.searcher].anytime:
        yield Stage("baselines", f"{one.name} is left out: its search was ended before it was done")
        return None
    return Baseline(one.name, blueprint, session.inputs.removed(blueprint), best.values, one.label)


def _on_text(session: Session, journal: Journal, one: Comparison, scorer: Scorer) -> Searching:
    """A cut in which no task has a say, valued on all evidence afterwards."""
    searcher = SEARCHERS[one.searcher]
    whole = scorer.blueprint(scorer.space.dense()) if one.mix != (1.0,) else None
    schedule = replace(
        session.schedule(one.trials or AS_MANY_AS_IT_TAKES, finalists=LEADERS),
        stages=(session.evidence.text,),
        scores=session.scores(whole) if searcher.needs else None,
    )
    search = searcher.propose(scorer.space, schedule, np.random.default_rng(session.recipe.seed))
    asking = focus(search, (session.columns.index(one.column),))
    ranked = yield from drive(asking, scorer.evaluate, journal, scorer.key, session.batch, limit=_limit(session, one))
    best = ranked[len(ranked) // 2 if one.median else 0]
    wanted = [Trial(best.trial.genome, session.evidence.full)]
    return (yield from drive(once(wanted), scorer.evaluate, journal, scorer.key, batch=session.batch))[0]


def _like_the_result(
    session: Session,
    journal: Journal,
    one: Comparison,
    scorer: Scorer,
    facts: Facts,
    found: Sequence[Baseline],
) -> Searching:
    """A search with as many trials as the main one, and a choice on the selection windows like there."""
    recipe, evidence = session.recipe, session.evidence
    trials = evaluations(recipe, facts)
    stages = tuple(sorted({evidence.fidelity(max(1, recipe.data.sequences // 2)), evidence.full}))
    stages = tuple(map(evidence.foretelling, stages))
    schedule = Schedule(
        stages, trials, recipe.search.population, recipe.search.offspring, one.starts(_cuts(found)), FINALISTS
    )
    search = SEARCHERS[one.searcher].propose(scorer.space, schedule, np.random.default_rng(recipe.seed))
    asking, limit = focus(search, (0,)), _limit(session, one)
    ranked = yield from drive(asking, scorer.evaluate, journal, scorer.key, session.batch, trials, limit)
    wanted = [Trial(o.trial.genome, evidence.foretelling(evidence.selection)) for o in ranked]
    unseen = yield from drive(
        once(wanted), scorer.evaluate, journal, scorer.key, batch=session.batch, total=len(ranked)
    )
    best = min(unseen, key=lambda o: o.values[0])
    wanted = [Trial(best.trial.genome, evidence.full)]
    return (yield from drive(once(wanted), scorer.evaluate, journal, scorer.key, batch=session.batch))[0]
