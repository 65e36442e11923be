"""What can be done with a finished folder: rebuild it, measure it again, train it."""

import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from transformers import AutoTokenizer

from hf_prune import hub
from hf_prune.assembly.assemble import Parent, assemble, write
from hf_prune.assembly.patches import PATCH_FILE, load_patches
from hf_prune.atomic_files import (
    check_file,
    check_files,
    check_place,
    claimed,
    copy_file,
    copying,
    disk_told,
    shown_path,
    staged,
)
from hf_prune.blueprint import Blueprint, Source
from hf_prune.errors import IncompatibleSources, InvalidBlueprint, InvalidRecipe
from hf_prune.evaluation.dialogue import Speaker
from hf_prune.events import Event, Finished, Reported, Stage, Started
from hf_prune.models.devices import device_of
from hf_prune.models.fewer_tokens import KEPT_FILE, load_kept, vocabulary_of, without_tokens
from hf_prune.models.variants import beside, pull_variant
from hf_prune.pipeline import ANEW, find_finished, finish
from hf_prune.planning import check_evidence
from hf_prune.recipe import Recipe, flatten
from hf_prune.recipe.fields import Size
from hf_prune.recovery.levels import Kind, cached
from hf_prune.report import front_card, said
from hf_prune.report.compose import measure_again
from hf_prune.report.measure import check_weights, load_result, unreadable
from hf_prune.report.schema.model import Front
from hf_prune.report.schema.report import Report
from hf_prune.report.tracking import tracked
from hf_prune.session.front import pick_member
from hf_prune.session.own_samples import say_own
from hf_prune.session.selection import Winner
from hf_prune.session.session import Session, open_session


def assemble_blueprint(
    path: Path,
    output: Path,
    *,
    source: str | Sequence[str] | None = None,
    pick: str | None = None,
    library: Path | None = None,
) -> Path:
    """Rebuild the model of `blueprint.json`, or of one member of `front.json`, bit for bit.

    Args:
        path: a blueprint or a front.
        output: folder for the model; must not exist.
        source: what to read instead of the sources the blueprint names, the base first (local folders are named by
            content, not by path).
        pick: member of a front: `knee`, a share removed such as `0.25` (the nearest member), or `#3` (counted from 0).
        library: folder of the level library that its run was given; default: the user's cache.

    Raises:
        InvalidBlueprint: not a blueprint, `pick` names nobody, or its level library is not there.
        InvalidReport: not a front.
        UnsafeSource: one of its files is a link.
        IncompatibleSources: the source is not the one the blueprint was made from.
        SourceError: the source cannot be read.
        CannotWrite: the disk does not take the output.
    """
    with disk_told(f"nothing is left of {shown_path(output)}: put that right, and run the same command again"):
        return _assembled(Path(path), Path(output), source, pick, library)


def _assembled(
    path: Path, output: Path, source: str | Sequence[str] | None, pick: str | None, library: Path | None
) -> Path:
    check_place(output)
    # A link that was named by itself is meant; one in a result may be a stranger's.
    if path.is_symlink() and not any((path.parent / name).exists() for name in ("report.json", "config.json")):
        path = path.parent / path.readlink()
    for name in (path.name, Path(PATCH_FILE).parent, PATCH_FILE, KEPT_FILE):
        check_file(path.parent / name, path.parent)
    text = _read(path)
    if '"front"' in text:
        members = Front.from_json(text, path.name).front
        blueprint, _ = pick_member([member.to_dict() for member in members], pick or "knee")
    elif pick:
        raise InvalidBlueprint(f"{path.name} is one blueprint, not a front, so --pick {pick} has no meaning.")
    else:
        blueprint = Blueprint.from_json(text)
    if output.exists():
        raise InvalidRecipe(f"{output} exists; choose another --output.")
    given = (source,) if isinstance(source, str) else tuple(source or ())
    with claimed(output):
        parents = open_parents(blueprint, path.parent, given, library)
        with staged(output) as partial:
            write(blueprint, parents, partial, load_patches(path.parent / PATCH_FILE))
    return output


