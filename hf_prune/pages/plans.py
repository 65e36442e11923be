"""What a run would do and need, before anything is downloaded."""

import os
import shlex
from dataclasses import dataclass
from typing import Any

from hf_prune import compatibility
from hf_prune.errors import InvalidRecipe
from hf_prune.pages.markup import note, table
from hf_prune.plan import Plan, plan
from hf_prune.recipe import Recipe
from hf_prune.redaction import public_recipe
from hf_prune.screen import plan_rows
from hf_prune.variants import peeks, verdicts
from hf_prune.verdicts import amount

ROOM = 0.7
"""Share of this machine's memory that a run may plan with."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, how the variants compare with the base, and why this machine is too small, if it is."""

    plan: Plan
    compared: tuple[compatibility.Verdict, ...]
    too_small: str | None


def planned(recipe: Recipe, strangers: bool) -> Planned:
    """Look at headers and small files.

    Raises:
        HfPruneError: the base or a variant cannot be used.
    """
    if strangers and (recipe.allow_pickle or recipe.trust_remote_code):
        raise InvalidRecipe("Pickles and models that ship code are not run here; use hf_prune on your own machine.")
    base, *variants = peeks(recipe)
    found = plan(recipe, base, variants)
    return Planned(found, tuple(verdicts(base, *variants)), _too_small(found))


def html(found: Planned) -> str:
    """The plan as tables."""
    parts = [table(("", ""), plan_rows(found.plan).items(), "plan")]
    if found.compared:
        header, rows = compatibility.table(found.compared)
        parts.append("<h4>Do the variants fit?</h4>" + table(header, rows, "variants"))
    if found.too_small:
        parts.append(note(found.too_small, "warn"))
    return "".join(parts)


def command(recipe: Recipe, local: bool = True) -> str:
    """The same run by the command line."""
    asked = public_recipe(recipe.model_dump(mode="json", exclude_defaults=True))
    words = ["hf-prune", "compress", str(asked.pop("base"))]
    for name, value in asked.items():
        option = "--" + (Recipe.model_fields[name].json_schema_extra or {}).get("flag", name.replace("_", "-"))
        for one in value if isinstance(value, list) else [value]:
            words += [option] if one is True else [option, str(one)]
    return shlex.join(words)


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as a file for another machine."""
    import yaml

    return yaml.safe_dump(public_recipe(recipe.model_dump(mode="json", exclude_defaults=True)), sort_keys=False)


def _too_small(found: Plan) -> str | None:
    room = memory()
    if found.memory_bytes <= ROOM * room:
        return None
    return (
        f"This machine is too small: the search needs about {amount(found.memory_bytes, 'B')}, and "
        f"{amount(ROOM * room, 'B')} are free for it. Run it elsewhere with the command or the recipe below."
    )


def memory() -> int:
    """Bytes of memory: the machine's, or what its container may take."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(machine, int(file.read()))
    except (OSError, ValueError):
        return machine


def summary(recipe: Recipe, strangers: bool) -> dict[str, Any]:
    """The plan as plain values."""
    return planned(recipe, strangers).plan.to_dict()
