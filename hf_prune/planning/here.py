"""The plan of a recipe on this machine, for whoever has a recipe and nothing else."""

from hf_prune.models.variants import peeks
from hf_prune.planning import plans
from hf_prune.planning.memory import room_here
from hf_prune.planning.plans import Plan
from hf_prune.planning.rates import rates_here
from hf_prune.recipe import Recipe


def plan(recipe: Recipe) -> Plan:
    """Look at the sources of a recipe, measure this machine, and say what `compress(recipe)` would do and need.

    No weights are downloaded, and nothing is written.

    Raises:
        HfPruneError: what `compress` would refuse before anything expensive.
    """
    base, *variants = peeks(recipe.base, recipe.variants, **recipe.trust.arguments)
    return plans.plan(recipe, base, variants, rates_here, room_here(recipe.machine.device))
