"""Command-line options from the fields of a recipe, which stays the only definition."""

import functools
import inspect
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BeforeValidator

from hf_prune.recipe.spelling import Option

SPELLED = {int: "<tokens>", float: "<time>"}
"""How numbers that people write with a unit are shown."""
WIDEST = 24
"""Characters of choices beside a flag; more of them stand in its description."""


def flags_of(options: Iterable[Option]) -> list[inspect.Parameter]:
    """One option per field: name with dashes, type, description and default; None when the flag is not given.

    Tuples become repeatable options, booleans get a --no- form so that a flag can override a recipe file.
    """
    return [_flag(option) for option in options]


def _flag(option: Option) -> inspect.Parameter:
    field, flag = option.field, option.flag
    kind, choices, metavar = _option_type(field.annotation)
    if kind in SPELLED and any(isinstance(m, BeforeValidator) for m in field.metadata):
        # pydantic reads more spellings (1M, 30m) than typer would.
        kind, metavar = str, SPELLED[kind]
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    text = field.description
    if metavar == "<name>" and any(choice not in f"{text} {default}" for choice in choices):
        text += f" One of {', '.join(choices)}."
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=text + ("" if default in (None, "") or default is False else f"  [default: {default}]"),
        metavar=metavar,
    )
    annotation = Annotated[kind | None, info]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def choices_of(annotation: Any) -> tuple[Any, tuple[str, ...], bool]:
    """The plain type of a field or of the entries of a list, what it may be where that is listed, and whether it is a
    list."""
    kind = annotation
    if get_origin(annotation) is not Literal:
        kind = next(t for t in (get_args(annotation) or (annotation,)) if t is not NoneType)
    return kind, get_args(kind) if get_origin(kind) is Literal else (), get_origin(annotation) is tuple


def _option_type(annotation: Any) -> tuple[Any, tuple[str, ...], str | None]:
    """What typer parses, the choices, and what to show where typer has no words (pydantic checks those of a list)."""
    kind, choices, several = choices_of(annotation)
    shown = f"<{'|'.join(choices)}>" if len("|".join(choices)) <= WIDEST else "<name>"
    if several:
        return (list[str], choices, f"{shown}...") if choices else (list[kind], (), f"<{kind.__name__}>...")
    return kind, choices, shown if choices else None


def with_flags(*fields: inspect.Parameter) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes **values the options in `fields`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        keyword = [p.replace(kind=p.KEYWORD_ONLY) for p in own[1:]]

        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            command(*args, **kwargs)

        run.__signature__ = inspect.Signature([own[0], *keyword, *fields])
        run.__annotations__ = {}
        return run

    return decorate
