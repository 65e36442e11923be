"""What a search over widths may spend: parameters, or time, whose table is measured on this device.

The time of a request is prefill of its prompt and decoding of its answer, at batch 1. A few layers of equal width are
timed as a model, every width in turn, so that noise hits all alike, and the quickest round counts, since noise only
adds; what a level saves there, divided by the layers, is what it saves in one. Savings of the two halves together are
never more than what a model without any half saves.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_prune.atomic_files import write_text
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part
from hf_prune.errors import InvalidRecipe
from hf_prune.evaluation import speed
from hf_prune.recovery.levels import HALVES

LAYERS = 8
"""Of a model that is timed."""
REPEATS = 9
PHASES = ("request", "prefill", "decode")


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


Costs = tuple[tuple[float, ...], ...]


def width_budget(job: Any) -> tuple[Costs, float | None]:
    """What every level of every half costs (attentions, then MLPs), and the most of the sum; None for a free size."""
    depth, levels, parent = job.parent.depth, job.library(), job.parent
    if job.recipe.size.latency is not None:
        table = latencies(job).request
        layers = depth * (table.attention[0] + table.mlp[0])
        limit = layers - (1 - job.recipe.size.latency) * table.dense
        if limit < 0:
            least = 1 - layers / table.dense
            raise InvalidRecipe(f"Without its layers the model still takes {least:.0%} of its time on this device; ask "
                                f"for more than that with --latency, not {job.recipe.size.latency:g}.")  # fmt: skip
        return (table.attention,) * depth + (table.mlp,) * depth, limit
    sizes = [levels.sizes(parent, i) for i in range(depth)]
    costs = tuple(tuple(map(float, s[half])) for half in HALVES for s in sizes)
    removed = job.target.removed_ratio * parent.parameters
    return costs, sum(c[0] for c in costs) - removed if job.target.remove else None


def latency_report(job: Any, winner: Blueprint, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Shares of the dense model's time: asked, and by phase predicted from the table and measured on the finished
    model."""
    if job.recipe.size.latency is None:
        return None
    table, depth = latencies(job), job.parent.depth
    predicted = {phase: getattr(table, phase).predicted(winner, depth) for phase in PHASES}
    return retimed({"asked": job.recipe.size.latency, "predicted": predicted, "table": asdict(table)}, measured)


def retimed(latency: Mapping[str, Any] | None, measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same beside what `speed.measure` found now for the finished model, and the request that was timed."""
    if latency is None:
        return None
    dense, pruned = (request_seconds(measured, name) for name in ("dense", "pruned"))
    request = {"prompt_tokens": measured["prefill_tokens"], "answer_tokens": measured["decode_tokens"]}
    return {**latency, **request, "measured": {phase: pruned[phase] / dense[phase] for phase in PHASES}}


def latencies(job: Any) -> Latencies:
    """The table of this run, measured once; a resumed run reads it, so that its budget stays what it was."""
    path = job.home / "latencies.json"
    if not path.is_file():
        write_text(path, json.dumps(asdict(_measured(job))))
    return Latencies.from_dict(json.loads(path.read_text(encoding="utf-8")))


def request_seconds(measured: Mapping[str, Any], name: str) -> dict[str, float]:
    """Of a model in what `speed.measure` returns, by phase."""
    seconds = {p: measured[f"{p}_tokens"] / measured[name][f"{p}_tokens_per_s"] for p in ("prefill", "decode")}
    return {"request": sum(seconds.values()), **seconds}


def _measured(job: Any) -> Latencies:
    levels, count = job.library(), min(LAYERS, job.parent.depth)
    library = levels.digest
    timed = {"dense": _equal(job, count), "bare": _equal(job, count, library, attention=GONE, mlp=GONE)}
    for half, level in _steps(levels):
        timed[f"{half} {level}"] = _equal(job, count, library, **{half: level})
    models = {"whole": job.bank.model, **{name: job.assembled(blueprint) for name, blueprint in timed.items()}}
    found = speed.measure(models, np.random.default_rng(job.recipe.seed), repeats=REPEATS, of_rounds=min)
    seconds = {name: request_seconds(found, name) for name in models}
    return Latencies(*(_phase(levels, count, {n: s[p] for n, s in seconds.items()}) for p in ("prefill", "decode")))


def _phase(levels: Any, count: int, seconds: Mapping[str, float]) -> Phase:
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


def _steps(levels: Any) -> list[tuple[str, int]]:
    """Every half at every level that is narrower than dense."""
    return [(half, level) for half in HALVES for level in (*range(1, levels.count(half)), GONE)]


def _added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _equal(job: Any, count: int, library: str | None = None, attention: int = 0, mlp: int = 0) -> Blueprint:
    """The first layers, with the halves of each at a level."""
    specs = (
        LayerSpec((Part(0, i),), attn_level=0 if i == 0 and attention == GONE else attention, mlp_level=mlp,
                  library=library).canonical()
        for i in range(count)
    )  # fmt: skip
    return Blueprint(job.sources, tuple(specs))
