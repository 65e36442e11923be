"""What a stitched model is compared with, at equal size and on the same evidence (GPTailor, arXiv 2506.20480, sec. 4).

Every parent cut by ShortGPT and by SLEB; the parents merged first and cut then; cut first and merged then; and two
searches of the method's own that lack a part of it, with as many trials: removal only, and selection without blending.
"""

from collections.abc import Generator, Sequence

import numpy as np

from hf_prune.blueprint import Blueprint, Genome, LayerSpec, Outcome, Part, Trial
from hf_prune.evaluation.dense import influence
from hf_prune.events import Event, Stage
from hf_prune.plan import evaluations
from hf_prune.search import SEARCHERS, Schedule, Scores, drive, focused, once
from hf_prune.session.clock import Clock
from hf_prune.session.found import Rival
from hf_prune.session.job import Job
from hf_prune.session.journal import Journal
from hf_prune.session.scorer import Scorer

Searching = Generator[Event, None, Outcome]
FINALISTS = 16
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the variants in the blends that a search begins with; the paper's starts come in several scales, too."""


def stitched(job: Job, journal: Journal, remove: int, clock: Clock) -> Generator[Event, None, tuple[Rival, ...]]:
    """All of them; the recipe's `baselines` say which kinds."""
    kinds = job.recipe.search.baselines
    cuts = [k for k in ("shortgpt", "greedy") if k in kinds]
    ablations = [k for k in ("removal", "selection") if k in kinds]
    if not remove or not cuts + ablations:
        return ()
    count, found, greedy = len(job.parents), [], []
    uniform = (1 / count,) * count
    mixes = {label(job, k): mix for k, mix in enumerate(_alone(count))}
    yield Stage("baselines", f"{', '.join(cuts)} on {count} parents and their mean")
    for name, mix in {**mixes, "the mean": uniform}.items():
        scorer = job.deletions(remove, mix)
        for kind in cuts:
            best = yield from _cut(job, journal, scorer, kind)
            what = f"merged first, {NAMES[kind]}" if name == "the mean" else f"{name}, {NAMES[kind]}"
            found.append(_rival(job, f"{kind}:{name}", what, scorer.blueprint(best.trial.genome), best))
            greedy += [found[-1].removed] if kind == "greedy" and name != "the mean" else []
    if greedy:
        found.append(_cut_first(job, greedy))
    clock.lap("baselines")
    for kind in ablations:
        yield Stage("baselines", f"{ABLATIONS[kind]}, searched as long as the result")
        found.append((yield from _ablation(job, journal, kind, remove, found)))
        clock.lap(f"baseline {kind}")
    return tuple(found)


NAMES = {"shortgpt": "cut by ShortGPT", "greedy": "cut by SLEB"}
ABLATIONS = {"removal": "removal only", "selection": "selection without blending"}


def label(job: Job, number: int) -> str:
    """A short name of a parent."""
    names = [(s.adapter or s.repo).partition("@")[0].rstrip("/").rpartition("/")[2] for s in job.sources]
    return names[number] if names.count(names[number]) == 1 else f"{names[number]} ({number})"


def warm_starts(job: Job, rivals: Sequence[Rival]) -> tuple[Genome, ...]:
    """Where the search begins: the baselines' cuts and late and middle ones, of every parent, of their mean, and of
    blends that lean on the base."""
    space, count, depth, remove = job.scorer.space, len(job.parents), job.parent.depth, job.target.remove
    mean = (1 / count,) * count
    if not remove:
        mixes = (mean, _leaning(count, 1.0))
        return tuple(dict.fromkeys(space.of(range(depth - n, depth), m) for n in range(1, depth) for m in mixes))
    mixes = [mean, *(_leaning(count, share) for share in SHARES), *_alone(count)]
    middle = (depth - remove) // 2
    fixed = [range(depth - 1 - remove, depth - 1), range(middle, middle + remove)]
    cuts = list(dict.fromkeys(tuple(sorted(c)) for c in (*[r.removed for r in rivals], *fixed) if len(c) == remove))
    # A search of few trials does not get to the end: every mix comes before a mix comes again, with another cut.
    turns = [(k % len(cuts), mix) for start in range(len(cuts)) for k, mix in enumerate(mixes, start)]
    return tuple(dict.fromkeys(space.of(cuts[k], mix) for k, mix in turns))


