"""What `--help` shows of a command with many options: those that most people need; `--help-all` all, by group."""

import inspect
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hf_prune.recipe import OPTIONS

ALL = "hf_prune.help_all"
COLUMN = 30
"""Characters of a flag before its description, the same in every panel."""
PLACE = {name: place for place, name in enumerate(OPTIONS)}


class PanelCommand(TyperCommand):
    """A command whose options stand in panels, one for each group of the recipe."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, those of the recipe first."""
        everything = ctx.meta.get(ALL, False)
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        more: dict[str, str] = {}
        for param in sorted(self.get_params(ctx), key=lambda p: PLACE.get(p.name, len(PLACE))):
            option = OPTIONS.get(param.name)
            heading = "Arguments" if param.param_type_name == "argument" else "Options"
            if option and option.about:
                heading = f"{option.path[0]} ({option.about})" if everything else heading
                more |= {} if option.first else {option.path[0]: option.about}
            record = param.get_help_record(ctx)
            if record and (everything or not option or option.first):
                panels.setdefault(heading, []).append((record[0].ljust(COLUMN), record[1]))
        if not everything:
            panels["More, by group; --help-all shows them"] = list(more.items())
        for heading, records in panels.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _show_all(ctx: typer.Context, asked: bool | None) -> None:
    if asked:
        ctx.meta[ALL] = True
        print(ctx.get_help())
        raise typer.Exit()


HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        bool | None,
        typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show all options, by group, and exit."),
    ],
)
"""The option for a command of this class; like a flag that is not given, it is None."""
