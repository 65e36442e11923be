"""A recipe: fields that fit together, its digests, and the file it is read from and written to."""

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator
from pydantic_core import to_json

from hf_prune.errors import InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.recipe.fields import TASK_OBJECTIVES, Fields
from hf_prune.recipe.spelling import OPTIONS, flatten, nest, read
from hf_prune.recipe.told import describe_fields
from hf_prune.search import SEARCHERS

NOT_IDENTITY = {
    "output", "library", "memory", "push_to", "create_pr", "public", "commit_message", "overwrite", "device",
    "dequantize", "gguf", "gguf_apart", "workers", "track",
}  # fmt: skip
"""Fields that do not change which model comes out, so a changed value does not make a journal stale."""

AFTER_SEARCH = {
    "tune", "tune_items", "repair", "heal", "heal_method", "heal_rank", "heal_alpha", "heal_kl", "heal_ce",
    "heal_top_k", "heal_lr", "heal_batch", "heal_checks", "heal_patience", "gradient_checkpointing", "keep_adapter",
    "report_sequences", "tasks", "task_items", "lm_eval", "lm_eval_limit",
}  # fmt: skip
"""Fields that no candidate's score depends on, so a journal is good for any of their values."""

AFTER_TRAINING = {"report_sequences", "tasks", "task_items", "lm_eval", "lm_eval_limit", "keep_adapter"}
"""Fields that no trained weight depends on, so a training is taken up again whatever their values."""

ORDER = (
    "base", "variants", "output", "method", "ratio", "keep_layers", "drop_layers", "drop", "rules", "norms", "merges",
    "mix_halves", "tune", "tune_items", "latency", "levels", "multiple_of", "damping", "library_sequences", "library",
    "objective", "search", "evaluations", "population", "offspring", "seed", "data", "sequences",
    "selection_sequences", "report_sequences", "length", "search_tasks", "search_items", "selection_items", "tasks",
    "task_items", "lm_eval", "lm_eval_limit", "baselines", "repair", "reach", "repair_sequences", "repair_finalists",
    "search_heal", "heal", "heal_method", "heal_rank", "heal_alpha", "heal_kl", "heal_ce", "heal_top_k", "heal_lr",
    "heal_batch", "heal_checks", "heal_patience", "gradient_checkpointing", "keep_adapter", "device", "dtype", "memory",
    "allow_pickle", "trust_remote_code", "force_test_split", "push_to", "public", "create_pr", "commit_message",
    "overwrite",
)  # fmt: skip
"""Flat names in the order that digests are taken over: another one, and no journal or result is known again.

A field that is not among them counts where it differs from its default, so that a new one leaves old digests alone.
"""


FIRST_BASELINES = (
    "random", "last", "shortgpt", "window", "greedy", "removal", "selection", "uniform", "errors", "wanda", "magnitude",
)  # fmt: skip
"""What digests are taken over for all baselines, so that those of a new method leave old digests alone."""

LONGEST_TEXT = 4096
"""Characters of a text, as of a path."""
LONGEST_SENTENCE = 600
"""Characters of what is said of a recipe that is wrong."""
MOST_VARIANTS = 32
"""Every one is opened and read."""


class Recipe(Fields):
    """Everything a run depends on, however it is spelled. Unknown keys are refused with the nearest right name."""

    def __init__(self, **fields: Any) -> None:
        """Build from keyword arguments: flat names, or groups as mappings.

        Raises:
            InvalidRecipe: unknown key, wrong type, or contradicting values; the message names the field.
        """
        try:
            super().__init__(**fields)
        except ValidationError as e:
            raise InvalidRecipe(_sentence(e)) from None

    @model_validator(mode="before")
    @classmethod
    def _grouped(cls, asked: Any) -> Any:
        return nest(flatten(asked)) if isinstance(asked, Mapping) else asked

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        check_text(self)
        check_search(self)
        check_method(self)
        check_published(self)
        return self

    @property
    def every_size(self) -> bool:
        """Whether the search looks for a front of sizes, and no size is asked for."""
        return SEARCHERS[self.search.searcher].every_size

    @property
    def learned_items(self) -> int:
        """Items of every search task that search or tuning learn from; those behind them choose among finalists."""
        searched = self.tasks.search_items
        return max(searched, self.tune.items or 0) if self.tune.steps else searched

    @property
    def digest(self) -> str:
        """64 bits over every field that decides the result."""
        return self._digest(NOT_IDENTITY)

    @property
    def training_digest(self) -> str:
        """64 bits over every field that decides what is trained."""
        return self._digest(NOT_IDENTITY | AFTER_TRAINING)

    @property
    def search_digest(self) -> str:
        """64 bits over every field that decides the scores of candidates."""
        return self._digest(NOT_IDENTITY | AFTER_SEARCH)

    def _digest(self, left_out: set[str]) -> str:
        counted = {*ORDER, *self.changed()} - left_out
        fields = {name: value for name, value in self.flat().items() if name in counted}
        if fields["baselines"] == OPTIONS["baselines"].field.default:
            fields["baselines"] = FIRST_BASELINES
        return hashlib.sha256(to_json(fields)).hexdigest()[:16]

    def flat(self) -> dict[str, Any]:
        """Every field by its flat name."""
        return {name: OPTIONS[name].of(self) for name in dict.fromkeys((*ORDER, *OPTIONS))}

    def changed(self) -> dict[str, Any]:
        """Fields that differ from their defaults by their flat names, as JSON knows them: what a report keeps."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.flat().items()
            if value != OPTIONS[name].field.default
        }

    def replace(self, **changes: Any) -> "Recipe":
        """The same recipe with other values, spelled in any way.

        Raises:
            InvalidRecipe: as `of`.
        """
        return self._read(self.flat(), changes)

    @classmethod
    def of(cls, **fields: Any) -> "Recipe":
        """The same as `Recipe(**fields)`, for names that are put together.

        Raises:
            InvalidRecipe: as `Recipe(...)`.
        """
        return cls._read(fields)

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> "Recipe":
        """Read YAML; `overrides` (CLI flags) win.

        Raises:
            InvalidRecipe: as `of`; and what cannot be read.
        """
        return cls._read(read(path), overrides)

    @classmethod
    def _read(cls, *asked: Mapping[Any, Any]) -> "Recipe":
        """Of several mappings the later one wins, field by field."""
        try:
            return cls.model_validate(nest({name: value for one in asked for name, value in flatten(one).items()}))
        except ValidationError as e:
            raise InvalidRecipe(_sentence(e)) from None
        except ValueError as e:
            raise InvalidRecipe(_ended(f"Recipe: {e}")) from None

    def to_yaml(self) -> str:
        """Every field that differs from its default, in its group, in the order of the definition."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(fields, sort_keys=False)

    def __getattr__(self, name: str) -> Any:
        """Flat names of fields that stand in groups now; deprecated."""
        option = OPTIONS.get(name)
        if option is None or name in Fields.model_fields:
            return super().__getattr__(name)
        warnings.warn(f"Recipe.{name} is Recipe.{'.'.join(option.path)} now", DeprecationWarning, stacklevel=2)
        return option.of(self)


