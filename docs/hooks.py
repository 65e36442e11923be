"""Pages that are made of the code, not written: commands, recipe keys, public names; and files of the repository.

mkdocs calls `on_files` and `on_page_markdown`; nothing else here is for anybody.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BeforeValidator

import hf_prune
from hf_prune import errors
from hf_prune.cli.flags import SPELLED, choices_of
from hf_prune.cli.main import app
from hf_prune.events import Event
from hf_prune.recipe import OPTIONS
from hf_prune.recipe.fields import Fields, Group
from hf_prune.recipe.spelling import Option

ROOT = Path(__file__).parents[1]
TAKEN = {
    "benchmarks.md": "examples/benchmarks/README.md",
    "changes.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
"""Pages that are files of the repository."""


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, errors.HfPruneError)


MET = {
    "Events": ("hf_prune.events", [event.__name__ for event in get_args(Event)]),
    "Errors": ("hf_prune.errors", [one.__name__ for one in vars(errors).values() if _is_error(one)]),
    "What report.json holds": ("hf_prune.report.schema.report", ["Report"]),
}
"""Names that people meet without importing them, by heading: their module, and which of it."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the pictures."""
    made = {"reference/commands.md": commands(), "reference/recipe.md": recipe(), "reference/python.md": python()}
    for path, source in TAKEN.items():
        made[path] = (ROOT / source).read_text(encoding="utf-8")
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for picture in sorted((ROOT / "examples/pictures").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a file of the repository lead into the repository, or are plain code where no address is known."""
    source = TAKEN.get(page.file.src_uri)
    if source is None:
        return markdown

    def led(link: re.Match[str]) -> str:
        words, target, anchor = link.groups()
        if not target or "://" in target:
            return link[0]
        place = ((ROOT / source).parent / target).resolve().relative_to(ROOT)
        address = f"{config.repo_url.rstrip('/')}/blob/main/{place}{anchor or ''}" if config.repo_url else ""
        return f"[{words}]({address})" if address else words if words.startswith("`") else f"`{words}`"

    return LINK.sub(led, markdown)


def commands() -> str:
    """Every command: its usage, what it does, arguments and options."""
    found = ["# Commands\n\nEvery command tells the same with `--help`; options of a recipe are on "
             "[a page of their own](recipe.md).\n"]  # fmt: skip
    for words, command in _commands(typer.main.get_command(app), ("hf-prune",)):
        context = typer.Context(command, info_name=" ".join(words))
        usage = command.get_usage(context).removeprefix("Usage: ")
        shown = [p for p in command.get_params(context) if p.get_help_record(context)]
        own = [p for p in shown if p.name not in OPTIONS or p.param_type_name == "argument"]
        rows = [(_code(names), _plain(text)) for names, text in (p.get_help_record(context) for p in own)]
        found += [f"## {' '.join(words)}\n", f"```text\n{usage}\n```\n", f"{_plain(command.help or '')}\n"]
        found += [_table(("", "what it means"), rows)] if rows else []
        if named := [OPTIONS[p.name] for p in shown if p not in own]:
            links = ", ".join(f"[`{o.flag}`](recipe.md#{_anchor(o)})" for o in named)
            found.append(f"Of the recipe: {links}.\n")
    return "\n".join(found)


def _commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", {})
    if not below:
        yield words, command
    for name, one in below.items():
        if not one.hidden:
            yield from _commands(one, (*words, name))


def recipe() -> str:
    """Every key of a recipe, in its group."""
    found = [
        "# Recipe\n\nA key of a YAML file, a field of `hf_prune.Recipe` and a flag of the command line are one thing. "
        "A flag without its dashes is a key, too: `heal_rank: 16` and `heal: {rank: 16}` mean the same, and a value in "
        "the place of a group is its main field, as in `heal: 1M`. Those in bold are what most people need.\n",
        "## The run itself\n",
        _keys([o for o in OPTIONS.values() if not o.path[1:]]),
    ]
    for name, field in Fields.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Group):
            main = f" A plain value is its `{group.main}`." if group.main else ""
            found += [
                f"## {name}\n",
                f"{group.__doc__.splitlines()[0]}{main}\n",
                _keys([o for o in OPTIONS.values() if o.path[0] == name]),
            ]
    return "\n".join(found)


def _keys(options: list[Option]) -> str:
    rows = []
    for option in options:
        key = f"`{option.path[-1]}`" + "{ #" + _anchor(option) + " }"
        rows.append((f"**{key}**" if option.first else key, _code(option.flag), _kind(option), _plain(_said(option))))
    return _table(("key", "flag", "value", "what it means"), rows)


def _said(option: Option) -> str:
    default = option.field.default
    if default in (None, "", ()) or default is False or option.field.is_required():
        return option.field.description
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{option.field.description} Default: {shown}."


def _kind(option: Option) -> str:
    kind, choices, several = choices_of(option.field.annotation)
    if kind in SPELLED and any(isinstance(m, BeforeValidator) for m in option.field.metadata):
        return SPELLED[kind].strip("<>")
    said = " ".join(_code(c) for c in choices) or {
        "str": "text", "int": "number", "float": "number", "bool": "yes or no"
    }[kind.__name__]  # fmt: skip
    return f"list of {said}" if several else said


def _anchor(option: Option) -> str:
    return option.name.replace("_", "-")


def python() -> str:
    """Every public name, from its docstring."""
    found = ["# Python\n\nWhat `import hf_prune` gives; torch is loaded when the first of them needs it.\n"]
    found += [f"::: hf_prune.{module}.{name}\n" for name, module in sorted(hf_prune.PUBLIC.items())]
    for title, (module, names) in MET.items():
        found += [f"## {title}\n", *(f"::: {module}.{name}\n" for name in names)]
    return "\n".join(found)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _code(text: str) -> str:
    return f"`{text.strip()}`"


def _plain(text: str) -> str:
    return re.sub(r"([*_<>|\[\]`])", r"\\\1", " ".join(text.split()))
