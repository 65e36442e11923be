"""The table of contents: from a base's name to a published smaller model.

`compress` yields events and owns no loop but the order of stages; whoever calls it shows them. A run lives in
`OUTPUT.run` (the journal) until the result is complete under its final name, so an interrupted run is resumed by the
same call and never evaluates a candidate twice.
"""

import functools
import json
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import hub
from hf_prune.assembly.assemble import quiet, write
from hf_prune.assembly.certificate import certify
from hf_prune.atomic_files import copied, staged
from hf_prune.blueprint import Blueprint, Fidelity, Genome, Outcome, Trial
from hf_prune.errors import HfPruneError, InvalidRecipe
from hf_prune.evaluation.dense import block_distance, block_influence
from hf_prune.events import Assembled, Event, Finished, Pushed, Reported, Stage, Started
from hf_prune.models.auto_classes import FILE
from hf_prune.plan import evaluations
from hf_prune.recipe import Recipe
from hf_prune.report.compose import describe, scored
from hf_prune.report.statistics import spearman
from hf_prune.search import SEARCHERS, Schedule, Scores, drive, finals, focused
from hf_prune.session.baselines import in_full, stitched, warm_starts
from hf_prune.session.clock import Clock
from hf_prune.session.found import LABELS, Found, Rival
from hf_prune.session.front import front_of, picked
from hf_prune.session.job import FINAL_STAGES, Job, open_job
from hf_prune.session.journal import Journal
from hf_prune.session.restore import healed, repaired, tuned
from hf_prune.session.width_baselines import libraries, narrowed, width_starts

UNTRAINED = ("similarity", "kl_similarity", "gelaco_v1")
"""Objectives that a trained candidate is not measured by."""
CERTIFIED = (2, 64)
"""Windows and tokens per window that the reload certificate compares."""
RANDOM_DRAWS = 5
FINALISTS = 16
SCREENING_TOKENS = 1000
BATCH = 2048
"""Most candidates of one sweep: many, because they share prefixes; the journal is written after each sweep."""


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run."""

    folder: Path
    report: dict[str, Any]
    url: str | None = None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The smaller model, loaded by stock transformers."""
        with quiet():
            return AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto")

    @property
    def front(self) -> list[dict[str, Any]] | None:
        """The Pareto front of a `nsga2` run: size, quality and digest of every member."""
        return self.report.get("front")

    def save_pretrained(self, folder: str | Path) -> Path:
        """Copy the finished folder (weights, tokenizer, card, figures, blueprint, journal).

        Raises:
            InvalidRecipe: the target exists.
        """
        return Path(copied(self.folder, Path(folder)))

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = True,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
    ) -> str:
        """Publish the folder as it is and return the URL; a repeat changes nothing."""
        done = hub.push(
            self.folder, repo_id, private=private, revision=revision, create_pr=create_pr, commit_message=commit_message
        )
        return done.url


def run(recipe: Recipe) -> Result:
    """`compress` without watching."""
    for event in compress(recipe):
        if isinstance(event, Finished):
            return Result(Path(event.folder), event.report, event.url)
    raise AssertionError("compress ended without Finished")


def compress(recipe: Recipe) -> Iterator[Event]:
    """Everything, in order: pull, calibrate, baselines, search, select, repair, assemble, heal, report, card, push.

    Raises:
        HfPruneError: its subclasses say what is wrong and what to do; nothing half-written is left behind.
    """
    output = Path(recipe.output)
    report = finished(recipe, output)
    if report is None:
        report = yield from _make(recipe, output)
    else:
        yield Stage("done", f"{output} already holds the result of this recipe")
    url = None
    if recipe.push_to:
        yield Stage("push", recipe.push_to)
        pushed = hub.push(
            output,
            recipe.push_to,
            private=not recipe.public,
            create_pr=recipe.create_pr,
            commit_message=recipe.commit_message,
        )
        url = pushed.url
        yield Pushed(pushed.url, pushed.commit, pushed.changed)
    yield Finished(str(output), report, url)


