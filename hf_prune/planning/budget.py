"""Fits a run into a time: what it may ask, fit, train and measure, given how long everything takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_prune.methods import METHODS
from hf_prune.methods.method import Facts
from hf_prune.planning.counts import evaluations
from hf_prune.planning.forecast import Forecast, forecast
from hf_prune.planning.rates import Rates, Shape
from hf_prune.recipe import OPTIONS, Recipe
from hf_prune.search import SEARCHERS

AIM = 600.0
"""Seconds that default budgets aim at where no time is asked for; what is asked for by itself comes on top."""
MARGIN = 0.85
"""Share of a given time that is planned with."""
PATIENCE = 1.5
"""How much longer than forecast a run may take where no time is asked for."""
LOOKS = 12
"""Halvings in which a budget is sought."""
Forecaster = Callable[[Recipe], Forecast]


@dataclass(frozen=True, slots=True)
class Lever:
    """Fields that one share of the time decides.

    name: what it pays for. share: of what is left when all have their least, in relation to the others' shares.
    least: the fields' smallest useful values.
    """

    name: str
    share: float
    least: Mapping[str, int]


LEVERS = (
    Lever("repair", 0.25, {"repair_finalists": 1, "repair_sequences": 32}),
    Lever("search", 0.35, {"evaluations": 32}),
    Lever("heal", 0.2, {"heal": 0}),
    Lever("baselines", 0.1, {"baselines": 1}),
    Lever("report", 0.1, {"report_sequences": 8, "task_items": 20}),
)
WORDS = {
    "evaluations": "{0:,} of {1:,} evaluations of the search",
    "repair_finalists": "{0} of {1} finalists repaired",
    "repair_sequences": "repairs fitted on {0} of {1} windows",
    "heal": "{0:,} of {1:,} tokens of healing",
    "report_sequences": "a report on {0} of {1} windows",
    "task_items": "{0} of {1} items per task",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may do.

    recipe: with every budget decided and no time. seconds: asked for; None where nobody asked. forecast: of the recipe.
    changes: flat names of the fields that were lowered, and their values. left_out: the same in words.
    """

    recipe: Recipe
    seconds: float | None
    forecast: Forecast
    changes: Mapping[str, Any]
    left_out: tuple[str, ...]


def fit(recipe: Recipe, trials: int, told: Forecaster) -> Budget:
    """Lower the budgets of a recipe until it is done in its time.

    First everything has its least; what is left of the time goes to repair, search, healing, baselines and the report
    by their shares, and what one of them does not need to the others. Where no time is asked for, fields that differ
    from their defaults are left alone.

    Args:
        recipe: with or without a time.
        trials: of its search, as many as it would have by itself.
        told: how long another recipe of this kind takes.
    """
    given, wanted = recipe.machine.time, recipe.replace(time=None)
    whole = told(wanted)
    if given == 0:
        return Budget(wanted, None, whole, {}, ())
    levers = _levers(wanted, trials, given is None)
    goal = AIM if given is None else MARGIN * given
    if whole.total <= goal or not levers:
        return Budget(wanted, given or None, whole, {}, ())
    rivals = _rivals(wanted)
    wishes = _wishes(wanted, trials)
    costs = {b: told(wanted.replace(baselines=(b,))).seconds.get("baselines", 0.0) for b in rivals}
    cheap = sorted(rivals, key=costs.__getitem__)

    def at(levels: Mapping[str, float]) -> dict[str, Any]:
        """Fields where every lever stands at a level between 0 (its least) and 1 (all that is wished for)."""
        found: dict[str, Any] = {}
        for lever in levers:
            for name, least in lever.least.items():
                found[name] = _between(least, wishes[name], levels.get(lever.name, 0.0))
        if "baselines" in found:
            kept = cheap[: found["baselines"]]
            found["baselines"] = tuple(b for b in rivals if b in kept)
        return found

    levels = _filled(levers, goal, lambda levels: told(wanted.replace(**at(levels))).total)
    fields = {n: v for n, v in at(levels).items() if v != (wishes[n] if n != "baselines" else rivals)}
    fitted = wanted.replace(**fields)
    return Budget(fitted, given, told(fitted), fields, _left_out(fields, wishes, wanted))


def budget_of(recipe: Recipe, facts: Facts, shape: Shape, rates: Rates) -> Budget:
    """What a run on such a model may do on such a machine."""
    return fit(recipe, evaluations(recipe, facts), lambda other: forecast(other, facts, shape, rates))


def _levers(recipe: Recipe, trials: int, automatic: bool) -> list[Lever]:
    """Those that this run has."""
    asked = recipe.changed() if automatic else {}
    found = []
    for lever in LEVERS:
        least = {name: n for name, n in lever.least.items() if name not in asked}
        has = {
            "repair": recipe.repair.enabled,
            "search": _goes_on(recipe) and trials > lever.least.get("evaluations", 0),
            "heal": recipe.heal.tokens > 0,
            "baselines": len(_rivals(recipe)) > 1,
            "report": True,
        }
        if least and has[lever.name]:
            found.append(Lever(lever.name, lever.share, least))
    return found


def _goes_on(recipe: Recipe) -> bool:
    """Whether the search takes as many trials as it may have."""
    return SEARCHERS[recipe.search.searcher].rounds is None and not recipe.size.drop


def _rivals(recipe: Recipe) -> tuple[str, ...]:
    """Baselines of the recipe that its method has."""
    return tuple(b for b in recipe.search.baselines if b in METHODS[recipe.method].baselines)


def _wishes(recipe: Recipe, trials: int) -> dict[str, int]:
    known = {name: OPTIONS[name].of(recipe) for lever in LEVERS for name in lever.least}
    return {**known, "evaluations": trials, "baselines": len(_rivals(recipe))}


def _between(least: int, wish: int, level: float) -> int:
    """Of a field; half of the way is the geometric mean, so that much is not all or nothing."""
    low = min(max(least, 1), wish)
    value = round(low * (wish / low) ** level) if wish else 0
    return value if level > 0 else min(least, wish)


def _filled(levers: list[Lever], goal: float, cost: Callable[[Mapping[str, float]], float]) -> dict[str, float]:
    """Levels of all levers: each gets its share of what is left, and the last ones what others have left over."""
    levels: dict[str, float] = {}
    needs = {v.name: max(0.0, cost({v.name: 1.0}) - cost({})) for v in levers}
    # Those that need least in relation to their share first: what they leave is the others'.
    for number, lever in enumerate(order := sorted(levers, key=lambda v: needs[v.name] / v.share)):
        left = goal - cost(levels)
        share = left * lever.share / sum(v.share for v in order[number:])
        levels[lever.name] = _most(share, lambda level, name=lever.name: cost({**levels, name: level}) - cost(levels))
    return levels


def _most(seconds: float, cost: Callable[[float], float]) -> float:
    """The highest level that costs no more."""
    if seconds <= 0:
        return 0.0
    if cost(1.0) <= seconds:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(LOOKS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= seconds else (low, middle)
    return low


def _left_out(fields: Mapping[str, Any], wishes: Mapping[str, int], recipe: Recipe) -> tuple[str, ...]:
    said = [WORDS[name].format(value, wishes[name]) for name, value in fields.items() if name in WORDS]
    rivals = _rivals(recipe)
    if gone := [b for b in rivals if b not in fields.get("baselines", rivals)]:
        said.append(f"without the baselines {', '.join(gone)}")
    return tuple(said)
