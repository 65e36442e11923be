"""What a model of many widths is compared with at equal size, and where its search begins.

Every layer as wide as the others, by second order (as ZipLM, arXiv 2302.04089, without its search), by Wanda's scores
(arXiv 2306.11695) and by magnitude; and the levels of the least sum of errors of single halves, without evolution.
"""

from collections.abc import Generator
from dataclasses import replace

from hf_prune.blueprint import Blueprint, Genome
from hf_prune.evaluation.objectives import values
from hf_prune.events import Advanced, Event, Stage, Tell, watched
from hf_prune.recovery.latency import latencies
from hf_prune.recovery.levels import HALVES, Kind
from hf_prune.session.clock import Clock
from hf_prune.session.found import Rival
from hf_prune.session.job import Job
from hf_prune.session.journal import Journal

LABELS = {
    "uniform": "uniform widths, second order",
    "errors": "least sum of errors, no evolution",
    "wanda": "uniform widths, Wanda scores",
    "magnitude": "uniform widths, magnitude",
}
KINDS: dict[str, Kind] = {"wanda": "wanda", "magnitude": "magnitude"}


def libraries(job: Job) -> Generator[Event, None, None]:
    """Make the level library of the search and those that baselines have of their own; time it where time counts."""
    kinds: list[Kind] = ["obs", *(KINDS[n] for n in job.recipe.search.baselines if n in KINDS and job.target.remove)]
    steps = job.parent.depth * len(kinds)

    def work(tell: Tell) -> None:
        for number, kind in enumerate(kinds):
            before = number * job.parent.depth
            job.library(kind, lambda done, total, before=before: tell(Advanced("library", before + done, steps)))

    yield from watched(work)
    if job.recipe.size.latency is not None:
        yield Stage("latency", "prefill and decode at every level, on this device")
        latencies(job)


def narrowed(job: Job, journal: Journal, remove: int, clock: Clock) -> Generator[Event, None, tuple[Rival, ...]]:
    """The baselines that the recipe names, each a single model; none beside a front."""
    names = [n for n in LABELS if n in job.recipe.search.baselines]
    if not remove or not names:
        return ()
    yield Stage("baselines", ", ".join(names))
    blueprints = {name: _blueprint(job, name) for name in names}
    measured = job.evaluator.evaluate(list(blueprints.values()), job.full)
    clock.lap("baselines")
    return tuple(
        Rival(name, blueprint, (), values(m, job.columns), LABELS[name])
        for (name, blueprint), m in zip(blueprints.items(), measured, strict=True)
    )


def width_starts(job: Job) -> tuple[Genome, ...]:
    """Uniform widths, and the least sums of errors: as they are, and as shares of what each half puts out."""
    return tuple(dict.fromkeys((job.widths.uniform(), *(job.widths.cheapest(_losses(job, s)) for s in (True, False)))))


def _blueprint(job: Job, name: str) -> Blueprint:
    space = job.widths
    if name in KINDS:
        space = replace(space, library=job.library(KINDS[name]).digest)
    genome = space.cheapest(_losses(job, True)) if name == "errors" else space.uniform()
    return Blueprint(job.sources, space.decode(genome)).canonical()


def _losses(job: Job, relative: bool) -> list[list[float]]:
    """What every level of every half costs, [halves][levels]."""
    levels = job.library()
    found = [levels.losses(i, half) for half in HALVES for i in range(job.parent.depth)]
    return [(x / x[-1].clamp_min(1e-30) if relative else x).tolist() for x in found]
