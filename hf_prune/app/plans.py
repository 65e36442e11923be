"""What a run would do and need, before anything is downloaded."""

import os
import shlex
from dataclasses import dataclass
from typing import Any

from hf_prune import hub
from hf_prune.app.forms import in_words_of_the_page
from hf_prune.app.machine import rates, room
from hf_prune.app.markup import folded, note, table
from hf_prune.errors import InvalidRecipe
from hf_prune.models.variants import Verdict, comparison_table, peeks, verdicts
from hf_prune.planning import Plan, plan
from hf_prune.recipe import Recipe, flagged, nest
from hf_prune.report.redaction import public_recipe
from hf_prune.report.text import DETAILS, advised, plan_rows
from hf_prune.report.verdicts import amount

SMALL = 3e9
"""Bytes up to which a run needs no GPU."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, how the variants compare with the base, and why this machine is too small, if it is."""

    plan: Plan
    compared: tuple[Verdict, ...]
    too_small: str | None


def planned(recipe: Recipe, strangers: bool) -> Planned:
    """Look at headers and small files.

    Raises:
        HfPruneError: the base or a variant cannot be used.
    """
    if strangers and (recipe.trust.pickle or recipe.trust.remote_code):
        raise InvalidRecipe("Pickles and models that ship code are not run here; use hf_prune on your own machine.")
    base, *variants = peeks(recipe.base, recipe.variants, **recipe.trust.arguments)
    found = plan(recipe, base, variants, rates, room())
    return Planned(found, tuple(verdicts(base, *variants)), _too_small(found))


def html(found: Planned) -> str:
    """The plan as tables."""
    rows = {name: in_words_of_the_page(text) for name, text in plan_rows(found.plan).items()}
    details = [(name, rows.pop(name)) for name in DETAILS if name in rows]
    parts = [table(("", ""), rows.items(), "plan"), folded("How it is counted", table(("", ""), details, "details"))]
    if found.compared:
        header, rows = comparison_table(found.compared)
        parts.append("<h4>Do the variants fit?</h4>" + table(header, rows, "variants"))
    if found.too_small:
        parts.append(note(in_words_of_the_page(found.too_small), "warn"))
    return "".join(parts)


def words(recipe: Recipe) -> list[str]:
    """The run as words of a command line, without paths of this machine."""
    asked = public_recipe(recipe.changed())
    base = str(asked.pop("base"))
    return ["compress", base, *(word for name, value in asked.items() for word in flagged(name, value))]


def command(recipe: Recipe) -> str:
    """The same run by the command line."""
    return shlex.join(["hf-prune", *words(recipe)])


def hardware(found: Plan) -> str:
    """What a job for this plan runs on.

    Raises:
        InvalidRecipe: no hardware of jobs is large enough.
    """
    small = found.memory_bytes < SMALL
    name = hub.flavor(found.memory_bytes, gpu=not small)
    if name is None:
        raise InvalidRecipe(
            f"The search needs about {amount(found.memory_bytes, 'B')}, more than any hardware of jobs has; "
            "run it on a machine of yours."
        )
    return name


def job(recipe: Recipe, space: str, repo_id: str) -> str:
    """Start the run on the account of the login; where to watch it.

    Raises:
        HfPruneError: the recipe needs files of this machine, or the Hub said no.
    """
    if _local(recipe):
        raise InvalidRecipe("The demo runs here; a job is for models of the Hub.")
    base, *variants = peeks(recipe.base, recipe.variants, **recipe.trust.arguments)
    return hub.run_job(space, words(recipe), repo_id.strip(), hardware(plan(recipe, base, variants))).url


def job_command(recipe: Recipe, found: Plan, space: str) -> str:
    """The job as a command for a terminal; in words why there is none."""
    if _local(recipe):
        return "# The demo runs here; a job is for models of the Hub."
    try:
        return hub.job_command(space, [*words(recipe), "--push-to", "NAMESPACE/NAME"], hardware(found))
    except InvalidRecipe as e:
        return f"# {e}"


def _local(recipe: Recipe) -> bool:
    return any(os.path.exists(part) for name in (recipe.base, *recipe.variants) for part in name.split("+"))


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as a file for another machine."""
    import yaml

    return yaml.safe_dump(nest(public_recipe(recipe.changed())), sort_keys=False)


def _too_small(found: Plan) -> str | None:
    if found.fits:
        return None
    advice = f" It would fit with {advised(found)}." if found.advice and found.advice.fits else ""
    return (
        f"This machine is too small for that run.{advice} Or run it elsewhere: by the command, the job or the recipe."
    )


def summary(recipe: Recipe, strangers: bool) -> dict[str, Any]:
    """The plan as plain values."""
    return planned(recipe, strangers).plan.to_dict()