def push_front(
    folder: Path, repo_id: str, *, source: Sequence[str] = (), private: bool = True
) -> Iterator[hub.PushResult]:
    """Publish every size of a front: a repo each, named by its parameters, and a collection of all of them.

    The result itself is the knee and keeps its card; the others are assembled one after the other. All cards name all
    sizes. A repeat changes nothing.

    Args:
        folder: a result of a search for every size.
        repo_id: NAMESPACE/NAME; what the names of the repos begin with, and the collection's title.
        source: what to read instead of the sources that the front names, the base first.
        private: visibility of what is made.

    Raises:
        InvalidRecipe: there is no front, or no namespace.
        HfPruneError: as `assemble_blueprint` and `hub.push`.
    """
    namespace, _, name = repo_id.partition("/")
    if not name:
        raise InvalidRecipe(f"A front goes into several repos and a collection; write NAMESPACE/{repo_id}.")
    if not (folder / "front.json").is_file() or not (folder / "README.md").is_file():
        raise InvalidRecipe(f"{folder} holds no front; compress with --search nsga2 to have one.")
    members = Front.load(folder / "front.json").front
    repos = front_card.names(repo_id, members)
    hub.check_login(repos[0])
    whole = (folder / "README.md").read_text(encoding="utf-8")
    for i, (member, repo) in enumerate(zip(members, repos, strict=True)):
        if member.knee:
            front_card.tell_sizes(folder, repos, members, i)
            yield hub.push(folder, repo, private=private)
            continue
        with TemporaryDirectory() as scratch:
            made = assemble_blueprint(folder / "front.json", Path(scratch) / "model", source=source, pick=f"#{i}")
            front_card.write_member_card(made, whole, repos, members, i)
            yield hub.push(made, repo, private=private)
    yield hub.collect(name, namespace, front_card.notes(repos, members), private=private)


def open_parents(
    blueprint: Blueprint, beside_it: Path, given: Sequence[str] = (), library: Path | None = None
) -> list[Parent]:
    """Pull and open every source of a blueprint, from what is given (the base first) or where the blueprint says; with
    the level libraries it names, as far as they are in the user's cache or in the folder `library`. Which tokens they
    have kept is said in the folder `beside_it`.

    Raises:
        IncompatibleSources: another revision than the blueprint's.
        SourceError: a local source whose folder is not given, or one that cannot be read.
    """
    # A result of a quantised base was made by somebody who asked for that.
    plain = {"dequantize": True}
    pulled = [
        pull_variant(given[0], name, **plain) if number else hub.pull(name, **plain)
        for number, name in enumerate(given)
    ]
    parents = []
    for pinned in blueprint.sources:
        found = next((p for p in pulled if _same(p.source, pinned)), None)
        if found is None and pulled and (len(blueprint.sources) == 1 or said.is_local(pinned)):
            others = ", ".join(str(p.source) for p in pulled)
            raise IncompatibleSources(
                f"The blueprint was made from {pinned}, not from {others}; the weights would differ."
            )
        found = found or hub.pull(said.source(pinned), **plain)
        opened = Parent.open(replace(pinned, vocabulary=None), found.folder, found.adapter, **plain)
        if pinned.vocabulary:
            kept = load_kept(beside_it, pinned.vocabulary)
            opened = without_tokens(opened, vocabulary_of(opened), kept)
        parents.append(opened)
    parents[0].levels.update(cached({s.library for s in blueprint.layers if s.library}, library))
    return [parents[0], *(beside(parents[0], other) for other in parents[1:])]


def _same(one: Source, other: Source) -> bool:
    return (one.revision, one.adapter) == (other.revision, other.adapter)


def open_pair(source: str | Path, base: str | None = None, device: str = "auto") -> tuple[Speaker, Speaker]:
    """The dense parent of a result and the result itself, loaded, each with its own tokenizer.

    Of a stitched model the parent is the base. Weights are safetensors, and no code beside them is run.

    Args:
        source: folder written by `compress`, or a repo of the Hub.
        base: the dense parent, where the blueprint names a local folder.
        device: where both go; auto is the accelerator, where there is one.

    Raises:
        InvalidBlueprint: the folder holds no result of hf_prune.
        SourceError, IncompatibleSources: the parent cannot be read, or is another one.
    """
    here, where = _here(source), device_of(device)
    made = Blueprint.from_json(_read(here / "blueprint.json"))
    check_weights(here)
    # The parent as it is, with all its tokens.
    first = Blueprint.identity(replace(made.sources[0], vocabulary=None), 1)
    parent = open_parents(first, here, (base,) if base else ())[0]
    dense = assemble(Blueprint.identity(parent.source, parent.depth), [parent], device=where)
    try:
        # A tokenizer of its own, since tokens may be gone, too.
        tokenizer = AutoTokenizer.from_pretrained(here, local_files_only=True, trust_remote_code=False)
    except Exception as e:
        raise unreadable(here, e) from e
    cut = load_result(here).to(where)
    return Speaker(dense, parent.tokenizer), Speaker(cut, tokenizer)


