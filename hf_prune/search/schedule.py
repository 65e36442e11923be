"""How much a search may ask for, and on how much evidence."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise

from hf_prune.blueprint import Fidelity, Genome, Outcome, Trial
from hf_prune.errors import InvalidRecipe

Search = Generator[tuple[Trial, ...], tuple[Outcome, ...], tuple[Outcome, ...]]
"""Yields trials, is sent their outcomes in the same order, returns ranked finalists (distinct genomes, best first)."""


class TimeUp(Exception):
    """Thrown into a search that must end; `outcomes` answer the first of the trials it asked for last."""

    def __init__(self, outcomes: tuple[Outcome, ...]) -> None:
        super().__init__("no time left")
        self.outcomes = outcomes


@dataclass(frozen=True, slots=True)
class Scores:
    """One-shot scores of the dense model.

    `influence[l]` is ShortGPT's block influence of layer l, 1 - E cos(h_l, h_{l+1}) (arXiv 2403.03853, eq. 1).
    `distance[l][n-1]` is the angular distance arccos(cos(h_l, h_{l+n})) / pi across the n layers from l on
    (arXiv 2403.17887, eq. 7); row l has depth - l entries.
    """

    influence: tuple[float, ...]
    distance: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a search may spend.

    `stages` are growing amounts of evidence, the last one full; only `staged` and `evopress` use the others.
    `evaluations` caps the trials of all stages together. `population` survive a generation, `offspring` are asked in
    one. `seeds` are genomes to start from, the likelier ones first, `finalists` how many to return. `scores` is for the
    one-shot searchers. `guess` says what a genome may cost before anything is scored, above 0.

    Raises:
        InvalidRecipe: no stage, stages that do not grow, or a number below 1.
    """

    stages: tuple[Fidelity, ...]
    evaluations: int
    population: int = 16
    offspring: int = 32
    seeds: tuple[Genome, ...] = ()
    finalists: int = 4
    scores: Scores | None = None
    guess: Callable[[Genome], float] | None = None

    def __post_init__(self) -> None:
        if not self.stages or not all(_grows(*pair) for pair in pairwise(self.stages)):
            raise InvalidRecipe(
                "A search needs at least one stage of evidence, and every stage more than the one before."
            )
        for name in ("evaluations", "population", "offspring", "finalists"):
            if getattr(self, name) < 1:
                raise InvalidRecipe(f"The search schedule's {name} must be at least 1, not {getattr(self, name)}.")

    @property
    def starts(self) -> tuple[Genome, ...]:
        """The first seeds, once each: they take half of the evaluations at most, so that a search is left."""
        return tuple(dict.fromkeys(self.seeds))[: max(self.evaluations // 2, 1)]

    @property
    def full(self) -> Fidelity:
        """All the evidence: finalists are compared on it."""
        return self.stages[-1]


def _grows(before: Fidelity, after: Fidelity) -> bool:
    more = [getattr(after, n) - getattr(before, n) for n in ("sequences", "items", "heal_tokens")]
    return min(more) >= 0 and max(more) > 0