describe_fields(Recipe)


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    match first["type"]:
        case "greater_than_equal":
            text = f"must be at least {first['ctx']['ge']:g}, not {first['input']}"
        case "greater_than":
            text = f"must be above {first['ctx']['gt']:g}, not {first['input']}"
        case _:
            text = first["msg"].removeprefix("Value error, ")
    return _ended(_cut_short(f"Recipe{' field ' + where if where else ''}: {text}"))


def _cut_short(text: str) -> str:
    """A sentence without the middle of what it quotes, where that is longer than anybody reads."""
    return text if len(text) <= LONGEST_SENTENCE else f"{text[: LONGEST_SENTENCE - 200]} ... {text[-195:]}"


def _ended(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def check_text(recipe: Recipe) -> None:
    """Every text can be written to a file, and is none that nobody would write.

    Raises:
        ValueError: which one is not, and why.
    """
    for name, value in recipe.flat().items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and (len(text) > LONGEST_TEXT or re.search(r"[\0\ud800-\udfff]", text)):
                raise ValueError(f"{name} holds a text that no file or model has as its name; correct it")


def check_search(recipe: Recipe) -> None:
    """Searcher, objective and size fit each other.

    Raises:
        ValueError: they do not.
    """
    searcher, objective = recipe.search.searcher, recipe.search.objective
    if recipe.every_size and recipe.size.given:
        raise ValueError(
            f"search {searcher} looks at every size, so {recipe.size.given[0]} has no meaning; drop one of the two"
        )
    if objective in TASK_OBJECTIVES and not recipe.tasks.search:
        raise ValueError(f"objective {objective} needs tasks to search on; name files with --search-tasks")


def check_method(recipe: Recipe) -> None:
    """The method knows what is asked of it.

    Raises:
        ValueError: what contradicts what.
    """
    method, searcher = METHODS[recipe.method], recipe.search.searcher
    if len(recipe.variants) > MOST_VARIANTS:
        raise ValueError(f"variants are {len(recipe.variants)} models, and {MOST_VARIANTS} are the most; name fewer")
    if method.several != bool(recipe.variants):
        several = " or ".join(name for name, m in METHODS.items() if m.several)
        raise ValueError(
            f"method {recipe.method} takes layers from a base and its variants; name at least one with --variant"
            if method.several
            else f"method {recipe.method} knows one model; with variants choose --method {several}"
        )
    if recipe.tune.steps and (not method.several or recipe.every_size):
        raise ValueError(f"tune learns the mixes of one model; leave it out without variants or with search {searcher}")
    if not SEARCHERS[searcher].needs <= method.genes:
        fit = ", ".join(name for name, s in SEARCHERS.items() if s.needs <= method.genes)
        raise ValueError(f"search {searcher} does not know the genes of method {recipe.method}; choose one of {fit}")
    if recipe.repair.enabled and method.refits:
        raise ValueError(f"the levels of method {recipe.method} are repaired already; leave out --repair")
    method.check(recipe)


def check_published(recipe: Recipe) -> None:
    """What is published is what was made, and there is a place for it.

    Raises:
        ValueError: a file would lack what was trained, or has no place.
    """
    publish = recipe.publish
    if publish.gguf_apart and not (publish.repo and publish.gguf):
        raise ValueError("gguf_apart says where GGUF files go; name their types with gguf and a repo with push_to")
    if publish.gguf and publish.repo and "/" not in publish.repo:
        raise ValueError(f"a GGUF file is run by the full name of its repo; write NAMESPACE/{publish.repo[:96]}")
    if publish.gguf and recipe.heal.keep_adapter and recipe.heal.tokens:
        raise ValueError("a GGUF file holds weights, and keep_adapter leaves the training out of them; drop one")
