"""The only loop: from what a searcher asks to what it is told, with the journal in between."""

import math
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.events import Scored
from hf_prune.search.schedule import Search

Values = tuple[float, ...]
Entry = tuple[Any, Genome, Values]
"""Key, genome and values of one evaluated trial."""


class Memory(Protocol):
    """What `drive` needs of a journal."""

    def get(self, key: Any) -> Values | None:
        """Values recorded under that key."""

    def record(self, entries: Sequence[Entry]) -> None:
        """Keep one evaluated batch, all of it or nothing."""


def drive(
    search: Search,
    evaluate: Callable[[tuple[Trial, ...]], Sequence[Values]],
    journal: Memory,
    key: Callable[[Trial], Hashable],
    batch: int = 512,
    total: int = 0,
) -> Generator[Scored, None, tuple[Outcome, ...]]:
    """Run a search to its end.

    Trials whose key the journal knows are not evaluated; of trials with one key only the first is. The others go to
    `evaluate` in the order asked, at most `batch` at a time, and into the journal before anybody hears of them. So a
    killed run, driven again with the same journal, evaluates the same batches of the same members and ends the same.

    Args:
        search: yields trials, is sent outcomes.
        evaluate: trials -> values of each, minimised; NaN counts as +inf.
        journal: remembers, and survives the process.
        key: what makes two trials the same evaluation (blueprint digest and fidelity, not the genome).
        batch: most trials of one call of `evaluate`.
        total: most trials the search may ask for, passed on in the events.

    Yields:
        One `Scored` per batch the search asked for.

    Returns:
        The search's finalists.
    """
    tally = Tally(total)
    try:
        trials = next(search)
        while True:
            missing: dict[Hashable, Trial] = {}
            for trial in trials:
                if journal.get(key(trial)) is None:
                    missing.setdefault(key(trial), trial)
            for start in range(0, len(missing), batch):
                _evaluate(list(missing.items())[start : start + batch], evaluate, journal)
            outcomes = tuple(Outcome(t, _known(journal, key(t))) for t in trials)
            yield tally.scored(outcomes, cached=len(trials) - len(missing))
            trials = search.send(outcomes)
    except StopIteration as end:
        return end.value


def focus(search: Search, columns: tuple[int, ...]) -> Search:
    """Let a searcher see only some of the journaled values; what it returns keeps them all."""
    known: dict[Trial, Outcome] = {}
    try:
        trials = next(search)
        while True:
            outcomes = yield trials
            known |= {o.trial: o for o in outcomes}
            trials = search.send(tuple(Outcome(o.trial, tuple(o.values[c] for c in columns)) for o in outcomes))
    except StopIteration as stop:
        return tuple(known[o.trial] for o in stop.value)


def once(trials: Sequence[Trial]) -> Search:
    """A search that asks for given trials and returns their outcomes in the same order."""
    return (yield tuple(trials))


@dataclass
class Tally:
    """Progress: trials told so far, and the best first value per amount of evidence."""

    total: int
    done: int = 0
    best: dict[Fidelity, float] = field(default_factory=dict)

    def scored(self, outcomes: tuple[Outcome, ...], cached: int) -> Scored:
        """Count these in. The event's `best` is that of the most evidence anything was scored on."""
        for o in outcomes:
            stage = o.trial.fidelity
            self.best[stage] = min(self.best.get(stage, math.inf), o.values[0])
        self.done += len(outcomes)
        fullest = max(self.best, key=lambda f: (f.heal_tokens, f.repair, f.sequences, f.items), default=None)
        best = self.best[fullest] if fullest else math.inf
        return Scored(outcomes, self.done, self.total, best, cached)


def _evaluate(
    wanted: list[tuple[Hashable, Trial]], evaluate: Callable[[tuple[Trial, ...]], Sequence[Values]], journal: Memory
) -> None:
    results = evaluate(tuple(t for _, t in wanted))
    journal.record(
        [
            (key, trial.genome, tuple(math.inf if math.isnan(v) else float(v) for v in values))
            for (key, trial), values in zip(wanted, results, strict=True)
        ]
    )


def _known(journal: Memory, key: Hashable) -> Values:
    values = journal.get(key)
    assert values is not None, "a journal must return what was recorded"
    return values
