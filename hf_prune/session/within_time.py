"""A run's budgets, decided by what this machine can do in the time there is."""

from dataclasses import replace

from hf_prune.planning import Budget, Shape, budget_of, facts_of, rates_here, reading_rates
from hf_prune.session.evidence import Evidence
from hf_prune.session.session import Session
from hf_prune.session.timetable import Timetable


def within_time(session: Session) -> Session:
    """The run with its budgets decided: by what it takes here, or as an earlier attempt had them."""
    asked, inputs = session.recipe, session.inputs
    base, dtype = inputs.base, str(session.dtype).removeprefix("torch.")
    size = base.parameters * base.dtype.itemsize
    outside = base.parameters - base.depth * base.layer_parameters
    shape = Shape.of(base.config.to_dict(), base.depth, base.layer_parameters, outside, size)

    def decide() -> Budget:
        rates = rates_here(shape, asked.data.length, str(session.device), dtype)
        rates = reading_rates(asked, session.need, shape, rates)
        return budget_of(asked, facts_of(asked, base.depth, inputs.target.remove, mixture=base.mixture), shape, rates)

    table = Timetable.open(asked, session.workdir.time, session.clock, decide)
    inputs, before = replace(inputs, recipe=table.budget.recipe), session.evidence
    evidence = Evidence.of(inputs, before.entries, before.over)
    return replace(session, inputs=inputs, evidence=evidence, timetable=table)
