"""hf_prune: from a repo name to a smaller model that loads, speaks, is measured and is published.

    from hf_prune import Recipe, compress, run

    recipe = Recipe(base="ns/model", ratio=0.25, repair=True, output="small")
    result = run(recipe)                 # or: for event in compress(recipe): print(event)

Recipe: what is asked for; its fields are the flags of the command line.
plan: what a run would do and need, before anything is downloaded.
run, compress: the run, as a Result or as a stream of events.
scout: fine-tunes of a base that stitch could use.
heal_folder, report_folder: train a finished folder further, or measure it again.
assemble_blueprint, Blueprint: a model as a recipe of source layers, and what rebuilds it bit for bit.
push: publish a finished folder.
HfPruneError: every error that is raised on purpose.
"""

from importlib import import_module
from typing import Any

from hf_prune.models import registration

__version__ = "0.1.0"

PUBLIC = {
    "Blueprint": "blueprint",
    "HfPruneError": "errors",
    "Recipe": "recipe",
    "Result": "pipeline",
    "assemble_blueprint": "results",
    "compress": "pipeline",
    "heal_folder": "results",
    "plan": "planning.here",
    "push": "report.gguf_card",
    "report_folder": "results",
    "run": "pipeline",
    "scout": "models.scout",
}

__all__ = ["__version__", *PUBLIC]

registration.install()


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import hf_prune` and `hf-prune --help` do not load torch."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
