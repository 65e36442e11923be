"""The acts of `hf-prune demo`: recipes over the bundled models and texts."""

from pathlib import Path
from typing import Any, Literal

from hf_prune.data.bundled import demo_folder
from hf_prune.data.tasks import bundled_tasks
from hf_prune.recipe import Recipe

Act = Literal["cut", "stitch", "width"]
CUT_SECONDS = 160
"""So that the first act is over before anybody leaves, on slow machines with less than all it could do."""
OUTPUTS = {"cut": "pruned-demo", "stitch": "stitched-demo", "width": "narrow-demo"}


def demo_recipe(act: Act, output: str | None = None) -> Recipe:
    """A quarter off the bundled model: layers of it, repaired; layers of it and its three specialists; or widths."""
    folder = Path(demo_folder())
    asked = {
        "base": str(folder / "storymath-16l"),
        "data": (str(folder / "text"),),
        "ratio": 0.25,
        "tasks": tuple(map(str, bundled_tasks())),
        "task_items": 50,
    }
    if act == "width":
        return Recipe.of(**asked, method="width", evaluations=320, output=output or OUTPUTS[act])
    asked |= {"repair": True, "repair_finalists": 2}
    if act == "stitch":
        asked |= _stitched(folder, folder / "specialists")
    else:
        asked["time"] = CUT_SECONDS
    return Recipe.of(**asked, output=output or OUTPUTS[act])


def _stitched(folder: Path, specialists: Path) -> dict[str, Any]:
    """Three adapters, their text and their tasks beside those of the base; few baselines and items, to be quick."""
    return {
        "method": "stitch",
        "variants": tuple(str(specialists / name) for name in ("plays", "code", "qa")),
        "data": (str(folder / "text"), str(specialists / "text")),
        "tasks": tuple(str(p) for w in (folder, specialists) for p in sorted((w / "tasks").glob("*.report.jsonl"))),
        "baselines": ("shortgpt", "greedy"),
        "sequences": 24,
        "selection_sequences": 18,
        "evaluations": 320,
        "tune": 16,
        "task_items": 24,
    }
