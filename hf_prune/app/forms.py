"""What a visitor chose, as a recipe; the bundled demo family goes by names, so that no path is ever shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_prune.data.bundled import demo_folder
from hf_prune.demo import demo_recipe
from hf_prune.errors import InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.recipe import Recipe

DEMO = "demo: storymath-16l"
TINY = "demo: stories260K"
SPECIALISTS = {f"demo: {name}": name for name in ("plays", "code", "qa")}
TITLES = {method.title: name for name, method in METHODS.items()}
"""Methods, by what the form calls them."""
NAME = r"\w[\w.-]{0,95}"
REPO = re.compile(rf"{NAME}(/{NAME})?(@[\w./-]{{1,100}})?(\+{NAME}/{NAME}(@[\w./-]{{1,100}})?)?")
LONGEST = 4000
"""Characters of a field."""
TUNE_STEPS = 16
"""Of gradient descent, where it is asked for; as in the second act of the demo."""
QUICK = {"evaluations": 320, "report_sequences": 24, "task_items": 24}
"""So that a run of the bundled models takes a minute or two, and of the tiny one seconds."""


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of the first two pages, as they are: size in percent, tokens of training as text."""

    base: str
    variants: str = ""
    method: str = "Fewer layers (collapse)"
    size: float = 25.0
    front: bool = False
    repair: bool = True
    tune: bool = True
    heal: str = "0"
    evaluations: float = 0
    seed: float = 0


def recipe_of(form: Form, strangers: bool) -> Recipe:
    """The recipe that a form asks for.

    Args:
        form: what was filled in.
        strangers: only names of the Hub and of the demo count, no folders of this machine.

    Raises:
        InvalidRecipe: what is wrong with which field.
    """
    base, variants = _one(form.base, "base", strangers), _lines(form.variants, strangers)
    name = TITLES.get(form.method) if isinstance(form.method, str) else None
    if name is None:
        raise InvalidRecipe(f"There is no method {_public(form.method)!r}; choose one of the list.")
    method = METHODS[name]
    if variants and not method.several:
        raise InvalidRecipe("Variants are for stitching; choose the method for several models, or leave them out.")
    asked = {
        "method": name,
        "variants": variants,
        # Every model of a front would have to be repaired.
        "repair": bool(form.repair) and not method.refits and not form.front,
        "heal": {"tokens": form.heal or "0"},
        "tune": TUNE_STEPS if form.tune and variants and not form.front else 0,
        "seed": _whole(form.seed, "seed", 2**31),
    }
    if trials := _whole(form.evaluations, "candidates", 100_000):
        asked["evaluations"] = trials
    if form.front:
        asked["search"] = "nsga2"
    else:
        asked["ratio"] = _share(form.size)
    return Recipe.of(**{**_bundled(form.base, method.several), **asked, "base": base})


def examples() -> list[list[object]]:
    """Filled-in forms of short runs: base, variants, method, size, every size at once, repair, candidates."""
    layers, stitched, narrow = (METHODS[name].title for name in ("collapse", "stitch", "width"))
    return [
        [TINY, "", layers, 25, False, False, 64],
        [TINY, "", narrow, 25, False, False, 64],
        [TINY, "", layers, 25, True, False, 96],
        [DEMO, "\n".join(SPECIALISTS), stitched, 25, False, False, 64],
    ]


def _bundled(base: str, several: bool) -> dict[str, object]:
    """Text, tasks and sizes of the run where the base is one of the bundled models."""
    windows = 12 if several else 8
    if base.strip() == TINY:
        folder = demo_folder()
        own = {"data": (str(folder / "text" / "stories.heal.jsonl"),),
               "tasks": (str(folder / "tasks" / "stories_cloze.report.jsonl"),)}  # fmt: skip
    elif base.strip() == DEMO:
        chosen = {"base", "variants", "output", "method", "ratio", "repair"}
        act = demo_recipe("stitch" if several else "cut")
        own = {name: value for name, value in act.changed().items() if name not in chosen}
    else:
        return {}
    return own | QUICK | {"sequences": windows, "selection_sequences": windows}


def _lines(text: str, strangers: bool) -> tuple[str, ...]:
    names = [line for line in re.split(r"[\n,]+", _short(text, "variants")) if line.strip()]
    return tuple(_one(name, "variant", strangers) for name in names)


def _one(text: str, field: str, strangers: bool) -> str:
    name = _short(text, field).strip()
    if not name:
        raise InvalidRecipe(f"The {field} is empty; name a repo of the Hub, such as HuggingFaceTB/SmolLM2-135M.")
    demo = demo_recipe("stitch")
    if name == DEMO:
        return demo.base
    if name == TINY:
        return str(demo_folder() / "stories260K")
    if name in SPECIALISTS:
        return next(v for v in demo.variants if Path(v).name == SPECIALISTS[name])
    if REPO.fullmatch(name) and not (strangers and Path(name.split("@")[0].split("+")[0]).exists()):
        return name
    if strangers:
        raise InvalidRecipe(f"{_public(name)!r} is no name of a repo; write it like HuggingFaceTB/SmolLM2-135M.")
    return name


def _short(text: object, field: str) -> str:
    if not isinstance(text, str) or len(text) > LONGEST or "\0" in text:
        raise InvalidRecipe(f"The field {field} takes at most {LONGEST:,} characters of text; name repos of the Hub.")
    return text


def _share(size: object) -> float:
    if not isinstance(size, int | float) or not 1 <= size <= 90:
        raise InvalidRecipe(f"The size to remove lies between 1 and 90 percent, not {_public(size)}.")
    return round(float(size) / 100, 4)


def _whole(value: object, field: str, most: int) -> int:
    number = value or 0
    if not isinstance(number, int | float) or not 0 <= number <= most or number != int(number):
        raise InvalidRecipe(f"The number of {field} is a whole number from 0 to {most:,}, not {_public(value)}.")
    return int(number)


def _public(value: object) -> str:
    return str(value)[:80]


def repos(names: Sequence[str]) -> list[str]:
    """Choices of the picker: the bundled models first."""
    return [DEMO, TINY, *names]
