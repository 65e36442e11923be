"""SMAC3 (Lindauer et al. 2022) through its ask and tell, as GPTailor uses it (arXiv 2506.20480, sec. 3.2).

A random forest models the outcomes and expected improvement picks what is asked. Several stages of evidence are a
Hyperband (Li et al. 2018, eta 3); several values are scalarised by ParEGO (Knowles 2006, rho 0.05).
"""

import contextlib
import logging
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from hf_prune.blueprint import Outcome
from hf_prune.errors import InvalidRecipe
from hf_prune.search.archive import Archive
from hf_prune.search.pareto import front
from hf_prune.search.schedule import Schedule, Search
from hf_prune.search.space import Space

Code = tuple[int, ...]

ETA = 3
"""Between two budgets of the Hyperband."""
RHO = 0.05
STALE = 300
"""Proposals in a row that mean models known already, until the search ends."""
BROKEN = 1e6
"""Cost of a candidate without a finite value."""
RANDOM = 8
"""Random genomes asked beside the seeds before the forest is first fitted."""
CHALLENGERS, CLIMB = 1000, 20
"""Random codes that expected improvement is asked for, and steps of each local search from the best of them. By default
SMAC takes 10,000 and climbs without an end, which over a hundred genes costs more than the candidates do."""


def smac(space: Space, schedule: Schedule, rng: np.random.Generator) -> Search:
    """Sequential model-based search over the genes of a space that lists its `cardinalities`.

    The seeds and a few random genomes are asked at full evidence first. SMAC proposes codes of genomes (`Space.coded`
    and `Space.read`), in which every proposal meets the budget.

    Returns:
        The finalists, best first; with several values the non-dominated front.

    Raises:
        InvalidRecipe: SMAC3 is not installed, or the space does not say how many values its genes have.
    """
    if not hasattr(space, "cardinalities"):
        raise InvalidRecipe("Search smac knows the genes of --method stitch only; choose --search staged.")
    archive = Archive(space, schedule)
    starts = [*schedule.starts, *archive.fresh(lambda: space.random(rng), RANDOM)]
    told = yield from archive.ask(starts)
    if not told:
        return archive.finalists()
    objectives = len(told[0].values)
    with _optimiser(space, schedule, objectives, int(rng.integers(2**31))) as optimiser:
        for outcome in told:
            optimiser.tell(space.coded(outcome.trial.genome), outcome)
        yield from _asked(space, archive, optimiser)
    return archive.finalists() if objectives == 1 else front(archive.full.values())


def _asked(space: Space, archive: Archive, optimiser: "_Optimiser") -> Generator[Any, Any, None]:
    stale = 0
    while archive.left and stale < STALE:
        info, code = optimiser.ask()
        before, genome, stage = archive.asked, space.read(code), optimiser.stage(info)
        outcomes = yield from archive.ask([genome], archive.schedule.stages[stage])
        stale = stale + 1 if archive.asked == before else 0
        if outcomes:
            optimiser.answer(info, outcomes[0])
            if (whole := space.coded(genome)) != code:
                # The forest shall learn what was measured, not only what was proposed.
                optimiser.tell(whole, outcomes[0], stage)


