"""Which of a search's finalists is built: the one that is best on windows the search has not seen."""

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_prune.blueprint import Blueprint, Fidelity, Genome, Outcome, Trial
from hf_prune.errors import HfPruneError
from hf_prune.evaluation.objectives import OBJECTIVES
from hf_prune.events import Event, Stage, exhaust
from hf_prune.limits import FINAL_STAGES
from hf_prune.methods.stitch import Stack
from hf_prune.metrics.rank_correlation import spearman
from hf_prune.recipe import TASK_OBJECTIVES
from hf_prune.search import Space, drive, finals, focus, once
from hf_prune.session.baselines import Baseline
from hf_prune.session.journal import Journal
from hf_prune.session.scorer import Scorer
from hf_prune.session.session import Session


@dataclass(frozen=True, slots=True)
class Winner:
    """What a search brought home.

    cut: the model as it was found. blueprint: what it became by repair, the same without one. found_by: label of the
    comparison whose cut it is, None where the search's own was best. The rest: what it was chosen among, is compared
    with, and went through.
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
    found_by: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Who is best on the selection windows: its model and the comparison whose cut it is; what those chosen among were
    worth before and after a repair or a training; and the best of the search where a comparison's cut was better."""

    cut: Blueprint
    found_by: str | None = None
    summary: Mapping[str, Any] | None = None
    beaten: Blueprint | None = None


@dataclass(frozen=True, slots=True)
class Entrants:
    """Models that a choice is left among: those of a space by their genomes, and others, numbered -1, -2 and so on."""

    space: Space
    others: tuple[Blueprint, ...]

    def decode(self, genome: Genome) -> Hashable:
        """As Space says."""
        if len(genome) != 1 or genome[0] >= 0:
            return self.space.decode(genome)
        other = self.others[-1 - genome[0]]
        return Stack(other.layers, other.embed, other.head)


def score(scorer: Scorer, journal: Journal, trials: Sequence[Trial]) -> tuple[Outcome, ...]:
    """Outcomes of given trials, through the journal."""
    return exhaust(drive(once(trials), scorer.evaluate, journal, scorer.key, total=len(trials)))


def best_unseen(
    session: Session, journal: Journal, finalists: Sequence[Outcome], baselines: Sequence[Baseline] = ()
) -> Generator[Event, None, Choice]:
    """The model that is best on the selection windows: the search's best are a lucky draw of its own evidence, and what
    it is compared with may be better.

    Where a repair follows, or `search_heal` is asked for, the best few are repaired or trained first, since that
    changes their order; who they are is decided with gaps bridged, where a repair follows.
    """
    if not finalists:
        raise HfPruneError("The search ended without a candidate; raise --evaluations.")
    own = {session.scorer.blueprint(o.trial.genome).digest: o.trial.genome for o in finalists}
    others = tuple({b.blueprint.digest: b for b in reversed(baselines) if b.blueprint.digest not in own}.values())
    sources = session.inputs.sources
    entrants = Entrants(session.scorer.space, tuple(b.blueprint.over(sources) for b in others))
    scorer = session.scoring(entrants)
    genomes = [*own.values(), *((-1 - i,) for i in range(len(others)))]
    foretold = session.evidence.foretelling(session.evidence.selection)
    trials = [Trial(g, foretold) for g in genomes]
    order = sorted(score(scorer, journal, trials), key=lambda o: o.values[0])
    if not np.isfinite(order[0].values[0]):
        raise HfPruneError(
            "Every finalist breaks (NaN or infinite activations) on the selection windows; remove fewer layers."
        )
    few, stages = _last_rounds(session, order)
    best, summary = order[0].trial.genome, None
    if len(few) > 1:
        best, summary = yield from _restored(session, journal, scorer, few, stages)
    cut = scorer.blueprint(best)
    found_by = next((b.label for b in baselines if b.blueprint.digest == cut.digest), None)
    beaten = next(o.trial.genome for o in order if o.trial.genome in own.values())
    return Choice(cut, found_by, summary, scorer.blueprint(beaten) if cut.digest not in own else None)


def chosen(
    session: Session, choice: Choice, finalists: tuple[Outcome, ...], baselines: tuple[Baseline, ...], layer_tokens: int
) -> Winner:
    """The winner of a search that cost so many layer-tokens; where it is not the search's own best, that is another cut
    to compare with."""
    if choice.beaten:
        removed = session.inputs.removed(choice.beaten)
        baselines += (Baseline("search", choice.beaten, removed, (), "the search's own best"),)
    return Winner(
        choice.cut,
        choice.cut,
        finalists,
        baselines,
        layer_tokens=layer_tokens,
        selection=choice.summary,
        found_by=choice.found_by,
    )


def _restored(
    session: Session, journal: Journal, scorer: Scorer, few: Sequence[Outcome], stages: Sequence[Fidelity]
) -> Generator[Event, None, tuple[Genome, dict[str, Any]]]:
    """The best after a repair or a training, and how those of the last rounds fared."""
    means = ["repaired"] * session.recipe.repair.enabled + ["trained"] * bool(session.recipe.heal.finalist_tokens)
    yield Stage("select", f"{len(few)} finalists, {' and '.join(means)}")
    name = _judged_by(session)
    column = session.columns.index(name)
    genomes = [o.trial.genome for o in few]
    limit = session.limit("select", "select")
    asking, total = focus(finals(genomes, stages), (column,)), _asked(len(few), len(stages))
    ranked = yield from drive(asking, scorer.evaluate, journal, scorer.key, 1, total, limit)
    restored = [journal.get(scorer.key(Trial(g, stages[0]))) for g in genomes]
    # Those that time was left for.
    few, restored = zip(*((o, values) for o, values in zip(few, restored, strict=True) if values), strict=True)
    genomes = [o.trial.genome for o in few]
    bare = score(scorer, journal, [Trial(g, session.evidence.selection) for g in genomes])
    before, expected, after = (
        [values[column] for values in found] for found in ((o.values for o in bare), (o.values for o in few), restored)
    )
    removed = [list(session.inputs.removed(scorer.blueprint(g))) for g in genomes]
    return ranked[0].trial.genome, {
        "means": means,
        "by": name,
        "finalists": [
            {"removed": gone, "before": b, "foretold": f, "after": a}
            for gone, b, f, a in zip(removed, before, expected, after, strict=True)
        ],
        "spearman": spearman(before, after),
        "spearman_foretold": spearman(expected, after),
        "changed": ranked[0].trial.genome != genomes[0],
    }


def _judged_by(session: Session) -> str:
    """What restored candidates are ranked by: what is searched for, unless a training says nothing of that; and where
    there are tasks, trained ones by their answers, since their loss does not foretell those."""
    objective = session.recipe.search.objective
    if session.recipe.heal.finalist_tokens and session.evidence.searched and objective not in TASK_OBJECTIVES:
        return "doubt"
    return objective if OBJECTIVES[objective].of_trained else "kl"


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
