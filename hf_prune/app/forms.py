"""What a visitor chose, as a recipe; the bundled demo family goes by names, so that no path is ever shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from hf_prune.data.bundled import demo_folder
from hf_prune.demo import demo_recipe
from hf_prune.errors import InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.recipe import OPTIONS, TASK_OBJECTIVES, Objective, Recipe

DEMO = "demo: storymath-16l"
TINY = "demo: stories260K"
SPECIALISTS = {f"demo: {name}": name for name in ("plays", "code", "qa")}
TITLES = {method.title: name for name, method in METHODS.items()}
"""Methods, by what the form calls them."""
NAME = r"\w[\w.-]{0,95}"
REPO = re.compile(rf"{NAME}(/{NAME})?(@[\w./-]{{1,100}})?(\+{NAME}/{NAME}(@[\w./-]{{1,100}})?)?")
ENTRY = re.compile(rf"self|{NAME}/{NAME}(:[\w.+-]{{1,100}}){{0,2}}")
"""Text or tasks that strangers may name: a data set, its config and a column or split."""
LONGEST = 4000
"""Characters of a field."""
TUNE_STEPS = 16
"""Of gradient descent, where it is asked for; as in the second act of the demo."""
QUICK = {"evaluations": 320, "report_sequences": 24, "task_items": 24}
"""So that a run of the bundled models takes a minute or two, and of the tiny one seconds."""


LABELS = {
    "base": "Base model", "variants": "Variants", "method": "Method", "ratio": "Parameters to remove (%)",
    "search": "Search every size at once (a Pareto front)",
    "repair": "Repair: refit the weights that stay, without training",
    "tune": "Tune: learn a stitched model's mixes by gradient descent", "heal": "Train on so many tokens afterwards",
    "evaluations": "Most candidates (0: by the depth of the model)", "seed": "Seed", "data": "Text to judge by",
    "tasks": "Tasks of the report", "objective": "What the search minimises", "time": "Time it may take",
    "dtype": "Precision", "length": "Tokens per window", "sequences": "Windows of text",
    "selection_sequences": "Windows of text", "push_to": "Name of the repo",
}  # fmt: skip
"""Fields of a recipe that the pages have, by what they are called there."""
OBJECTIVES = tuple(o for o in get_args(Objective) if o not in TASK_OBJECTIVES)
PRECISIONS = ("auto", "bfloat16", "float16", "float32")
LENGTHS = ("256", "192", "128", "64")
WINDOWS = ("16", "12", "8", "4")


def in_words_of_the_page(text: str) -> str:
    """A sentence in which options of the command line are the fields that visitors see, where there are such."""
    fields = {
        OPTIONS[name].flag[2:]: f"“{label.partition(':')[0].partition(' (')[0]}”" for name, label in LABELS.items()
    }

    def said(match: re.Match[str]) -> str:
        field = fields.get(match[2])
        return f"no {field}" if field and match[1] else field or match[0]

    return re.sub(r"--(no-)?([a-z][a-z-]*)", said, text)


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
    data: str = ""
    tasks: str = ""
    objective: str = "kl"
    time: str = ""
    dtype: str = "auto"
    length: str = "256"
    windows: str = "16"


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
    asked |= _evidence(form, strangers)
    if trials := _whole(form.evaluations, "candidates", 100_000):
        asked["evaluations"] = trials
    if form.front:
        asked["search"] = "nsga2"
    else:
        asked["ratio"] = _share(form.size)
    return Recipe.of(**{**_bundled(form.base, method.several), **asked, "base": base})


def examples() -> dict[str, Form]:
    """Filled-in forms of short runs, by what they are called."""
    layers, stitched, narrow = (METHODS[name].title for name in ("collapse", "stitch", "width"))
    four = "\n".join(SPECIALISTS)
    return {
        "A quarter of the layers": Form(DEMO, method=layers, repair=False, evaluations=64),
        "The same, repaired": Form(DEMO, method=layers, evaluations=64),
        "Narrower layers": Form(TINY, method=narrow, repair=False, evaluations=64),
        "Every size at once": Form(DEMO, method=layers, front=True, repair=False, evaluations=96),
        "One model of four": Form(DEMO, four, stitched, repair=False, evaluations=64),
    }


def _evidence(form: Form, strangers: bool) -> dict[str, object]:
    """What is judged by, how finely and how long, where that is not the default."""
    text, tasks = (_entries(value, field, strangers) for value, field in ((form.data, "data"), (form.tasks, "tasks")))
    windows = _chosen(form.windows, WINDOWS, "sequences")
    asked: dict[str, object] = {
        "data": text,
        "tasks": tasks,
        "objective": _chosen(form.objective, OBJECTIVES, "objective"),
        "time": _short(form.time, LABELS["time"]).strip(),
        "dtype": _chosen(form.dtype, PRECISIONS, "dtype"),
        "length": int(_chosen(form.length, LENGTHS, "length")),
        "sequences": int(windows),
        "selection_sequences": int(windows),
    }
    return {name: value for name, value in asked.items() if value not in ((), "", OPTIONS[name].field.default)}


def _entries(text: object, field: str, strangers: bool) -> tuple[str, ...]:
    """Lines of a field that names text or tasks; strangers name what the Hub has."""
    found = [line.strip() for line in re.split(r"[\n,]+", _short(text, LABELS[field])) if line.strip()]
    for entry in found if strangers else ():
        if not ENTRY.fullmatch(entry) or Path(entry.partition(":")[0]).exists():
            raise InvalidRecipe(
                f"{_public(entry)!r} is no data set of the Hub; write it like Salesforce/wikitext:wikitext-2-raw-v1."
            )
    return tuple(found)


def _chosen(value: object, choices: Sequence[str], field: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise InvalidRecipe(f"{LABELS[field]} is one of {', '.join(choices)}, not {_public(value)!r}.")
    return value


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