def report_folder(
    source: str | Path, *, base: str | None = None, output: str | Path | None = None, **changes: Any
) -> Iterator[Event]:
    """Measure a finished result again: same blueprint, same or other data, new report, figures and card.

    Args:
        source: folder written by `compress`, which is changed unless `output` is given; or a repo of the Hub.
        base: the dense parent, where the blueprint names a local folder.
        output: folder for a copy with the new report; a repo's default is its name.
        changes: recipe fields, e.g. `data`, `report_sequences`, `tasks`.

    Raises:
        InvalidRecipe: the folder holds no result of hf_prune, or `output` exists.
        SourceError, IncompatibleSources: the parent cannot be read, or is another one.
        CannotWrite: the disk does not take the new report.
    """
    with disk_told("the result itself is as it was: put that right, and run the same command again"):
        yield from _reported(source, base, output, changes)


def _reported(
    source: str | Path, base: str | None, output: str | Path | None, changes: dict[str, Any]
) -> Iterator[Event]:
    yield Stage("pull", str(source))
    here = _here(source)
    output = Path(output or (here if Path(source).is_dir() else Path(str(source).partition("@")[0]).name))
    check_place(output)
    with claimed(output), nullcontext(here) if output == here else copying(here, output) as folder:
        check_weights(here)
        session, winner, before = yield from _reopened(here, base, {**changes, "output": str(output)})
        yield Stage("report", f"{session.recipe.report.sequences} windows")
        report = yield from measure_again(before, session, winner, folder)
        yield Reported(report.to_dict())
    yield Finished(str(output), report.to_dict(), None)


def heal_folder(
    source: str | Path, *, base: str | None = None, output: str | Path | None = None, **changes: Any
) -> Iterator[Event]:
    """Train a finished result further; what `compress` with `heal` would have made of the same cut.

    The cut is built afresh from its blueprint, so a result that was healed before is healed anew, not on top.

    Args:
        source: folder written by `compress`, or a repo of the Hub.
        base: the dense parent, where the blueprint names a local folder.
        output: folder for the result; default: the source's name with `-healed`.
        changes: recipe fields, e.g. `heal`, `repair`, `data`.

    Raises:
        InvalidRecipe: the source is no result of hf_prune, or `output` is something else.
        SourceError, IncompatibleSources: the parent cannot be read, or is another one.
        CannotWrite: the disk does not take the result.
    """
    output = Path(output or f"{Path(str(source).partition('@')[0]).name}-healed")
    with disk_told(ANEW.format(shown_path(f"{output}.run"))):
        yield from tracked(_healed(source, base, output, changes))


def _healed(source: str | Path, base: str | None, output: Path, changes: dict[str, Any]) -> Iterator[Event]:
    check_place(output)
    here = _here(source)
    yield Stage("pull", str(source))
    with claimed(output):
        session, winner, before = yield from _reopened(
            here, base, {"overwrite": False, **changes, "output": str(output)}
        )
        result = find_finished(session.recipe, output)
        if result and _cut(Blueprint.from_json(_read(output / "blueprint.json"))) != winner.cut:
            if not session.recipe.overwrite:
                raise InvalidRecipe(
                    f"{output} holds the result of this recipe, but of another source than {shown_path(source)}; "
                    "choose another --output or pass --overwrite."
                )
            result = None
        if result is None:
            goal = f"train {before.size.pruned.layers} layers"
            yield Started(session.recipe, str(session.inputs.base.source), session.inputs.base.depth, goal, 0)
            session.workdir.folder.mkdir(parents=True, exist_ok=True)
            result = yield from finish(session, winner, output, partial(_carried, here, before))
            shutil.rmtree(session.workdir.folder, ignore_errors=True)
        else:
            yield Stage("done", f"{output} already holds the result of this recipe")
    yield Finished(str(output), result.to_dict(), None)


