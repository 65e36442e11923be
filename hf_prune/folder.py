"""What can be done with a finished folder: rebuild it, measure it again, train it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_prune import hub
from hf_prune.assemble import Parent, write
from hf_prune.blueprint import Blueprint
from hf_prune.documents import measured_again
from hf_prune.errors import IncompatibleSources, InvalidBlueprint, InvalidRecipe, SourceError
from hf_prune.front import picked
from hf_prune.job import open_job
from hf_prune.patches import PATCH_FILE, load_patches
from hf_prune.recipe import Recipe


def assemble_blueprint(path: Path, output: Path, *, source: str | None = None, pick: str | None = None) -> Path:
    """Rebuild the model of `blueprint.json`, or of one member of `front.json`, bit for bit.

    Args:
        path: a blueprint or a front.
        output: folder for the model; must not exist.
        source: base to read instead of the one the blueprint names (local folders are named by content, not by path).
        pick: member of a front: `knee`, a share removed such as `0.25` (the nearest member), or `#3` (counted from 0).

    Raises:
        InvalidBlueprint: not a blueprint or front, or `pick` names nobody.
        IncompatibleSources: the source is not the one the blueprint was made from.
        SourceError: the source cannot be read.
    """
    text = _read(path)
    if '"front"' in text:
        blueprint, _ = picked(json.loads(text)["front"], pick or "knee")
    elif pick:
        raise InvalidBlueprint(f"{path.name} is one blueprint, not a front, so --pick {pick} has no meaning.")
    else:
        blueprint = Blueprint.from_json(text)
    output = Path(output)
    if output.exists():
        raise InvalidRecipe(f"{output} exists; choose another --output.")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(blueprint, open_parents(blueprint, source), partial, load_patches(path.parent / PATCH_FILE))
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def open_parents(blueprint: Blueprint, source: str | None = None) -> list[Parent]:
    """Pull and open every source of a blueprint, and make sure that it is the same one.

    Raises:
        IncompatibleSources: another revision than the blueprint's.
        SourceError: a local source whose folder is not given, or one that cannot be read.
    """
    parents = []
    for pinned in blueprint.sources:
        if source is None and pinned.revision.startswith("sha256-"):
            raise SourceError(
                f"The blueprint was made from the local folder {pinned.repo!r}; say where it is with "
                "--source or --base."
            )
        pulled = hub.pull(source or str(pinned))
        if pulled.source.revision != pinned.revision or pulled.source.adapter != pinned.adapter:
            raise IncompatibleSources(
                f"The blueprint was made from {pinned}, not from {pulled.source}; the weights would differ."
            )
        parents.append(Parent.open(pinned, pulled.folder, pulled.adapter))
    return parents


def report_folder(folder: Path, *, base: str | None = None, **changes: Any) -> dict[str, Any]:
    """Measure a finished folder again: same blueprint, same or other data, new report, figures and card.

    Args:
        folder: written by `compress`.
        base: the dense parent, where the blueprint names a local folder.
        changes: recipe fields, e.g. `data`, `report_sequences`, `tasks`.

    Raises:
        InvalidRecipe: the folder holds no result of hf_prune.
        SourceError, IncompatibleSources: the parent cannot be read, or is another one.
    """
    folder = Path(folder)
    blueprint = Blueprint.from_json(_read(folder / "blueprint.json"))
    before = json.loads(_read(folder / "report.json"))
    parents = open_parents(blueprint, base)
    kept = {k: v for k, v in before["recipe"].items() if k in Recipe.model_fields}
    recipe = Recipe.of(**{**kept, **changes, "base": base or str(blueprint.sources[0]), "output": str(folder)})
    job = replace(open_job(recipe), parent=parents[0])
    return measured_again(job, blueprint, folder, before)


def _read(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise InvalidBlueprint(f"Cannot read {path}: {e.strerror or e}.") from None
