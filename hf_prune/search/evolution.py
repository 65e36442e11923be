"""staged: (mu + lambda) evolution that spends evidence where it decides; evopress: the schedule it has to beat."""

from collections.abc import Generator

import numpy as np

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.search.archive import Archive, ranked
from hf_prune.search.schedule import Schedule, Search
from hf_prune.search.space import Space
from hf_prune.search.surrogate import fitted

Asking = Generator[tuple[Trial, ...], tuple[Outcome, ...], None]

MOST_MOVES = 3
"""Local moves per offspring: 1 to this many, the smaller of two draws (EvoPress, arXiv 2410.14649, sec. 3)."""
CROSSED = 0.2
"""Share of proposals that begin as a crossover of two parents."""
PROPOSALS = 8
"""Proposals per offspring that is scored."""
UNGUIDED = 0.125
"""Share of a generation drawn from the proposals without asking the surrogate."""
BOLDNESS = (0.0, 1.0, 2.0)
"""Standard deviations taken off the guess, in turn: 0 trusts it, 2 looks where it knows little."""
PATIENCE = 3
"""Generations without a better candidate until the parents are replaced by random ones."""
TRAINING = 400
"""Most candidates the surrogate learns from, the best ones."""


def staged(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Evolution from random starts (and the schedule's seeds), every generation screened by successive halving.

    Parents are the best ever at full evidence. Proposals are 1 to 3 local moves away from them, some after a crossover;
    a surrogate learnt from everything scored so far picks which to score. All of those meet the first stage, half as
    many the second, and so on; nothing is scored twice at one stage. When nothing better has come for a few
    generations, the next one springs from random genomes instead, and what has been learnt stays.
    """
    archive = Archive(space, schedule)
    seeds = list(schedule.starts)
    generation = seeds + archive.fresh(lambda: space.random(rng), max(schedule.offspring - len(seeds), 1))
    best, stale = np.inf, 0
    while generation and archive.left:
        yield from _halving(archive, generation)
        leader = archive.ranked()[0].values[0]
        best, stale = min(best, leader), 0 if leader < best else stale + 1
        restart = stale >= PATIENCE
        parents = [o.trial.genome for o in archive.ranked()[: schedule.population]]
        if restart:
            parents, stale = archive.fresh(lambda: space.random(rng), schedule.population) or parents, 0
        generation = _chosen(space, archive, _proposals(space, parents, archive, rng), rng)
    return archive.finalists()


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


def _halving(archive: Archive, generation: list[Genome]) -> Asking:
    """Asynchronous successive halving (Li et al., arXiv 1810.05934) over the stages, fitted into what is left to ask.

    Half as many as were scored go on to more evidence, and they are the best of all that wait there, not only of this
    generation: a model that one screen held back gets its turn when the others are worse.
    """
    stages = archive.schedule.stages
    if archive.left < 2 * len(stages) or not archive.full and archive.left < 2 * len(generation):
        stages = stages[-1:]
    share = sum(0.5**number for number in range(len(stages)))
    survivors = generation[: max(int(archive.left / share), 1)]
    for stage, beyond in zip(stages, [*stages[1:], None], strict=True):
        told = yield from archive.ask(survivors, stage)
        waiting = [o for model, o in archive.told[stage].items() if beyond and model not in archive.told[beyond]]
        survivors = [o.trial.genome for o in ranked(waiting)[: -(-len(told) // 2)]]


def _proposals(space: Space, parents: list[Genome], archive: Archive, rng: np.random.Generator) -> list[Genome]:
    """Models never asked before, near the parents; better parents are drawn more often."""

    def draw() -> Genome:
        genome = _pick(parents, rng)
        if rng.random() < CROSSED:
            genome = space.crossover(genome, _pick(parents, rng), rng)
        return _moved(space, genome, rng)

    wanted = archive.schedule.offspring
    return archive.fresh(draw, PROPOSALS * wanted, patience=4) or archive.fresh(lambda: space.random(rng), wanted)


def _chosen(space: Space, archive: Archive, proposals: list[Genome], rng: np.random.Generator) -> list[Genome]:
    """As many proposals as a generation has: most by the surrogate, the rest by lot."""
    if not proposals:
        return []
    count = min(archive.schedule.offspring, len(proposals))
    lot = max(int(UNGUIDED * count), 1)
    known = _evidence(archive)
    guess = fitted(np.stack([space.features(g) for _, g in known]), [value for value, _ in known])
    mean, deviation = guess(np.stack([space.features(g) for g in proposals]))
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
