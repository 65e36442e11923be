"""Command-line options from a pydantic model: the recipe stays the only definition."""

import functools
import inspect
from collections.abc import Callable, Iterable
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator

from hf_prune.recipe import spelled


def flags_of(model: type[BaseModel], names: Iterable[str] | None = None) -> list[inspect.Parameter]:
    """One option per field: name with dashes, type, description and default; None when the flag is not given.

    Tuples become repeatable options, booleans get a --no- form so that a flag can override a recipe file.
    """
    return [_flag(name, model) for name in (model.model_fields if names is None else names)]


def _flag(name: str, model: type[BaseModel]) -> inspect.Parameter:
    field = model.model_fields[name]
    dashed = spelled(name, model)
    kind, choices = _option_type(field.annotation)
    if any(isinstance(m, BeforeValidator) for m in field.metadata):
        # pydantic reads more spellings (1M) than typer would.
        kind, choices = str, "<tokens>"
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    option = typer.Option(
        f"{dashed}/--no-{dashed[2:]}" if kind is bool else dashed,
        help=field.description + ("" if default in (None, "") or default is False else f"  [default: {default}]"),
        metavar=choices,
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option_type(annotation: Any) -> tuple[Any, str | None]:
    """What typer parses, and what to show for it where typer has no words (pydantic checks the choices of a list)."""
    if get_origin(annotation) is Literal:
        return annotation, None
    kind = next(t for t in (get_args(annotation) or (annotation,)) if t is not NoneType)
    if get_origin(annotation) is not tuple:
        return kind, None
    if get_origin(kind) is Literal:
        return list[str], f"<{'|'.join(get_args(kind))}>..."
    return list[kind], f"<{kind.__name__}>..."


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
