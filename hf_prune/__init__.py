"""hf_prune: from a repo name to a smaller model that loads, speaks, is measured and is published."""

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
    "report_folder": "results",
    "run": "pipeline",
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
