"""What is refused before a model is pulled: text and tasks that are not there, layers that cannot be cut so."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_prune import hub
from hf_prune.data import corpora, task_sources
from hf_prune.errors import InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.models.families import Family
from hf_prune.models.feasibility import require_halves, require_one_kind
from hf_prune.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_evidence(recipe: Recipe) -> None:
    """Read text and tasks of this disk, and look for those of the Hub, so that what is wrong is told before a model is
    pulled.

    Args:
        recipe: what is asked for.

    Raises:
        HfPruneError: as `load_corpora` and `load_tasks`; or a tracker is asked for that is not installed.
    """
    if recipe.track != "none" and importlib.util.find_spec(recipe.track) is None:
        raise InvalidRecipe(
            f"--track {recipe.track} needs the package {recipe.track}; install it with: pip install {recipe.track}."
        )
    hub.watch_session()
    tasks = recipe.tasks
    corpora.check_entries(recipe.data.text, tasks.force_test_split)
    task_sources.check_entries(tasks.search, "search", force=tasks.force_test_split)
    task_sources.check_entries(tasks.names)
    for task in recipe.report.lm_eval:
        task_sources.check_harness(task)


def check_gguf(recipe: Recipe, config: "PretrainedConfig | None") -> tuple[str, ...]:
    """Refuse GGUF files that the result of a base could not be written as.

    Args:
        recipe: what is asked for.
        config: of the base, as transformers reads it; None where only its own code would.

    Returns:
        What is to be known of them.

    Raises:
        UnsupportedArchitecture, InvalidRecipe: says why, and what can be done.
    """
    if not recipe.publish.gguf:
        return ()
    # It loads torch, which a plan does without.
    from hf_prune.assembly.gguf.export import check_files

    return check_files(recipe.publish.gguf, config, uneven=METHODS[recipe.method].uneven(recipe))


def check_layers(recipe: Recipe, family: Family, kinds: Sequence[int]) -> None:
    """Refuse what cannot be done to the layers of a family.

    Args:
        recipe: what is asked for.
        family: of the base.
        kinds: number of each layer's kind; tensors of layers of one kind have the same names and shapes.

    Raises:
        UnsupportedArchitecture: says what cannot be done, and what can.
    """
    method, objective = METHODS[recipe.method], recipe.search.objective
    method.require(family)
    halves = (method.takes_apart(recipe), "--repair" if recipe.repair.enabled else None)
    require_halves(family, [flag for flag in halves if flag])
    if objective == "gelaco_v1":
        require_halves(family, [f"--objective {objective}"], modular=True)
    if method.merges(recipe):
        require_one_kind(family, kinds)