def finished(recipe: Recipe, output: Path) -> dict[str, Any] | None:
    """The report of a result of this very recipe; None when there is nothing yet."""
    if not output.exists():
        return None
    report = output / "report.json"
    if report.is_file():
        found = json.loads(report.read_text(encoding="utf-8"))
        if found.get("recipe_digest") == recipe.digest:
            return found
    if not recipe.overwrite:
        raise InvalidRecipe(
            f"{output} exists and is not the result of this recipe; choose another --output or pass --overwrite."
        )
    return None


def _make(recipe: Recipe, output: Path) -> Generator[Event, None, dict[str, Any]]:
    clock = Clock()
    yield Stage("pull", recipe.base)
    job = open_job(recipe)
    clock.lap("pull")
    trials = evaluations(recipe, job.parent.depth, job.target.remove)
    yield Started(
        recipe, str(job.parent.source), job.parent.depth, job.goal, trials, job.columns, job.parent.parameters
    )
    yield Stage("calibrate", ", ".join(job.evidence["search"].origin))
    job.evaluator  # noqa: B018 - the dense reference is run here, under its own stage
    clock.lap("calibrate")
    job.home.mkdir(parents=True, exist_ok=True)
    if recipe.method.startswith("width"):
        yield Stage("library", f"levels of {job.parent.depth} layers on at most {recipe.library_sequences} windows")
        yield from libraries(job)
        clock.lap("library")
    with Journal.open(job.home / "journal.jsonl", job.header()) as journal:
        found = yield from _search(job, journal, trials, clock)
        report = yield from finish(job, found, output, clock, functools.partial(describe, journal))
    shutil.rmtree(job.home, ignore_errors=True)
    return report


def finish(
    job: Job, found: Found, output: Path, clock: Clock, document: Callable[..., Generator[Event, None, dict[str, Any]]]
) -> Generator[Event, None, dict[str, Any]]:
    """From a cut to a folder: repair, write, certify, heal, measure and describe; the final name appears last.

    Args:
        job: the run.
        found: what is to be built.
        output: the folder's final name.
        clock: tells the stages' times.
        document: writes the report and all that lies beside the weights.
    """
    if job.recipe.repair:
        found = yield from repaired(job, found)
        clock.lap("repair")
    yield Stage("assemble", f"{len(found.winner.layers)} layers")
    with staged(output) as partial:
        stored = write(found.winner.over(job.sources), job.parents, partial, job.bank.named(found.winner))
        rows, length = CERTIFIED
        expected = job.evaluator.logits(found.winner, rows)[:, :length]
        certificate = _certificate(job, expected, partial)
        clock.lap("assemble")
        yield Assembled(found.winner, str(partial), stored[0])
        training = None
        if job.recipe.heal:
            training = yield from healed(job, partial)
            if training.stored:
                stored, said = training.stored, _logits(job, training.model)
                certificate = _certificate(job, said, partial, job.parent.dtype)
            clock.lap("heal")
        yield Stage("report", f"{job.recipe.report_sequences} windows")
        report = yield from document(job, found, partial, stored, certificate, clock, training and training.summary)
        yield Reported(report)
    return report


def _search(job: Job, journal: Journal, trials: int, clock: Clock) -> Generator[Event, None, Found]:
    """Baselines first (they seed the search), then the search, then the choice on the selection windows."""
    recipe, remove = job.recipe, job.target.remove
    gather = narrowed if recipe.method.startswith("width") else stitched if recipe.variants else _rivals
    rivals = yield from gather(job, journal, remove, clock)
    if recipe.drop:
        scorer = job.deletions(remove)
        cut = scorer.blueprint(scorer.space.from_removed(recipe.dropped()))
        return Found(cut, cut, (), rivals)
    yield Stage("search", f"{recipe.search} on {recipe.objective}")
    before = job.evaluator.cost.layer_tokens
    scorer = job.scorer
    schedule = _schedule(job, trials, _seeds(job, rivals))
    searching = SEARCHERS[recipe.search](scorer.space, schedule, np.random.default_rng(recipe.seed))
    seen = (0, job.columns.index("params")) if recipe.search == "nsga2" else (0,)
    finalists = yield from drive(
        focused(searching, seen), scorer.evaluate, journal, scorer.key, batch=BATCH, total=trials
    )
    layer_tokens = job.evaluator.cost.layer_tokens - before
    clock.lap("search")
    if recipe.search == "nsga2":
        front = front_of(job, finalists)
        winner, _ = picked(front, "knee")
        rivals = (
            ()
            if job.recipe.method.startswith("width")
            else (yield from _rivals(job, journal, job.parent.depth - len(winner.layers), clock))
        )
        return Found(winner, winner, finalists, rivals, front, layer_tokens)
    yield Stage("select", f"{len(finalists)} finalists on {recipe.selection_sequences} windows the search has not seen")
    winner, selection = yield from best_unseen(job, journal, finalists)
    clock.lap("select")
    found = Found(winner, winner, finalists, rivals, None, layer_tokens, selection=selection)
    if recipe.tune:
        found = yield from tuned(job, found)
        clock.lap("tune")
    return found


