"""The only loop: from what a searcher asks to what it is told, with the journal in between."""

import math
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Protocol

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.events import Scored
from hf_prune.search.pareto import front
from hf_prune.search.schedule import Search, TimeUp

Values = tuple[float, ...]
Entry = tuple[Any, Genome, Values]
"""Key, genome and values of one evaluated trial."""


class Memory(Protocol):
    """What `drive` needs of a journal."""

    def get(self, key: Any) -> Values | None:
        """Values recorded under that key."""

    def record(self, entries: Sequence[Entry]) -> None:
        """Keep one evaluated batch, all of it or nothing."""


class Limit(Protocol):
    """How long a search may go on.

    `trials` is how many an earlier attempt told it until its time was up; this attempt ends there, too.
    """

    trials: int | None

    def over(self) -> bool:
        """Whether no further batch may begin."""

    def end(self, trials: int) -> None:
        """Remember that the search ended for want of time, and after how many trials."""


class Endless:
    """No limit."""

    trials = None

    def over(self) -> bool:
        """Never."""
        return False

    def end(self, trials: int) -> None:
        """Nothing to remember."""


def drive(
    search: Search,
    evaluate: Callable[[tuple[Trial, ...]], Sequence[Values]],
    journal: Memory,
    key: Callable[[Trial], Hashable],
    batch: int = 512,
    total: int = 0,
    limit: Limit | None = None,
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
        limit: when to end before that. The first batch is always evaluated, and `TimeUp` thrown into the search, which
            returns the best so far (see `focus`).

    Yields:
        One `Scored` per batch the search asked for.

    Returns:
        The search's finalists.
    """
    tally, limit = Tally(total), limit or Endless()
    try:
        trials = next(search)
        while True:
            wanted = trials if limit.trials is None else trials[: limit.trials - tally.done]
            missing: dict[Hashable, Trial] = {}
            for trial in wanted:
                if journal.get(key(trial)) is None:
                    missing.setdefault(key(trial), trial)
            for start in range(0, len(missing), batch):
                if limit.over() and (tally.done or start):
                    break
                _evaluate(list(missing.items())[start : start + batch], evaluate, journal)
            known = tuple(takewhile(lambda t: journal.get(key(t)) is not None, wanted))
            outcomes = tuple(Outcome(t, _known(journal, key(t))) for t in known)
            yield tally.scored(outcomes, cached=max(0, len(known) - len(missing)))
            if len(known) < len(trials) or tally.done == limit.trials:
                limit.end(tally.done)
                search.throw(TimeUp(outcomes))
                raise RuntimeError("A search went on although its time was up.")
            trials = search.send(outcomes)
    except StopIteration as end:
        return end.value


def focus(search: Search, columns: tuple[int, ...]) -> Search:
    """Let a searcher see only some of the journaled values; what it returns keeps them all.

    When its time is up, it may still say what is best; else `best_so_far` of what it was told does.
    """
    known: dict[Trial, Outcome] = {}

    def told(outcomes: tuple[Outcome, ...]) -> tuple[Outcome, ...]:
        known.update((o.trial, o) for o in outcomes)
        return tuple(Outcome(o.trial, tuple(o.values[c] for c in columns)) for o in outcomes)

    try:
        trials = next(search)
        while True:
            try:
                outcomes = yield trials
            except TimeUp as up:
                search.throw(TimeUp(told(up.outcomes)))
                raise RuntimeError("A search went on although its time was up.") from None
            trials = search.send(told(outcomes))
    except StopIteration as stop:
        return tuple(known[o.trial] for o in stop.value)
    except TimeUp:
        return best_so_far(known.values(), columns)


MOST = 16
"""Finalists of a search that was ended."""


def best_so_far(outcomes: Iterable[Outcome], columns: tuple[int, ...]) -> tuple[Outcome, ...]:
    """By the values in these columns, on the most evidence that any of them had: the best `MOST` of one column, the
    whole front of several."""
    outcomes = list(outcomes)
    fullest = max((o.trial.fidelity for o in outcomes), key=evidence, default=None)
    found = {o.trial.genome: o for o in outcomes if o.trial.fidelity == fullest}
    if len(columns) == 1:
        return tuple(sorted(found.values(), key=lambda o: (o.values[columns[0]], o.trial.genome))[:MOST])
    seen = {o.trial: o for o in found.values()}
    told = front(Outcome(t, tuple(o.values[c] for c in columns)) for t, o in seen.items())
    return tuple(seen[o.trial] for o in told)


def once(trials: Sequence[Trial]) -> Search:
    """A search that asks for given trials and returns their outcomes in the same order."""
    return (yield tuple(trials))


def evidence(fidelity: Fidelity) -> tuple[int, ...]:
    """How much a trial was given, in an order."""
    return fidelity.heal_tokens, fidelity.repair, fidelity.sequences, fidelity.items


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
        fullest = max(self.best, key=evidence, default=None)
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
