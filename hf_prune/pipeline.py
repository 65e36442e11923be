"""The table of contents: from a base's name to a published smaller model.

`compress` yields events and owns no loop but the order of stages; whoever calls it shows them. A run lives in
`OUTPUT.run` (the journal) until the result is complete under its final name, so an interrupted run is resumed by the
same call and never evaluates a candidate twice.
"""

import functools
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import hub
from hf_prune.assembly.assemble import write
from hf_prune.assembly.certificate import CERTIFIED, certify
from hf_prune.atomic_files import check_place, claimed, copied, disk_told, shown_path, staged
from hf_prune.blueprint import Outcome
from hf_prune.errors import InvalidRecipe, InvalidReport
from hf_prune.events import Assembled, Event, Exported, Finished, Forecasted, Pushed, Reported, Stage, Started
from hf_prune.models.auto_classes import FILE
from hf_prune.models.devices import devices_of
from hf_prune.models.headers import weigh
from hf_prune.models.noise import quiet
from hf_prune.planning import check_evidence, check_gguf, evaluations, facts_of
from hf_prune.recipe import Recipe
from hf_prune.report.compose import describe
from hf_prune.report.gguf_card import publish
from hf_prune.report.notebook import Bars, in_notebook, result_html
from hf_prune.report.schema.report import Report
from hf_prune.report.tracking import tracked
from hf_prune.search import SEARCHERS, drive, focus
from hf_prune.session import front
from hf_prune.session.baselines import play
from hf_prune.session.journal import Journal
from hf_prune.session.own_samples import say_own
from hf_prune.session.parents import calibrate, check_parents
from hf_prune.session.restore import heal_model, make_libraries, repair_cut, tune_mixes
from hf_prune.session.selection import Winner, best_unseen, chosen
from hf_prune.session.session import Session, open_session
from hf_prune.session.within_time import within_time
from hf_prune.session.workers.search import working

ANEW = "what the run has found is kept in {}: put that right, and run the same command again"
"""What follows trouble with a disk."""


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run; `report` is report.json as it is (hf_prune.report.schema says what it holds)."""

    folder: Path
    report: dict[str, Any]
    url: str | None = None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The smaller model, loaded by stock transformers."""
        with quiet():
            return AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto", use_safetensors=True)

    def _repr_html_(self) -> str:
        return result_html(self.folder, self.report)

    @property
    def front(self) -> list[dict[str, Any]] | None:
        """The Pareto front of a `nsga2` run: size, quality and digest of every member."""
        return self.report.get("front")

    def save_pretrained(self, folder: str | Path) -> Path:
        """Copy the finished folder (weights, tokenizer, card, figures, blueprint, journal).

        Raises:
            InvalidRecipe: the target exists.
            CannotWrite: it cannot be written.
        """
        with disk_told("nothing is left there, and the result is as it was"):
            return Path(copied(self.folder, Path(folder)))

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = True,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
    ) -> str:
        """Publish the folder and return the URL; a repeat changes nothing. GGUF files in it are told on the card."""
        how = {"private": private, "revision": revision, "create_pr": create_pr, "commit_message": commit_message}
        return publish(self.folder, repo_id, **how)[0].url


def run(recipe: Recipe, progress: bool | None = None) -> Result:
    """`compress` without watching.

    Args:
        recipe: what is asked for.
        progress: whether bars show how far it is; None: in a notebook.
    """
    shown = in_notebook() if progress is None else progress
    with Bars() if shown else nullcontext() as bars:
        for event in compress(recipe):
            if bars:
                bars.show(event)
            if isinstance(event, Finished):
                return Result(Path(event.folder), event.report, event.url)
    raise AssertionError("compress ended without Finished")


def compress(recipe: Recipe) -> Iterator[Event]:
    """Everything, in order: pull, check, calibrate, search, select, repair, assemble, heal, report, card, export, push.

    Raises:
        HfPruneError: its subclasses say what is wrong and what to do; nothing half-written is left behind.
    """
    with disk_told(ANEW.format(shown_path(f"{recipe.output}.run"))):
        yield from tracked(_compress(recipe, Path(recipe.output)))


