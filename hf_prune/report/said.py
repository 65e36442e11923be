"""What a result says of its own making: a stranger's word, so names on the Hub and nothing that could be a file here.

What comes out of this module is spelled hf://, and whoever opens that asks the Hub, whatever lies here under the name.
"""

import re
from collections.abc import Mapping
from typing import Any

from hf_prune.blueprint import LOCAL, Source
from hf_prune.data import local_files
from hf_prune.data.own_samples import SELF
from hf_prune.errors import InvalidRecipe, SourceError, SourceNotFound
from hf_prune.hub import names
from hf_prune.hub.names import shown
from hf_prune.recipe import OPTIONS

NEVER_KEPT = frozenset(
    "base variants allow_pickle trust_remote_code force_test_split push_to public create_pr commit_message overwrite "
    "output device workers lm_eval library gguf gguf_apart track".split()
)
"""Fields that a report may not decide: what is read, trusted, run, published or written."""
FROM_THE_HUB = ("data", "tasks")
"""Fields whose entries may be datasets of the Hub, and otherwise are files of the machine that made the result."""
WORDS = ("search_tasks", "rules", "merges", "drop", "vocabulary")
"""Fields of free text that is kept and never opened: the search is over, the rest is checked against patterns."""
DATASET = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w .+-]*){0,3}")
FILES = (".jsonl", ".json", ".txt", ".yaml", ".yml")
"""What names of files end with, which were files where the result was made."""
NAME = re.compile(r"\w[\w-]*")
"""Of a task that comes with lm_eval."""


def kept(told: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that a report may decide.

    Args:
        told: the recipe in the report.
        given: fields that the user decides, by flat name; what the report says of them is not looked at.

    Raises:
        InvalidRecipe: it names data or tasks that are not on the Hub.
    """
    # A mapping would stand for a group, and hide what may not be said.
    found = {k: v for k, v in told.items() if k in OPTIONS and k not in NEVER_KEPT and not isinstance(v, dict)}
    for name in FROM_THE_HUB:
        if name in given:
            found.pop(name, None)
        elif name in found:
            entries = found[name] if isinstance(found[name], list | tuple) else [found[name]]
            found[name] = tuple(_entry(name, e) for e in entries)
    return found


def _entry(name: str, entry: Any) -> str:
    """An entry of data or tasks as a dataset of the Hub, as the base's own samples, though not its answers to prompts
    of a file, or as a task that comes with lm_eval."""
    said = str(entry).removeprefix(local_files.ON_HUB)
    if name == "data" and entry == SELF:
        return SELF
    if DATASET.fullmatch(said) and ".." not in said and not said.partition(":")[0].endswith(FILES):
        return local_files.ON_HUB + said
    if name == "tasks" and NAME.fullmatch(said) and local_files.here(said) is None:
        return said
    raise InvalidRecipe(f"This result was made with the local file {shown(said)!r}; say where it is with --{name}.")


def is_local(pinned: Source) -> bool:
    """Whether a source, or its adapter, is a folder of the machine that made the blueprint."""
    return pinned.is_local or LOCAL in (pinned.adapter or "")


def source(pinned: Source) -> str:
    """A source of a blueprint as it is pulled.

    Raises:
        SourceError: it is a folder of the machine that made the blueprint, or no commit of a repo.
    """
    if is_local(pinned):
        raise SourceError(
            f"The blueprint was made from the local folder {shown(pinned.repo)!r}; say where it is with --source or "
            "--base."
        )
    found = [names.ON_HUB + name for name in (f"{pinned.repo}@{pinned.revision}", pinned.adapter) if name]
    for name in found:
        said = names.REFERENCE.fullmatch(name.removeprefix(names.ON_HUB))
        if not said or not names.COMMIT.fullmatch(said.group("revision") or ""):
            raise SourceNotFound(
                f"The blueprint names {shown(pinned)!r}, which is no commit of a repo of the Hub; say where that model "
                "is with --source or --base."
            )
        names.parse(name)
    return "+".join(found)