class _Optimiser:
    """SMAC over codes; budgets are powers of `ETA`, one per stage."""

    def __init__(self, space: Any, schedule: Schedule, objectives: int, seed: int, folder: str) -> None:
        from ConfigSpace import ConfigurationSpace, Integer
        from smac import HyperparameterOptimizationFacade, MultiFidelityFacade, Scenario
        from smac.acquisition.maximizer import LocalAndSortedRandomSearch
        from smac.model.random_forest import RandomForest
        from smac.multi_objective.parego import ParEGO

        self.stages = len(schedule.stages)
        self.names = [f"g{i:04d}" for i, n in enumerate(space.cardinalities) if n > 1]
        self.fixed = [n < 2 for n in space.cardinalities]
        self.configurations = ConfigurationSpace(seed=seed)
        sizes = [n for n in space.cardinalities if n > 1]
        self.configurations.add([Integer(g, (0, n - 1)) for g, n in zip(self.names, sizes, strict=True)])
        several = self.stages > 1
        budgets = {"min_budget": 1, "max_budget": ETA ** (self.stages - 1)} if several else {}
        scenario = Scenario(
            self.configurations,
            objectives=[f"value {i}" for i in range(objectives)] if objectives > 1 else "value",
            deterministic=True,
            n_trials=10**9,
            seed=seed,
            output_directory=folder,
            **budgets,
        )
        facade = MultiFidelityFacade if several else HyperparameterOptimizationFacade
        more = {"multi_objective_algorithm": ParEGO(scenario, rho=RHO, seed=seed)} if objectives > 1 else {}
        more |= {"intensifier": facade.get_intensifier(scenario, eta=ETA)} if several else {}
        more["initial_design"] = facade.get_initial_design(scenario, n_configs=1)
        # The facade's own forest, on one thread: its trees are too small to wait for others.
        more["model"] = RandomForest(
            self.configurations,
            log_y=True,
            n_trees=10,
            ratio_features=1.0,
            min_samples_split=2,
            min_samples_leaf=1,
            n_jobs=1,
            seed=seed,
        )
        more["acquisition_maximizer"] = LocalAndSortedRandomSearch(
            self.configurations, challengers=CHALLENGERS, max_steps=CLIMB, seed=seed
        )
        self.facade = facade(scenario, _unused, overwrite=True, logging_level=False, **more)

    def ask(self) -> tuple[Any, Code]:
        """What SMAC wants to know, and its code."""
        info = self.facade.ask()
        values = iter(int(info.config[name]) for name in self.names)
        return info, tuple(0 if fixed else next(values) for fixed in self.fixed)

    def stage(self, info: Any) -> int:
        """The stage that a budget stands for."""
        return self.stages - 1 if info.budget is None else round(np.log(info.budget) / np.log(ETA))

    def tell(self, code: Code, outcome: Outcome, stage: int | None = None) -> None:
        """Something it has not asked for; at full evidence unless told otherwise."""
        from ConfigSpace import Configuration
        from smac.runhistory.dataclasses import TrialInfo

        genes = [g for g, fixed in zip(code, self.fixed, strict=True) if not fixed]
        configuration = Configuration(self.configurations, values=dict(zip(self.names, genes, strict=True)))
        budget = float(ETA ** (self.stages - 1 if stage is None else stage)) if self.stages > 1 else None
        self.answer(TrialInfo(configuration, seed=0, budget=budget), outcome)

    def answer(self, info: Any, outcome: Outcome) -> None:
        """The values of what it asked."""
        from smac.runhistory.dataclasses import TrialValue

        costs = [v if np.isfinite(v) else BROKEN for v in outcome.values]
        self.facade.tell(info, TrialValue(cost=costs if len(costs) > 1 else costs[0], time=0.0), save=False)


def _unused(config: Any, seed: int = 0, budget: float | None = None) -> float:
    """SMAC wants a function with these arguments, though nobody calls it where one asks and tells."""
    raise AssertionError("SMAC called the target function")


@contextlib.contextmanager
def _optimiser(space: Space, schedule: Schedule, objectives: int, seed: int) -> Iterator[_Optimiser]:
    """SMAC with its files in a folder that goes away, silent, and without a trace in numpy's global generator."""
    state, level = np.random.get_state(), logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with tempfile.TemporaryDirectory() as folder:
            yield _Optimiser(space, schedule, objectives, seed, folder)
    except ImportError as e:
        raise InvalidRecipe(
            f'Search smac needs SMAC3 ({e.name} is missing); install it with pip install "hf-prune[smac]", or choose '
            "--search staged."
        ) from None
    finally:
        logging.disable(level)
        np.random.set_state(state)