def _compress(recipe: Recipe, output: Path) -> Iterator[Event]:
    report = find_finished(recipe, output)
    if report is None:
        check_place(output)
        if recipe.publish.repo:
            hub.check_login(recipe.publish.repo, create_pr=recipe.publish.create_pr)
        with claimed(output):
            report = find_finished(recipe, output) or (yield from _make(recipe, output))
    else:
        yield Stage("done", f"{output} already holds the result of this recipe")
    yield from _export(recipe.publish.gguf, output)
    url = None
    if recipe.publish.repo:
        yield Stage("push", recipe.publish.repo)
        for pushed in publish(
            output,
            recipe.publish.repo,
            gguf_apart=recipe.publish.gguf_apart,
            private=not recipe.publish.public,
            create_pr=recipe.publish.create_pr,
            commit_message=recipe.publish.commit_message,
        ):
            url = url or pushed.url
            yield Pushed(pushed.url, pushed.commit, pushed.changed)
    yield Finished(str(output), report.to_dict(), url)


def _export(kinds: Sequence[str], folder: Path) -> Iterator[Event]:
    """Write those GGUF files that are not there yet."""
    if not kinds:
        return
    from hf_prune.assembly.gguf.export import export_gguf, place

    for kind in kinds:
        if not (path := place(folder, kind)).exists():
            yield Stage("export", path.name)
            done = export_gguf(folder, kind=kind)
            yield Exported(str(done.path), done.certificate is not None, " ".join((done.verdict, *done.notes)))


def find_finished(recipe: Recipe, output: Path) -> Report | None:
    """The report of a result of this very recipe; None when there is nothing yet."""
    with disk_told("nothing was begun: choose another --output"):
        if not output.exists():
            return None
    # What cannot be read is the result of no recipe, and may be overwritten.
    with suppress(InvalidReport):
        report = Report.load(output / "report.json")
        if report.recipe_digest == recipe.digest:
            return report
    if not recipe.overwrite:
        raise InvalidRecipe(
            f"{output} exists and is not the result of this recipe; choose another --output or pass --overwrite."
        )
    return None


def _make(recipe: Recipe, output: Path) -> Generator[Event, None, Report]:
    check_evidence(recipe)
    devices_of(recipe.machine.device, int(recipe.machine.workers))
    counted = "" if recipe.vocabulary == "none" else f", and keep tokens: {recipe.vocabulary}"
    yield Stage("pull", recipe.base + counted)
    if recipe.publish.gguf:
        check_gguf(recipe, weigh(hub.peek(recipe.base, **recipe.trust.arguments)).config)
    session = open_session(recipe)
    session.clock.lap("pull")
    session = within_time(session)
    session.need  # noqa: B018 - what does not fit is told before anything is read
    inputs, recipe = session.inputs, session.recipe
    base, target = inputs.base, inputs.target
    trials = evaluations(recipe, facts_of(recipe, base.depth, target.remove, mixture=base.mixture))
    columns = session.columns
    session.evidence.read_tasks()
    table = session.timetable
    yield Forecasted(table.rounded, table.budget.left_out, table.end)
    yield from say_own(session)
    session.evidence.windows  # noqa: B018 - text that cannot be read is told before anything long
    table.save()
    if session.evidence.left_out:
        yield Stage("tasks", session.evidence.left_out)
    yield Started(recipe, str(base.source), base.depth, target.goal, trials, columns, base.parameters)
    session = yield from check_parents(session)
    session.clock.lap("check")
    session = yield from calibrate(session)
    session.clock.lap("calibrate")
    yield from make_libraries(session)
    with Journal.open(session.workdir.journal, session.header()) as journal:
        with working(session) as crew:
            if crew:
                yield Stage("calibrate", f"{crew.size} workers, each with a model of its own")
            winner = yield from _search(session, journal, trials)
            if crew and crew.traffic.lost:
                yield Stage("select", f"workers were lost and replaced: {'; '.join(crew.traffic.lost)}")
        report = yield from finish(session, winner, output, functools.partial(describe, journal))
    shutil.rmtree(session.workdir.folder, ignore_errors=True)
    return report


def _search(session: Session, journal: Journal, trials: int) -> Generator[Event, None, Winner]:
    """Comparisons first (they seed the search), then the search, then the choice on the selection windows."""
    recipe, remove = session.recipe, session.inputs.target.remove
    baselines = (yield from play(session, journal, remove)) if remove else ()
    if recipe.size.drop:
        scorer = session.deletions(remove)
        cut = scorer.blueprint(scorer.space.from_removed(recipe.size.dropped()))
        return Winner(cut, cut, (), baselines)
    if not remove and not recipe.every_size:
        whole = session.inputs.identity(0)
        return Winner(whole, whole, (), ())
    yield Stage("search", f"{recipe.search.searcher} on {recipe.search.objective}")
    before = session.evaluator.cost.layer_tokens
    finalists = yield from _searched(session, journal, trials, [b.removed for b in baselines])
    layer_tokens = session.evaluator.cost.layer_tokens - before
    session.clock.lap("search")
    if recipe.every_size:
        members = front.members(session, finalists)
        knee, _ = front.pick_member(members, "knee")
        baselines = yield from play(session, journal, session.inputs.depth - len(knee.layers))
        return Winner(knee, knee, finalists, baselines, members, layer_tokens)
    windows = recipe.data.selection_sequences
    yield Stage("select", f"{len(finalists)} finalists and {len(baselines)} other cuts on {windows} unseen windows")
    choice = yield from best_unseen(session, journal, finalists, baselines)
    session.clock.lap("select")
    winner = chosen(session, choice, finalists, baselines, layer_tokens)
    if recipe.tune.steps:
        winner = yield from tune_mixes(session, winner)
        session.clock.lap("tune")
    return winner