def _schedule(job: Job, trials: int, seeds: tuple[Genome, ...] = (), finalists: int = FINALISTS) -> Schedule:
    recipe, full = job.recipe, job.recipe.sequences
    # Screening on less than about a thousand tokens ends in local optima: then half of the evidence, not a quarter.
    first = full // 4 if full // 4 * recipe.length >= SCREENING_TOKENS else full // 2
    stages = sorted({max(1, first), full}) if recipe.search in ("staged", "evopress") else [full]
    if recipe.search == "smac":
        # A ninth, a third and all of it, as GPTailor's 111, 333 and 1,000 items.
        stages = sorted({max(1, full // 9), max(1, full // 3), full})
    reference = job.evaluator.reference
    scores = Scores(block_influence(reference), block_distance(reference))
    return Schedule(
        tuple(map(job.fidelity, stages)), max(trials, 1), recipe.population, recipe.offspring, seeds, finalists, scores
    )


def _seeds(job: Job, rivals: Sequence[Rival]) -> tuple[Genome, ...]:
    """The baselines' cuts; for a front, ShortGPT's cut at every size."""
    if job.recipe.method.startswith("width"):
        return width_starts(job)
    if job.recipe.variants:
        return warm_starts(job, rivals)
    cuts = [r.removed for r in rivals]
    if job.recipe.search == "nsga2":
        order = np.argsort(block_influence(job.evaluator.reference), kind="stable")
        cuts = [tuple(sorted(map(int, order[:n]))) for n in range(1, job.parent.depth)]
    seeds = []
    for cut in cuts:
        try:
            seeds.append(job.scorer.space.from_removed(cut))
        except InvalidRecipe:  # the paper's interval genome cannot spell every deletion
            continue
    return tuple(dict.fromkeys(seeds))


def _rivals(job: Job, journal: Journal, remove: int, clock: Clock) -> Generator[Event, None, tuple[Rival, ...]]:
    """Every baseline's cut of the same number of layers, searched on the same evidence."""
    if not remove or not job.recipe.baselines:
        return ()
    names = [n for n in job.recipe.baselines if n in LABELS]
    yield Stage("baselines", ", ".join(names))
    scorer, rivals = job.deletions(remove), []
    for name in names:
        trials = RANDOM_DRAWS if name == "random" else 1 << 30
        schedule = replace(_schedule(job, trials, finalists=RANDOM_DRAWS), stages=(job.text,))
        search = SEARCHERS[name](scorer.space, schedule, np.random.default_rng(job.recipe.seed))
        column = job.columns.index("perplexity" if name == "greedy" else "kl")
        ranked = yield from drive(focused(search, (column,)), scorer.evaluate, journal, scorer.key)
        best = yield from in_full(job, journal, scorer, ranked[len(ranked) // 2 if name == "random" else 0])
        blueprint = scorer.blueprint(best.trial.genome)
        if not scorer.writable(blueprint):
            yield Stage("baselines", f"{name} is left out: {job.parent.config.model_type} cannot be without its layers")
            continue
        rivals.append(Rival(name, blueprint, job.removed(blueprint), best.values, LABELS[name]))
    clock.lap("baselines")
    return tuple(rivals)


def best_unseen(
    job: Job, journal: Journal, finalists: Sequence[Outcome]
) -> Generator[Event, None, tuple[Blueprint, dict[str, Any] | None]]:
    """The finalist that is best on the selection windows: the search's best are a lucky draw of its own evidence.

    Where a repair follows, or `search_heal` is asked for, the best few are repaired or trained first, since that
    changes their order.

    Returns:
        The winner, and what the finalists were worth before and after.
    """
    if not finalists:
        raise HfPruneError("The search ended without a candidate; raise --evaluations.")
    trials = [Trial(o.trial.genome, job.selection) for o in finalists]
    order = sorted(scored(job.scorer, journal, trials), key=lambda o: o.values[0])
    if not np.isfinite(order[0].values[0]):
        raise HfPruneError(
            "Every finalist breaks (NaN or infinite activations) on the selection windows; remove fewer layers."
        )
    few, stages = _last_rounds(job, order)
    if len(few) < 2:
        return job.scorer.blueprint(order[0].trial.genome), None
    yield Stage("select", f"{len(few)} finalists, {' and '.join(_means(job))}")
    # A training measures no similarity and asks no tasks, so candidates are then told apart by KL.
    column = 0 if job.recipe.objective not in UNTRAINED else job.columns.index("kl")
    genomes = [o.trial.genome for o in few]
    ranked = yield from drive(focused(finals(genomes, stages), (column,)), job.scorer.evaluate, journal,
                              job.scorer.key, batch=1, total=_asked(len(few), len(stages)))  # fmt: skip
    after = [journal.get(job.scorer.key(Trial(g, stages[0])))[column] for g in genomes]
    before = [o.values[column] for o in few]
    rows = [{"removed": list(job.removed(job.scorer.blueprint(g))), "before": b, "after": a}
            for g, b, a in zip(genomes, before, after, strict=True)]  # fmt: skip
    summary = {"means": _means(job), "finalists": rows, "spearman": spearman(before, after),
               "changed": ranked[0].trial.genome != genomes[0]}  # fmt: skip
    return job.scorer.blueprint(ranked[0].trial.genome), summary


def _means(job: Job) -> list[str]:
    return ["repaired"] * job.recipe.repair + ["trained"] * bool(job.recipe.search_heal)


def _last_rounds(job: Job, order: Sequence[Outcome]) -> tuple[Sequence[Outcome], list[Fidelity]]:
    """Who takes part in the last rounds, and what each round gives them."""
    recipe = job.recipe
    repair = recipe.repair_sequences if recipe.repair else 0
    if recipe.search_heal:
        tokens = [recipe.search_heal * 2**i for i in range(FINAL_STAGES)]
        return order[: 2**FINAL_STAGES], [replace(job.selection, heal_tokens=t, repair=repair) for t in tokens]
    return order[: recipe.repair_finalists if repair else 1], [replace(job.selection, repair=repair)]


def _asked(candidates: int, stages: int) -> int:
    return sum(-(-candidates // 2**i) for i in range(stages))


def _certificate(job: Job, expected: torch.Tensor, folder: Path, stored: torch.dtype | None = None) -> dict[str, Any]:
    rows, length = CERTIFIED
    dtype, rounded = (t and str(t).removeprefix("torch.") for t in (job.dtype, stored))
    return certify(
        folder,
        job.evidence["search"].tokens[:rows, :length],
        expected,
        dtype=dtype,
        device=str(job.device),
        stored=rounded,
        # A model of several widths is loaded by the file beside its weights, which is our own.
        trust_remote_code=job.recipe.trust_remote_code or (folder / FILE).is_file(),
    )


@torch.inference_mode()
def _logits(job: Job, model: PreTrainedModel) -> torch.Tensor:
    """What the model says to the windows of the certificate, [rows, length, V]."""
    rows, length = CERTIFIED
    tokens = job.evidence["search"].tokens[:rows, :length].to(job.device)
    return model(input_ids=tokens, use_cache=False).logits
