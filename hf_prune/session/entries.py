"""Which text a run reads, where its recipe names none."""

import json

from hf_prune.data.corpora import check_entries
from hf_prune.data.own_samples import is_own
from hf_prune.errors import DataOffline
from hf_prune.recipe import DEFAULT_DATA, Recipe
from hf_prune.session.workdir import Workdir


def entries_of(recipe: Recipe, workdir: Workdir) -> tuple[str, ...]:
    """The recipe's entries of data. Where there are none, those of before or the default ones; without the Hub, the
    base's own samples alone.

    Raises:
        InvalidData: a default dataset cannot be read although the Hub can be reached.
    """
    if recipe.data.text:
        return recipe.data.text
    if workdir.text.is_file():
        return tuple(json.loads(workdir.text.read_text(encoding="utf-8")))
    try:
        check_entries(DEFAULT_DATA)
    except DataOffline:
        return tuple(filter(is_own, DEFAULT_DATA))
    return DEFAULT_DATA
