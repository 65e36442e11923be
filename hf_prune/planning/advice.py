"""What would make a run fit into a machine: the fewest changes of its recipe that do, worked out one by one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import floor
from typing import Any

from hf_prune.errors import InvalidRecipe
from hf_prune.planning.memory import SHARE, Room
from hf_prune.recipe import OPTIONS, Recipe

MOST = 3
"""Changes that are proposed together."""
LEVERS: Mapping[str, tuple[Any, ...]] = {
    "dtype": ("bfloat16",),
    "gradient_checkpointing": (True,),
    "heal_batch": (8, 4, 2, 1),
    "sequences": (12, 8, 4),
    "selection_sequences": (12, 8, 4),
    "repair_sequences": (128, 64, 32),
    "length": (192, 128),
    "offspring": (16, 8),
    "search_items": (32, 16),
    "selection_items": (32, 16),
    "heal_method": ("lora",),
    "tune": (0,),
    "heal": (0,),
    "repair": (False,),
}
"""Values that take less memory, the mildest first; the fields that cost a result least come first, too."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a run takes: of its device at the peak of each stage, and of the machine around it."""

    stages: tuple[int, ...]
    host: int

    @property
    def device(self) -> int:
        """At the highest of its peaks."""
        return max(self.stages)

    def less(self, other: "Need") -> bool:
        """Whether some stage takes less than in another run, and none more."""
        pairs = list(zip((*self.stages, self.host), (*other.stages, other.host), strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    def fits(self, room: Room) -> bool:
        """Whether a machine has that."""
        return room.fits(self.device, self.host)


Needs = Callable[[Recipe], Need]


@dataclass(frozen=True, slots=True)
class Advice:
    """Changes of a recipe by flat names, what the run needs with them, and whether that fits."""

    changes: Mapping[str, Any]
    need: Need
    fits: bool


def advise(recipe: Recipe, needs: Needs, room: Room) -> Advice | None:
    """The mildest changes with which a run fits, at most three; where none do, those that come nearest.

    Args:
        recipe: what is asked for.
        needs: what a recipe takes.
        room: what there is.

    Returns:
        None where it fits as it is, or where no change saves anything.
    """
    if needs(recipe).fits(room):
        return None
    levers = {name: kept for name, values in _levers(room).items() if (kept := _savers(recipe, name, values, needs))}
    nearest: Advice | None = None
    for count in range(1, MOST + 1):
        for names in combinations(levers, count):
            found = _tried(recipe, {name: levers[name][-1] for name in names}, needs, room)
            if found and found.fits:
                return _relaxed(recipe, found, levers, needs, room)
            if found and (nearest is None or _size(found) < _size(nearest)):
                nearest = found
    return nearest


def _levers(room: Room) -> dict[str, tuple[Any, ...]]:
    """With the weights kept to what the device can spare, where that has a say."""
    spare = SHARE * room.device / 2**30
    return {"memory": tuple(floor(10 * share * spare) / 10 for share in (0.9, 0.7, 0.5, 0.3)), **LEVERS}


def _savers(recipe: Recipe, name: str, values: tuple[Any, ...], needs: Needs) -> tuple[Any, ...]:
    """Values of a field that take less than the one it has, each less than the one before."""
    kept, least = [], needs(recipe)
    for value in values:
        took = _need(recipe, {name: value}, needs) if value != OPTIONS[name].of(recipe) else None
        if took and took.less(least):
            kept.append(value)
            least = took
    return tuple(kept)


def _tried(recipe: Recipe, changes: Mapping[str, Any], needs: Needs, room: Room) -> Advice | None:
    took = _need(recipe, changes, needs)
    return Advice(changes, took, took.fits(room)) if took else None


def _need(recipe: Recipe, changes: Mapping[str, Any], needs: Needs) -> Need | None:
    try:
        return needs(recipe.replace(**changes))
    except InvalidRecipe:
        return None


def _relaxed(recipe: Recipe, found: Advice, levers: Mapping[str, tuple[Any, ...]], needs: Needs, room: Room) -> Advice:
    """The same changes, each as mild as the others leave it."""
    for name in found.changes:
        values = levers[name]
        for milder in values[: values.index(found.changes[name])]:
            other = _tried(recipe, {**found.changes, name: milder}, needs, room)
            if other and other.fits:
                found = other
                break
    return found


def _size(found: Advice) -> int:
    return max(found.need.device, found.need.host)