def _searched(
    session: Session, journal: Journal, trials: int, cuts: Sequence[tuple[int, ...]]
) -> Generator[Event, None, tuple[Outcome, ...]]:
    """The recipe's search in its method's space, from the method's starts; its finalists."""
    recipe, scorer, facts = session.recipe, session.scorer, session.facts(judged=True)
    method, searcher = session.inputs.method, SEARCHERS[recipe.search.searcher]
    schedule = replace(
        session.schedule(trials, method.starts(scorer.space, facts, cuts)), guess=method.guess(scorer.space, facts)
    )
    searching = searcher.propose(scorer.space, schedule, np.random.default_rng(recipe.seed))
    seen = (0, session.columns.index("params")) if searcher.every_size else (0,)
    asking, limit = focus(searching, seen), session.limit("search", "search") if searcher.anytime else None
    return (yield from drive(asking, scorer.evaluate, journal, scorer.key, session.batch, trials, limit))


def finish(
    session: Session,
    winner: Winner,
    output: Path,
    document: Callable[..., Generator[Event, None, Report]],
) -> Generator[Event, None, Report]:
    """From a cut to a folder: repair, write, certify, heal, measure and describe; the final name appears last.

    Args:
        session: the run.
        winner: what is to be built.
        output: the folder's final name.
        document: writes the report and all that lies beside the weights.
    """
    recipe, inputs, clock = session.recipe, session.inputs, session.clock
    if recipe.repair.enabled and winner.blueprint != inputs.identity(0):
        winner = yield from repair_cut(session, winner)
        clock.lap("repair")
    yield Stage("assemble", f"{len(winner.blueprint.layers)} layers")
    with staged(output) as partial:
        patches = session.bank.named(winner.blueprint)
        stored = write(winner.blueprint.over(inputs.sources), inputs.parents, partial, patches)
        rows, length = CERTIFIED
        expected = session.evaluator.logits(winner.blueprint, rows)[:, :length]
        certificate = _certificate(session, expected, partial)
        clock.lap("assemble")
        yield Assembled(winner.blueprint, str(partial), stored[0])
        training = None
        if recipe.heal.tokens:
            training = yield from heal_model(session, winner.blueprint, partial)
            if training.stored:
                stored, said = training.stored, _logits(session, training.model)
                certificate = _certificate(session, said, partial, inputs.base.coarsest)
            clock.lap("heal")
        if stream := session.bank.stream:
            yield Stage("report", f"so far layers were read {stream.reading.layers:,} times, which was waited for "
                        f"{stream.reading.share:.1%} of the time")  # fmt: skip
        yield Stage("report", f"{recipe.report.sequences} windows")
        report = yield from document(session, winner, partial, stored, certificate, training and training.summary)
        yield Reported(report.to_dict())
    return report


def _certificate(
    session: Session, expected: torch.Tensor, folder: Path, stored: torch.dtype | None = None
) -> dict[str, Any]:
    rows, length = CERTIFIED
    dtype, rounded = (t and str(t).removeprefix("torch.") for t in (session.dtype, stored))
    tokens = session.evidence.windows["search"].tokens[:rows, :length]
    return certify(
        folder,
        tokens,
        # There may be fewer windows of search text.
        expected[: len(tokens)],
        dtype=dtype,
        device=str(session.device),
        stored=rounded,
        # A model of several widths is loaded by the file beside its weights, which is our own.
        trust_remote_code=session.recipe.trust.remote_code or (folder / FILE).is_file(),
        whole=not session.streams,
    )


@torch.inference_mode()
def _logits(session: Session, model: PreTrainedModel) -> torch.Tensor:
    """What the model says to the windows of the certificate, [rows, length, V]."""
    rows, length = CERTIFIED
    tokens = session.evidence.windows["search"].tokens[:rows, :length].to(session.device)
    return model(input_ids=tokens, use_cache=False).logits