def _leaning(count: int, share: float) -> tuple[float, ...]:
    """Weights of the base and the mean of its variants, which has that share."""
    return (1 - share,) + (share / (count - 1),) * (count - 1)


def _alone(count: int) -> list[tuple[float, ...]]:
    """Weights of every parent by itself."""
    return [tuple(float(k == j) for j in range(count)) for k in range(count)]


def _cut(job: Job, journal: Journal, scorer: Scorer, kind: str) -> Searching:
    """ShortGPT's or SLEB's cut of one model, in which no task has a say."""
    scores = None
    if kind == "shortgpt":
        whole = scorer.blueprint(scorer.space.dense())
        scores = Scores(influence(job.evaluator.states(whole, job.recipe.data.sequences)))
    schedule = Schedule((job.text,), 1 << 30, finalists=1, scores=scores)
    search = SEARCHERS[kind](scorer.space, schedule, np.random.default_rng(job.recipe.seed))
    ranked = yield from drive(focused(search, (job.columns.index("perplexity"),)), scorer.evaluate, journal, scorer.key)
    return (yield from in_full(job, journal, scorer, ranked[0]))


def in_full(job: Job, journal: Journal, scorer: Scorer, found: Outcome) -> Searching:
    """The same candidate on all the search evidence: text, and the tasks that its search may not have asked."""
    wanted = [Trial(found.trial.genome, job.full)]
    return (yield from drive(once(wanted), scorer.evaluate, journal, scorer.key))[0]


def _cut_first(job: Job, cuts: Sequence[tuple[int, ...]]) -> Rival:
    """Every parent cut by SLEB, and the results merged layer by layer."""
    kept = [[i for i in range(job.parent.depth) if i not in cut] for cut in cuts]
    share = 1 / len(kept)
    layers = [LayerSpec(tuple(Part(k, i, share) for k, i in enumerate(row))) for row in zip(*kept, strict=True)]
    blueprint = Blueprint(job.sources, tuple(layers)).canonical()
    return Rival("cut-first", blueprint, cuts[0], (), "cut by SLEB, merged then")


def _ablation(job: Job, journal: Journal, kind: str, remove: int, found: Sequence[Rival]) -> Searching:
    """A search with as many trials as the main one, and a choice on the selection windows like there."""
    recipe = job.recipe
    alone = _alone(len(job.parents))
    if kind == "removal":
        scorer = job.deletions(remove, alone[job.dense])
        seeds = [scorer.space.from_removed(r.removed) for r in found]
    else:
        scorer = Scorer(job, job.stitches(("linear",), blend=False))
        seeds = [scorer.space.of(r.removed, mix) for r in found for mix in alone]
    trials = evaluations(recipe, job.parent.depth, remove)
    stages = sorted({job.fidelity(max(1, recipe.data.sequences // 2)), job.full})
    schedule = Schedule(
        tuple(stages), trials, recipe.search.population, recipe.search.offspring, tuple(dict.fromkeys(seeds)), FINALISTS
    )
    search = SEARCHERS["staged"](scorer.space, schedule, np.random.default_rng(recipe.seed))
    ranked = yield from drive(focused(search, (0,)), scorer.evaluate, journal, scorer.key, total=trials)

    wanted = [Trial(o.trial.genome, job.selection) for o in ranked]
    unseen = yield from drive(once(wanted), scorer.evaluate, journal, scorer.key, total=len(ranked))
    best = min(unseen, key=lambda o: o.values[0])
    values = next(o for o in ranked if o.trial.genome == best.trial.genome)
    return _rival(job, kind, f"{ABLATIONS[kind]} ({label(job, job.dense)})" if kind == "removal" else ABLATIONS[kind],
                  scorer.blueprint(best.trial.genome), values)  # fmt: skip


def _rival(job: Job, name: str, what: str, blueprint: Blueprint, best: Outcome) -> Rival:
    return Rival(name, blueprint, job.removed(blueprint), best.values, what)
