"""What one search has asked so far: no model is asked twice at a stage, and never more than the schedule allows."""

from collections.abc import Callable, Generator, Hashable, Iterable

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.search.schedule import Schedule, TimeUp
from hf_prune.search.space import Space

Asking = Generator[tuple[Trial, ...], tuple[Outcome, ...], list[Outcome]]

PATIENCE = 20
"""Draws per wanted genome before a space counts as exhausted."""


class Archive:
    """Local to one run of a searcher; dies with it. Genomes that decode to one model are one."""

    def __init__(self, space: Space, schedule: Schedule) -> None:
        self.schedule = schedule
        self.told: dict[Fidelity, dict[Hashable, Outcome]] = {stage: {} for stage in schedule.stages}
        self.asked = 0
        self._waiting: tuple[Fidelity, list[Hashable]] | None = None
        self._decode = space.decode
        self._models: dict[Genome, Hashable] = {}

    @property
    def left(self) -> int:
        """Trials that may still be asked."""
        return self.schedule.evaluations - self.asked

    @property
    def full(self) -> dict[Hashable, Outcome]:
        """Model -> outcome at full evidence, in the order they came."""
        return self.told[self.schedule.full]

    def model(self, genome: Genome) -> Hashable:
        """What the genome decodes to."""
        if genome not in self._models:
            self._models[genome] = self._decode(genome)
        return self._models[genome]

    def met(self, genome: Genome) -> bool:
        """Whether its model was asked at any stage."""
        model = self.model(genome)
        return any(model in told for told in self.told.values())

    def ask(self, genomes: Iterable[Genome], stage: Fidelity | None = None) -> Asking:
        """Ask for the models not yet asked at that stage (full evidence by default), as far as the cap allows.

        Returns:
            One outcome per distinct model that is known afterwards, old ones included, in the order given.
        """
        told = self.told[stage or self.schedule.full]
        wanted: dict[Hashable, Genome] = {}
        for genome in genomes:
            wanted.setdefault(self.model(genome), genome)
        fresh = [model for model in wanted if model not in told][: self.left]
        if fresh:
            self.asked += len(fresh)
            self._waiting = stage or self.schedule.full, fresh
            outcomes = yield tuple(Trial(wanted[model], stage or self.schedule.full) for model in fresh)
            self._waiting = None
            told.update(zip(fresh, outcomes, strict=True))
        return [told[model] for model in wanted if model in told]

    def end(self, up: TimeUp) -> None:
        """Take in the answers that came before time was up."""
        if self._waiting:
            stage, models = self._waiting
            self.told[stage].update(zip(models, up.outcomes, strict=False))

    def fresh(self, draw: Callable[[], Genome], count: int, patience: int = PATIENCE) -> list[Genome]:
        """Up to `count` drawn genomes of distinct models never asked; fewer when drawing finds hardly any."""
        found: dict[Hashable, Genome] = {}
        for _ in range(patience * count):
            if len(found) == count:
                break
            genome = draw()
            if not self.met(genome):
                found.setdefault(self.model(genome), genome)
        return list(found.values())

    def ranked(self) -> list[Outcome]:
        """Everything at full evidence, best first."""
        return ranked(self.full.values())

    def finalists(self) -> tuple[Outcome, ...]:
        """The best on the most evidence that anything was scored on, of the schedule's number."""
        fullest = next((told for told in reversed(self.told.values()) if told), {})
        return tuple(ranked(fullest.values())[: self.schedule.finalists])


def ranked(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Best first by the first value; ties go to the smaller genome, so that the order never depends on luck."""
    return sorted(outcomes, key=lambda o: (o.values[0], o.trial.genome))
