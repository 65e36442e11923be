"""staged: (mu + lambda) evolution that spends evidence where it decides; evopress: the schedule it has to beat."""

from collections.abc import Callable, Generator

import numpy as np

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.search.archive import Archive, ranked
from hf_prune.search.schedule import Schedule, Search, TimeUp
from hf_prune.search.space import Space
from hf_prune.search.surrogate import fitted

Asking = Generator[tuple[Trial, ...], tuple[Outcome, ...], None]
Foretell = Callable[[Genome], float]
"""What a genome is expected to cost, above 0: only its order and ratios matter."""

MOST_MOVES = 3
"""Local moves per offspring: 1 to this many, the smaller of two draws (EvoPress, arXiv 2410.14649, sec. 3)."""
CROSSED = 0.2
"""Share of proposals that begin as a crossover of two parents."""
PROPOSALS = 16
"""Proposals per offspring that is scored."""
FIRST = 4
"""Seeds that are scored before the survey."""
DRAWN = 8
"""Random genomes for each of the likeliest that is wanted."""
FORETOLD = 0.25
"""Share of proposals that are the likeliest of many random genomes, by what was foretold."""
UNGUIDED = 0.0625
"""Share of a generation drawn from the proposals without asking the surrogate."""
BOLDNESS = (0.0, 1.0, 2.0)
"""Standard deviations taken off the guess, in turn: 0 trusts it, 2 looks where it knows little."""
HOPE = 1.5
"""Standard deviations that a screened value may lie above the best and still be worth full evidence."""
DOUBT = 0.3
"""Standard deviation of log(full / screened) that is assumed before there are pairs; it counts as `PAIRS` of them."""
PAIRS = 4
PATIENCE = 3
"""Generations without a better candidate until the parents are replaced by random ones."""
TRAINING = 400
"""Most candidates the surrogate learns from, the best ones."""
SURVEYED = 4
"""A survey takes at most this part of all evaluations."""


