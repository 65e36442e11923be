"""What a search asks: the meaning of one space's genomes, and their values."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_prune.blueprint import Blueprint, Fidelity, Genome, Part, Source, Trial
from hf_prune.evaluation.objectives import Measures, values
from hf_prune.methods.stitch import Stack
from hf_prune.search import Space


@dataclass(frozen=True, eq=False)
class Scorer:
    """The meaning of one space's genomes, and their values by column.

    Args:
        space: says what genomes decode to.
        sources: what blueprints number.
        measure: measures of blueprints on some evidence, in one sweep.
        columns: names of the values, see `objectives.values`.
        items: file that keeps which items each candidate answered rightly.
        mix: weights of the parents in every layer, where the space knows one model only.
        writable: whether a config can say which layers of a blueprint are left; others are as bad as it gets.
    """

    space: Space
    sources: tuple[Source, ...]
    measure: Callable[[Sequence[Blueprint], Fidelity], Sequence[Measures]]
    columns: tuple[str, ...]
    items: Path
    mix: tuple[float, ...] = (1.0,)
    writable: Callable[[Blueprint], bool] = lambda blueprint: True

    def blueprint(self, genome: Genome) -> Blueprint:
        """The model a genome stands for."""
        model = self.space.decode(genome)
        if isinstance(model, Stack):
            return Blueprint(self.sources, *model).canonical()
        layers = tuple(replace(s, parts=self._mixed(s.parts)) for s in model) if self.mix != (1.0,) else model
        first = next(k for k, w in enumerate(self.mix) if w)
        return Blueprint(self.sources, layers, first, first).canonical()

    def _mixed(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(Part(k, p.layer, p.weight * w) for p in parts for k, w in enumerate(self.mix) if w)

    def key(self, trial: Trial) -> tuple[str, Fidelity]:
        """What identifies a trial in the journal: the model, not its spelling, and the evidence."""
        return self.blueprint(trial.genome).digest, trial.fidelity

    def evaluate(self, trials: Sequence[Trial]) -> list[tuple[float, ...]]:
        """Values of trials, by column; trials of one fidelity share a sweep."""
        found: dict[int, tuple[float, ...]] = {}
        for fidelity in dict.fromkeys(t.fidelity for t in trials):
            numbers = [i for i, t in enumerate(trials) if t.fidelity == fidelity]
            blueprints = {i: self.blueprint(trials[i].genome) for i in numbers}
            # What no config can say, the search leaves.
            found |= {i: (math.inf,) * len(self.columns) for i, b in blueprints.items() if not self.writable(b)}
            blueprints = {i: b for i, b in blueprints.items() if i not in found}
            measured = self.measure(list(blueprints.values()), fidelity) if blueprints else ()
            keep_items(self.items, [b.digest for b in blueprints.values()], fidelity, measured)
            found |= {i: values(m, self.columns) for i, m in zip(blueprints, measured, strict=True)}
        return [found[i] for i in range(len(trials))]


def keep_items(path: Path, digests: Sequence[str], fidelity: Fidelity, measured: Sequence[Measures]) -> None:
    """Append a line per candidate, before the journal says that it was scored; a text of 0 and 1 per task."""
    rows = [
        {
            "digest": digest,
            "fidelity": [fidelity.items, fidelity.first_item],
            "right": {t.task: "".join("01"[bool(x)] for x in t.correct) for t in m.tasks},
        }
        for digest, m in zip(digests, measured, strict=True)
        if m.tasks
    ]
    if rows:
        with path.open("a", encoding="utf-8") as file:
            # A line torn by a crash must not spoil the next one.
            file.write("".join(f"\n{json.dumps(row)}" for row in rows))
