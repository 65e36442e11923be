"""What a search over widths may spend: parameters, or time, whose table is measured on this device.

The time of a request is prefill of its prompt and decoding of its answer, at batch 1. A few layers of equal width are
timed as a model, every width in turn, so that noise hits all alike, and the quickest round counts, since noise only
adds; what a level saves there, divided by the layers, is what it saves in one. Savings of the two halves together are
never more than what a model without any half saves.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part, Source
from hf_prune.errors import InvalidRecipe
from hf_prune.evaluation import speed
from hf_prune.recovery.levels import HALVES, Levels

LAYERS = 8
"""Of a model that is timed."""
REPEATS = 9
PHASES = ("request", "prefill", "decode")


Costs = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds: of the whole dense model, and what a half costs at each level beyond its having gone (the last, 0)."""

    dense: float
    attention: tuple[float, ...]
    mlp: tuple[float, ...]

    def predicted(self, blueprint: Blueprint, depth: int) -> float:
        """Share of the dense model's time; the layers' levels index those of the library."""
        spent = sum(self.attention[s.attn_level] + self.mlp[s.mlp_level] for s in blueprint.layers)
        return 1 + (spent - depth * (self.attention[0] + self.mlp[0])) / self.dense


@dataclass(frozen=True, slots=True)
class Latencies:
    """The columns of the table: prefill of a prompt and decoding of an answer."""

    prefill: Phase
    decode: Phase

    @property
    def request(self) -> Phase:
        """Both."""
        one, other = self.prefill, self.decode
        return Phase(one.dense + other.dense, _added(one.attention, other.attention), _added(one.mlp, other.mlp))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Latencies":
        """Inverse of `asdict`, through JSON too."""
        columns = (raw["prefill"], raw["decode"])
        return cls(*(Phase(c["dense"], tuple(c["attention"]), tuple(c["mlp"])) for c in columns))


def within(table: Phase, depth: int, share: float) -> tuple[Costs, float]:
    """What every level of every half of `depth` layers costs (attentions, then MLPs), and the most of the sum that
    keeps `share` of the dense model's time.

    Raises:
        InvalidRecipe: the rest of the model takes longer than that.
    """
    layers = depth * (table.attention[0] + table.mlp[0])
    limit = layers - (1 - share) * table.dense
    if limit < 0:
        least = 1 - layers / table.dense
        raise InvalidRecipe(
            f"Without its layers the model still takes {least:.0%} of its time on this device; ask for more than that "
            f"with --latency, not {share:g}."
        )
    return (table.attention,) * depth + (table.mlp,) * depth, limit


def foretold(table: Latencies, asked: float, blueprint: Blueprint, depth: int) -> dict[str, Any]:
    """Shares of the dense model's time: asked, and by phase predicted from the table."""
    predicted = {phase: getattr(table, phase).predicted(blueprint, depth) for phase in PHASES}
    return {"asked": asked, "predicted": predicted, "table": asdict(table)}


def retimed(latency: Mapping[str, Any] | None, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same beside what `speed.measure` found for the finished model, and the request that was timed."""
    if latency is None:
        return None
    dense, pruned = (request_seconds(measured, name) for name in ("dense", "pruned"))
    request = {"prompt_tokens": measured["prefill_tokens"], "answer_tokens": measured["decode_tokens"]}
    return {**latency, **request, "measured": {phase: pruned[phase] / dense[phase] for phase in PHASES}}


def request_seconds(measured: Mapping[str, Any], name: str) -> dict[str, float]:
    """Of a model in what `speed.measure` returns, by phase."""
    seconds = {p: measured[f"{p}_tokens"] / measured[name][f"{p}_tokens_per_s"] for p in ("prefill", "decode")}
    return {"request": sum(seconds.values()), **seconds}


def time_levels(
    levels: Levels,
    depth: int,
    sources: tuple[Source, ...],
    assembled: Callable[[Blueprint], Any],
    whole: Any,
    seed: int,
) -> Latencies:
    """Measure the table on this device.

    Args:
        levels: the library whose levels are timed.
        depth: layers of the dense model.
        sources: of the blueprints that are timed.
        assembled: makes a model of one.
        whole: the dense model.
        seed: decides the prompt.
    """
    count, library = min(LAYERS, depth), levels.digest
    timed = {
        "dense": _equal(sources, count),
        "bare": _equal(sources, count, library, attention=GONE, mlp=GONE),
    }
    for half, level in _steps(levels):
        timed[f"{half} {level}"] = _equal(sources, count, library, **{half: level})
    models = {"whole": whole, **{name: assembled(blueprint) for name, blueprint in timed.items()}}
    found = speed.measure(models, np.random.default_rng(seed), repeats=REPEATS, of_rounds=min)
    seconds = {name: request_seconds(found, name) for name in models}
    return Latencies(*(_phase(levels, count, {n: s[p] for n, s in seconds.items()}) for p in ("prefill", "decode")))


def _phase(levels: Levels, count: int, seconds: Mapping[str, float]) -> Phase:
    """One column, from what the models took."""
    saved: dict[str, list[float]] = {half: [0.0] for half in HALVES}
    for half, level in _steps(levels):
        # The first attention stays, since the cache takes its length from it.
        layers = count - (half == "attention" and level == GONE)
        saved[half].append((seconds["dense"] - seconds[f"{half} {level}"]) / layers)
    # A narrower half that looks slower is noise.
    attention, mlp = (np.maximum.accumulate(saved[half]) for half in HALVES)
    both, apart = seconds["dense"] - seconds["bare"], (count - 1) * attention[-1] + count * mlp[-1]
    scale = min(1.0, max(0.0, both) / apart) if apart else 0.0
    return Phase(seconds["whole"], *(tuple((scale * (s[-1] - s)).tolist()) for s in (attention, mlp)))


def _steps(levels: Levels) -> list[tuple[str, int]]:
    """Every half at every level that is narrower than dense."""
    return [(half, level) for half in HALVES for level in (*range(1, levels.count(half)), GONE)]


def _added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _equal(
    sources: tuple[Source, ...], count: int, library: str | None = None, attention: int = 0, mlp: int = 0
) -> Blueprint:
    """The first layers, with the halves of each at a level."""
    specs = []
    for i in range(count):
        # The first attention never goes.
        first = 0 if i == 0 and attention == GONE else attention
        specs.append(LayerSpec((Part(0, i),), attn_level=first, mlp_level=mlp, library=library).canonical())
    return Blueprint(sources, tuple(specs))