def staged(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Evolution from what is known of the dense model, every generation screened before it gets full evidence.

    The likeliest seeds are scored first. Then a survey: what each single removal costs on the first stage of evidence,
    which foretells, as their sum, every other genome. The first generation is the other seeds, and random genomes of
    which little is foretold. Parents are the best ever at full evidence. Proposals are 1 to 3 local moves away from
    them, some after a crossover, and random genomes of which little is foretold; a surrogate learnt from everything
    scored so far picks which to score. All of those meet the first stage; who can still beat the best goes on to the
    next. Nothing is scored twice at one stage. When nothing better has come for a few generations, the next one springs
    from random genomes instead, and what has been learnt stays.
    """
    archive = Archive(space, schedule)
    try:
        yield from _evolved(space, schedule, archive, rng)
    except TimeUp as up:
        archive.end(up)
    return archive.finalists()


def _evolved(space: Space, schedule: Schedule, archive: Archive, rng: np.random.Generator) -> Asking:
    guess = schedule.guess or (lambda genome: 1.0)
    seeds = list(schedule.starts) or _likely(space, archive, guess, FIRST, rng)
    # Full evidence, and before anything else: whenever time is up, there is a model of the wanted size.
    yield from archive.ask(seeds[:FIRST])
    foretell = (yield from _surveyed(space, archive)) or guess
    generation = seeds[FIRST:]
    generation += _likely(space, archive, foretell, max(schedule.offspring - len(seeds), 1), rng)
    best, stale = archive.ranked()[0].values[0], 0
    while generation and archive.left:
        yield from _screened(archive, generation)
        leader = archive.ranked()[0].values[0]
        best, stale = min(best, leader), 0 if leader < best else stale + 1
        restart = stale >= PATIENCE
        parents = [o.trial.genome for o in archive.ranked()[: schedule.population]]
        if restart:
            parents, stale = archive.fresh(lambda: space.random(rng), schedule.population) or parents, 0
        proposals = _proposals(space, parents, archive, rng)
        proposals += _likely(space, archive, foretell, int(FORETOLD * len(proposals)), rng)
        generation = _chosen(space, archive, list(dict.fromkeys(proposals)), foretell, rng)


def evopress(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """EvoPress's own schedule (arXiv 2410.14649, alg. 1), a baseline: (1 + lambda) with elitist multi-step selection.

    The start is the best of `population` random genomes. Each generation proposes `offspring` of the parent by 1 to 3
    swaps, keeps a quarter of them from stage to stage, and in the last stage compares them with the parent.
    """
    archive = Archive(space, schedule)
    starts = archive.fresh(lambda: space.random(rng), schedule.population)
    parent = ranked((yield from archive.ask(starts)))[0]
    while archive.left:
        survivors = list(dict.fromkeys(_moved(space, parent.trial.genome, rng) for _ in range(schedule.offspring)))
        before = archive.asked
        for number, stage in enumerate(schedule.stages):
            told = ranked((yield from archive.ask(survivors, stage)))
            survivors = [o.trial.genome for o in told[: max(schedule.offspring // 4 ** (number + 1), 1)]]
        parent = ranked([parent, *told])[0]
        if archive.asked == before:
            break
    return archive.finalists()


def _surveyed(space: Space, archive: Archive) -> Generator[tuple[Trial, ...], tuple[Outcome, ...], Foretell | None]:
    """What the sum of single removals foretells of a genome; None where asking them would take too much of the search.

    Effects of features are the least squares of the least norm through what the single removals cost.
    """
    dense, stage = space.dense(), archive.schedule.stages[0]
    singles = space.removals(dense)
    if not singles or len(singles) * SURVEYED > archive.left or space.removed(singles[0]) == space.budget:
        return None
    outcomes = yield tuple(Trial(genome, stage) for genome in singles)
    archive.asked += len(singles)
    costs = np.array([o.values[0] for o in outcomes])
    if not (np.isfinite(costs) & (costs > 0)).any():
        return None
    costs = np.where(np.isfinite(costs), np.maximum(costs, 0.0), costs[np.isfinite(costs)].max())
    none = space.features(dense)
    effects = np.linalg.lstsq(np.stack([space.features(g) for g in singles]) - none, costs, rcond=1e-9)[0]
    least = costs[costs > 0].min()
    return lambda genome: max(float((space.features(genome) - none) @ effects), least)


def _likely(space: Space, archive: Archive, foretell: Foretell, count: int, rng: np.random.Generator) -> list[Genome]:
    """Those of many random genomes of which least is foretold."""
    drawn = archive.fresh(lambda: space.random(rng), DRAWN * count, patience=2)
    return sorted(drawn, key=lambda genome: (round(foretell(genome), 6), genome))[:count]


def _screened(archive: Archive, generation: list[Genome]) -> Asking:
    """Stage by stage, fitted into what is left to ask: who can still beat the best, by the interval of its value there,
    goes on to more evidence, at most half of those that were asked and one at least.

    They are the best of all that wait there, not only of this generation: a model that one screen held back gets its
    turn when the others are worse (as in asynchronous successive halving, Li et al., arXiv 1810.05934).
    """
    stages = archive.schedule.stages
    if archive.left < 2 * len(stages) or not archive.full and archive.left < 2 * len(generation):
        stages = stages[-1:]
    share = sum(0.5**number for number in range(len(stages)))
    survivors = generation[: max(int(archive.left / share), 1)]
    for stage, beyond in zip(stages, [*stages[1:], None], strict=True):
        told = yield from archive.ask(survivors, stage)
        if beyond is None:
            return
        waiting = ranked(o for model, o in archive.told[stage].items() if model not in archive.told[beyond])
        hopeful = [o for o in waiting if _may_win(archive, stage, beyond, o.values[0])]
        survivors = [o.trial.genome for o in (hopeful or waiting[:1])[: -(-len(told) // 2)]]


def _may_win(archive: Archive, stage: Fidelity, beyond: Fidelity, value: float) -> bool:
    """Whether a value of this stage leaves hope for the best one beyond it."""
    best = min((o.values[0] for o in archive.told[beyond].values()), default=np.inf)
    if not np.isfinite(best) or best <= 0 or value <= 0:
        return value < np.inf
    middle, deviation = _shift(archive, stage, beyond)
    return np.log(value) + middle - HOPE * deviation < np.log(best)


def _shift(archive: Archive, stage: Fidelity, beyond: Fidelity) -> tuple[float, float]:
    """Mean and standard deviation of log(value beyond / value at the stage), by the better half of those that met both,
    since how bad bad ones are does not matter."""
    both = [(o.values[0], archive.told[beyond][m].values[0]) for m, o in archive.told[stage].items()
            if m in archive.told[beyond]]  # fmt: skip
    both = sorted((after, before) for before, after in both if 0 < before < np.inf and 0 < after < np.inf)
    logs = np.array([np.log(after / before) for after, before in both[: -(-len(both) // 2)]])
    middle = float(logs.sum() / (len(logs) + PAIRS))
    return middle, float(np.sqrt((((logs - middle) ** 2).sum() + PAIRS * DOUBT**2) / (len(logs) + PAIRS)))


def _proposals(space: Space, parents: list[Genome], archive: Archive, rng: np.random.Generator) -> list[Genome]:
    """Models never asked before, near the parents; better parents are drawn more often."""

    def draw() -> Genome:
        genome = _pick(parents, rng)
        if rng.random() < CROSSED:
            genome = space.crossover(genome, _pick(parents, rng), rng)
        return _moved(space, genome, rng)

    wanted = archive.schedule.offspring
    return archive.fresh(draw, PROPOSALS * wanted, patience=4) or archive.fresh(lambda: space.random(rng), wanted)


def _chosen(
    space: Space, archive: Archive, proposals: list[Genome], foretell: Foretell, rng: np.random.Generator
) -> list[Genome]:
    """As many proposals as a generation has: most by the surrogate, the rest by lot."""
    if not proposals:
        return []
    count = min(archive.schedule.offspring, len(proposals))
    lot = max(int(UNGUIDED * count), 1)
    known = _evidence(archive)
    logs = np.log([foretell(g) for _, g in known])
    middle, scale = logs.mean(), logs.std() or 1.0
    guess = fitted(
        np.stack([space.features(g) for _, g in known]), (logs - middle) / scale, [value for value, _ in known]
    )
    expected = (np.log([foretell(g) for g in proposals]) - middle) / scale
    mean, deviation = guess(np.stack([space.features(g) for g in proposals]), expected)
    orders = [iter(np.argsort(mean - bold * deviation, kind="stable")) for bold in BOLDNESS]
    chosen: dict[Genome, None] = {}
    for turn in range(len(proposals) * len(orders)):
        if len(chosen) >= count - lot:
            break
        if (i := next(orders[turn % len(orders)], None)) is not None:
            chosen[proposals[int(i)]] = None
    others = [g for g in proposals if g not in chosen]
    drawn = rng.permutation(len(others))[: count - len(chosen)]
    return list(chosen) + [others[int(i)] for i in drawn]


def _evidence(archive: Archive) -> list[tuple[float, Genome]]:
    """First values of the best `TRAINING` models scored; screened ones are brought to the scale of full evidence."""
    known = {model: (o.values[0], o.trial.genome) for model, o in archive.full.items()}
    for stage in reversed(archive.schedule.stages[:-1]):
        scale = _scale(archive, stage)
        for model, o in archive.told[stage].items():
            known.setdefault(model, (o.values[0] * scale, o.trial.genome))
    return sorted(known.values())[:TRAINING]


def _scale(archive: Archive, stage: Fidelity) -> float:
    """How much larger the first value is on full evidence, by the models that met both."""
    full = archive.full
    ratios = [full[m].values[0] / o.values[0] for m, o in archive.told[stage].items() if m in full and o.values[0]]
    ratios = [r for r in ratios if np.isfinite(r) and r > 0]
    return float(np.median(ratios)) if ratios else 1.0


def _moved(space: Space, genome: Genome, rng: np.random.Generator) -> Genome:
    for _ in range(min(rng.integers(1, MOST_MOVES + 1, size=2))):
        genome = space.mutate(genome, rng)
    return genome


def _pick(parents: list[Genome], rng: np.random.Generator) -> Genome:
    """The better of two draws; parents come ranked."""
    return parents[int(min(rng.integers(len(parents), size=2)))]
