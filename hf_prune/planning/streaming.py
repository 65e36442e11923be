"""How a base that does not fit is read: how much in a pass over its layers, how often, and whether one waits for it."""

import math
from dataclasses import dataclass, replace
from typing import Any

from hf_prune.methods.method import Facts
from hf_prune.planning.counts import comparison_rounds, evaluations, repairs
from hf_prune.planning.forecast import forecast
from hf_prune.planning.memory import Demand
from hf_prune.planning.rates import Rates, Shape
from hf_prune.recipe import Recipe

ALWAYS = 8
"""Passes of every run: the check and the reference run, the choice, the logits of the certificate, and the report."""


@dataclass(frozen=True, slots=True)
class Streaming:
    """`staying` of `depth` layers fit; of the others `bytes` are read in each of about so many `passes`.

    reading, computing: seconds of one pass of the search; None where nobody measured.
    """

    staying: int
    depth: int
    bytes: int
    passes: int
    reading: float | None = None
    computing: float | None = None

    @property
    def bound(self) -> str | None:
        """Which of the two a pass of the search waits for."""
        if self.reading is None or self.computing is None:
            return None
        return "reading" if self.reading > self.computing else "computing"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {name: getattr(self, name) for name in (*self.__slots__, "bound")}


def reading_rates(recipe: Recipe, need: Demand, shape: Shape, rates: Rates) -> Rates:
    """The rates of a machine that reads those layers of a base again and again that do not fit; arguments as below."""
    staying = _staying(recipe, need, shape)
    return rates if staying is None else replace(rates, passing=_read(shape, staying) * rates.disk)


def streaming(recipe: Recipe, need: Demand, facts: Facts, shape: Shape, rates: Rates | None) -> Streaming | None:
    """What is read of a base; None where all of it fits.

    Args:
        recipe: what is asked for.
        need: of memory.
        facts: what a plan knows.
        shape: of the base.
        rates: of the machine; None where nobody measured.

    Raises:
        InvalidRecipe: as `Demand.share`.
    """
    staying = _staying(recipe, need, shape)
    if staying is None:
        return None
    generations = math.ceil(evaluations(recipe, facts) / recipe.search.offspring)
    rounds = len(list(comparison_rounds(recipe, facts)))
    passes = ALWAYS + generations + rounds + (2 * repairs(recipe) if recipe.repair.enabled else 0)
    found = Streaming(staying, shape.depth, _read(shape, staying), passes)
    if rates is None:
        return found
    searched = forecast(recipe, facts, shape, replace(rates, passing=0.0)).seconds.get("search", 0.0)
    return replace(found, reading=found.bytes * rates.disk, computing=searched / max(1, generations))


def _staying(recipe: Recipe, need: Demand, shape: Shape) -> int | None:
    """Layers that are never read again; None where that is all of them."""
    room = need.share(recipe.machine.memory).layers
    # One is on its way while another computes.
    return None if room is None else max(0, min(shape.depth, room // need.layer) - 2)


def _read(shape: Shape, staying: int) -> int:
    """Bytes of the layers that are."""
    return round(shape.bytes * shape.layer / shape.parameters * (shape.depth - staying))
