"""blocks: one contiguous block of layers goes, the simplest space there is.

genome = (first layer of the block, layers in it)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_prune.blueprint import Genome, LayerSpec, Part
from hf_prune.methods.deletions import WholeLayers
from hf_prune.methods.listed import ListedSpace
from hf_prune.methods.method import Facts


@dataclass(frozen=True)
class BlockSpace(ListedSpace):
    """Every place of a block of `budget` layers."""

    def of_size(self, removed: int) -> Iterator[Genome]:
        """From the front to the back."""
        places = self.depth - removed + 1 if removed else 1
        return ((first, removed) for first in range(places))

    def decode(self, genome: Genome) -> tuple[LayerSpec, ...]:
        """The layers before and behind the block, of any two integers."""
        size = genome[1] % self.depth
        first = genome[0] % (self.depth - size + 1)
        block = range(first, first + size)
        return tuple(LayerSpec((Part(0, i),)) for i in range(self.depth) if i not in block)


class Blocks(WholeLayers):
    """The method."""

    title = "One block of layers (blocks)"

    def space(self, recipe: Any, facts: Facts) -> BlockSpace:
        """Blocks as long as what is to be removed."""
        return BlockSpace(facts.depth, facts.remove or None)
