"""What a space gets for nothing when its models of every size can be listed: only few and only plain deletions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from hf_prune.blueprint import Genome, LayerSpec
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.partition import checked, fates, kept_of, pick, sizes


@dataclass(frozen=True)
class ListedSpace:
    """`budget` of `depth` layers go; None leaves the size free. A space of its own says `of_size` and `decode`.

    Raises:
        InvalidRecipe: a budget that leaves no layer.
    """

    depth: int
    budget: int | None = None

    def __post_init__(self) -> None:
        checked(self.depth, self.budget, self.depth - 1)

    def of_size(self, removed: int) -> Iterable[Genome]:
        """Every genome that removes so many layers, once; for 0 the dense model's."""
        raise NotImplementedError

    def decode(self, genome: Genome) -> tuple[LayerSpec, ...]:
        """The layers that stay."""
        raise NotImplementedError

    def enumerate(self) -> Iterator[Genome]:
        """As Space says."""
        for size in sizes(self.depth, self.budget, self.depth - 1):
            yield from self.of_size(size)

    def count(self) -> int:
        """Number of models `enumerate` yields."""
        return sum(1 for _ in self.enumerate())

    def dense(self) -> Genome:
        """Nothing removed."""
        return next(iter(self.of_size(0)))

    def gone(self, genome: Genome) -> set[int]:
        """Layers that go."""
        return set(range(self.depth)) - {spec.anchor.layer for spec in self.decode(genome)}

    def removed(self, genome: Genome) -> int:
        """Number of layers that go."""
        return len(self.gone(genome))

    def from_removed(self, layers: Iterable[int]) -> Genome:
        """Delete exactly these.

        Raises:
            InvalidRecipe: a layer that does not exist, no layer left, or a cut that is not in this space.
        """
        gone = set(range(self.depth)) - set(kept_of(self.depth, layers))
        found = next((g for g in self.of_size(len(gone)) if self.gone(g) == gone), None)
        if found is None:
            raise InvalidRecipe(f"Layers {sorted(gone)} are no cut of this method; use collapse for that.")
        return found

    def removals(self, genome: Genome) -> list[Genome]:
        """Every genome with one layer fewer; [] when the budget is met."""
        gone = self.gone(genome)
        if len(gone) >= (self.depth - 1 if self.budget is None else self.budget):
            return []
        return [g for g in self.of_size(len(gone) + 1) if gone < self.gone(g)]

    def random(self, rng: np.random.Generator) -> Genome:
        """Any of them."""
        return pick(rng, list(self.enumerate()))

    def mutate(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One of those whose cut differs least."""
        gone = self.gone(genome)
        apart = [(len(gone ^ self.gone(g)), g) for g in self.enumerate()]
        least = min((n for n, _ in apart if n), default=0)
        return pick(rng, [g for n, g in apart if n == least])

    def crossover(self, a: Genome, b: Genome, rng: np.random.Generator) -> Genome:
        """The one whose cut differs least from both."""
        wanted = self.gone(a), self.gone(b)
        apart = [sum(len(w ^ self.gone(g)) for w in wanted) for g in self.enumerate()]
        return pick(rng, [g for n, g in zip(apart, self.enumerate(), strict=True) if n == min(apart)])

    def features(self, genome: Genome) -> np.ndarray:
        """float64 [2L] for a surrogate, see `fates`."""
        return fates(self.decode(genome), self.depth)
