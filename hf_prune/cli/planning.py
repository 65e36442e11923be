"""What `plan` and `--dry-run` show."""

from dataclasses import asdict

from hf_prune.cli.terminal import Format, line, loading, show
from hf_prune.recipe import Recipe


def show_plan(recipe: Recipe, form: Format, verbose: bool = False) -> None:
    """Measure this machine, and show what a run would do and need; with `verbose` every row.

    Raises:
        HfPruneError: as `plan`.
    """
    from hf_prune.cli.screen import plan_table, verdict_table
    from hf_prune.models.variants import peeks, verdicts
    from hf_prune.planning import plan, rates_here, room_here

    loading(form)
    base, *variants = peeks(recipe.base, recipe.variants, **recipe.trust.arguments)
    found = plan(recipe, base, variants, rates_here, room_here(recipe.machine.device))
    compared = verdicts(base, *variants)
    if form == "json":
        more = {"variants": [{**asdict(v), "fits": v.fits} for v in compared]} if compared else {}
        line({"event": "Plan", **found.to_dict(), **more})
    elif form == "human":
        show(plan_table(found, verbose))
        if compared:
            show(verdict_table(compared))
