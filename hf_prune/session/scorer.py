"""What a search asks: the meaning of one space's genomes, and their values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_prune.assembly.assemble import alive
from hf_prune.blueprint import Blueprint, Fidelity, Genome, Part, Trial
from hf_prune.evaluation.objectives import Measures, values
from hf_prune.methods.stitch import Stack
from hf_prune.models.numbering import is_writable
from hf_prune.session.items import keep_items


@dataclass(frozen=True, eq=False)
class Scorer:
    """What `drive` asks: the meaning of one space's genomes and their values in a job's columns."""

    job: Any
    space: Any
    mix: tuple[float, ...] = (1.0,)
    """Weights of the parents in every layer, where the space knows one model only."""

    def blueprint(self, genome: Genome) -> Blueprint:
        """The model a genome stands for."""
        model = self.space.decode(genome)
        if isinstance(model, Stack):
            return Blueprint(self.job.sources, *model).canonical()
        layers = tuple(replace(s, parts=self._mixed(s.parts)) for s in model) if self.mix != (1.0,) else model
        first = next(k for k, w in enumerate(self.mix) if w)
        return Blueprint(self.job.sources, layers, first, first).canonical()

    def _mixed(self, parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(Part(k, p.layer, p.weight * w) for p in parts for k, w in enumerate(self.mix) if w)

    def key(self, trial: Trial) -> tuple[str, Fidelity]:
        """What identifies a trial in the journal: the model, not its spelling, and the evidence."""
        return self.blueprint(trial.genome).digest, trial.fidelity

    def evaluate(self, trials: Sequence[Trial]) -> list[tuple[float, ...]]:
        """Values of trials, in the order of the job's columns; trials of one fidelity share a sweep."""
        found: dict[int, tuple[float, ...]] = {}
        for fidelity in dict.fromkeys(t.fidelity for t in trials):
            numbers = [i for i, t in enumerate(trials) if t.fidelity == fidelity]
            blueprints = {i: self.blueprint(trials[i].genome) for i in numbers}
            # What no config can say is as bad as it gets, so the search leaves it.
            found |= {i: (math.inf,) * len(self.job.columns) for i, b in blueprints.items() if not self.writable(b)}
            blueprints = {i: b for i, b in blueprints.items() if i not in found}
            measured = self._measured(list(blueprints.values()), fidelity) if blueprints else ()
            keep_items(self.job.items, [b.digest for b in blueprints.values()], fidelity, measured)
            found |= {i: values(m, self.job.columns) for i, m in zip(blueprints, measured, strict=True)}
        return [found[i] for i in range(len(trials))]

    def writable(self, blueprint: Blueprint) -> bool:
        """Whether a config can say which layers are left; almost always."""
        base = self.job.parents[0]
        return is_writable(base.config, base.family, [s.anchor.layer for s in alive(blueprint).layers])

    def _measured(self, blueprints: Sequence[Blueprint], fidelity: Fidelity) -> Sequence[Measures]:
        if not fidelity.repair and not fidelity.heal_tokens:
            return self.job.evaluator.evaluate(blueprints, fidelity)
        return [self._restored(blueprint, fidelity) for blueprint in blueprints]

    def _restored(self, blueprint: Blueprint, fidelity: Fidelity) -> Measures:
        """Measured after a repair, a training, or one after the other."""
        job = self.job
        if fidelity.repair:
            blueprint = job.repaired(blueprint, fidelity.repair).blueprint
        if fidelity.heal_tokens:
            rows = slice(fidelity.start, fidelity.start + fidelity.sequences)
            kl, nll = job.training_aware.scores(blueprint, fidelity.heal_tokens, rows)
            parameters = job.evaluator.parameters(blueprint)
            measured = Measures(kl, nll, math.nan, math.nan, parameters, finite=math.isfinite(kl))
        else:
            measured = job.evaluator.evaluate([blueprint], fidelity)[0]
        for spec in blueprint.layers:
            job.bank.forget(spec)
        return measured