CARRIED = (
    "journal.jsonl",
    "front.json",
    "recipe.yaml",
    "figures/search.png",
    "figures/front.png",
    "figures/layers.png",
    "figures/parents.png",
    "figures/widths.png",
)
"""What a healed folder takes over from the one it was made from."""


def _carried(
    here: Path, before: Report, session: Session, winner: Winner, folder: Path, *built: Any
) -> Generator[Event, None, Report]:
    (folder / "figures").mkdir(exist_ok=True)
    for name in CARRIED:
        if (here / name).is_file():
            copy_file(here / name, folder / name, here)
    return (yield from measure_again(before, session, winner, folder, *built))


def _here(source: str | Path) -> Path:
    """The folder of a result, fetched if it is a repo.

    Raises:
        UnsafeSource: it holds links.
    """
    if not Path(source).is_dir():
        return hub.fetch_result(str(source))
    check_files(Path(source))
    if (figures := Path(source) / "figures").exists() and not figures.is_dir():
        raise InvalidRecipe(f"{figures} is a file, and figures are drawn into a folder of that name; move it away.")
    return Path(source)


def _reopened(
    folder: Path, base: str | None, changes: dict[str, Any]
) -> Generator[Event, None, tuple[Session, Winner, Report]]:
    """The run that made a folder, as far as it is needed to build and measure its result again."""
    if not (folder / "report.json").is_file():
        raise InvalidRecipe(f"{folder} is not a result of hf_prune (no report.json); name what compress wrote.")
    blueprint = Blueprint.from_json(_read(folder / "blueprint.json"))
    before = Report.load(folder / "report.json")
    variants = tuple(changes.pop("variants", ()))
    if {"size", *Size.model_fields} & changes.keys():
        raise InvalidRecipe("The size of a finished result is what it is; compress its base again for another one.")
    first, *others = blueprint.sources
    named = (base or said.source(first), *(variants or map(said.source, others)))
    kept = said.kept(before.recipe, flatten(changes))
    recipe = Recipe.of(**{**kept, "base": named[0], "variants": named[1:]}).replace(**changes)
    # What the search read is not read again, and the report that names it may be a stranger's.
    check_evidence(recipe.replace(search_tasks=(), objective="kl"))
    device_of(recipe.machine.device)
    given = named[: len(variants) + 1] if base or variants else ()
    parents = open_parents(blueprint, folder, given)
    session = open_session(recipe, parents, over=True)
    session.evidence.read_tasks()
    yield from say_own(session)
    session.evidence.windows  # noqa: B018 - text that cannot be read is told before anything long
    session.bank.patches.update(load_patches(folder / PATCH_FILE))
    _with_libraries(session, blueprint, before)
    return session, Winner(_cut(blueprint), blueprint.canonical()), before


def _cut(blueprint: Blueprint) -> Blueprint:
    """A model as it was before any repair."""
    return replace(blueprint, layers=tuple(replace(s, repair=None) for s in blueprint.layers)).canonical()


def _with_libraries(session: Session, blueprint: Blueprint, before: Report) -> None:
    """Open the level libraries that the result and its baselines name, or make them again from the same text."""
    baselines = [Blueprint.from_json(b.blueprint) for b in before.baselines if b.blueprint]
    wanted = {s.library for b in (blueprint, *baselines) for s in b.layers if s.library}
    session.inputs.base.levels.update(cached(wanted))
    for kind in get_args(Kind):
        if not wanted <= set(session.inputs.base.levels):
            session.library(kind)
    if missing := wanted - set(session.inputs.base.levels):
        raise InvalidBlueprint(
            f"The level library {min(missing)} of this result cannot be made again from this text; name the text of "
            "its run with --data."
        )


def _read(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = "there is no such file here" if isinstance(e, FileNotFoundError) else getattr(e, "strerror", None) or e
        raise InvalidBlueprint(f"Cannot read {path}: {reason}; name what hf-prune wrote.") from None
