"""The command that lets a shell complete commands, options and their values."""

from typing import Annotated, Literal

import typer
from typer.completion import completion_init, get_completion_script

NAME, VARIABLE = "hf-prune", "_HF_PRUNE_COMPLETE"
"""The program, and where a shell asks it."""
Shell = Literal["bash", "zsh", "fish"]

completion_init()


def completion_command(shell: Annotated[Shell, typer.Argument(help="The shell that is to read it.")]) -> None:
    """Print what makes a shell complete hf-prune.

    bash and zsh: eval "$(hf-prune completion bash)" in .bashrc, or zsh in .zshrc behind compinit. fish: hf-prune
    completion fish | source.
    """
    print(get_completion_script(prog_name=NAME, complete_var=VARIABLE, shell=shell))
