"""What a searcher may know of a method: how to draw, move, mix and list genomes, and nothing of models or files."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol

import numpy as np

from hf_prune.blueprint import Genome


class Space(Protocol):
    """All genomes of one method that meet one budget.

    `depth` is the number of source layers. `budget` is how many units (layers, or halves) to remove; None leaves the
    size free, for a Pareto search.
    """

    @property
    def depth(self) -> int:
        """Number of source layers."""

    @property
    def budget(self) -> int | None:
        """Units to remove; None when the size is free."""

    def dense(self) -> Genome:
        """The genome that removes nothing (outside the budget)."""

    def random(self, rng: np.random.Generator) -> Genome:
        """A genome within the budget."""

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One local move at constant budget; with a free budget it may change the size."""

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """A child of both, repaired to the budget."""

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome that removes one unit more; [] when the budget is met."""

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """The genome that deletes exactly these source layers."""

    def removed(self, genome: Genome) -> int:
        """How many units it removes."""

    def decode(self, genome: Genome) -> Hashable:
        """What it means. A searcher only compares this: genomes of one model decode to equal values."""

    def enumerate(self) -> Iterator[Genome]:
        """Every distinct model within the budget once."""

    def features(self, genome: Genome) -> np.ndarray:
        """What a surrogate may know: float64 [n] indicators (layer removed, layer merged), one n for all genomes."""
