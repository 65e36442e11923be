"""The command that lets a dense model and the smaller one answer side by side."""

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from hf_prune.cli.terminal import Format, complain, format_of, line, loading
from hf_prune.errors import HfPruneError, InvalidRecipe, scrub

if TYPE_CHECKING:
    from hf_prune.evaluation.dialogue import Speaker

NAMES = ("dense", "pruned")
HELP = "Write something; Ctrl-C ends an answer, /new begins anew, /quit or Ctrl-D ends all."


class Answers(NamedTuple):
    """How both answer."""

    tokens: int
    temperature: float
    seed: int


class Said(NamedTuple):
    """What both have said so far, and the seconds that each spoke."""

    texts: tuple[str, str]
    seconds: tuple[float, float]


def chat_command(
    source: Annotated[str, typer.Argument(metavar="RESULT", help="A folder that compress wrote, or its repo.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Answer this and end; without it you are asked, again and again.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, max=4096, help="Most tokens of an answer.")] = 120,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=5, help="Of the draws; 0 takes the likeliest token.")
    ] = 0.7,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the draws.")] = 0,
    base: Annotated[str | None, typer.Option("--base", help="The dense parent; default: the blueprint's.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    format: Annotated[Format, typer.Option("--format", help="human, json (one line per answer) or quiet.")] = "human",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Same as --format quiet: only the answers.")] = False,
) -> None:
    """Let a result and its dense parent answer side by side.

    A model that was taught to chat remembers what was said; any other goes on from every prompt.
    """
    form, how = format_of(format, quiet), Answers(tokens, temperature, seed)
    if prompt is not None and not prompt.strip():
        raise InvalidRecipe("--prompt is empty; write what both are to answer.")
    loading(form)
    from hf_prune.results import open_pair

    pair = open_pair(source, base, device)
    if prompt is not None:
        return _answer(pair, prompt, how, form)
    _converse(pair, how, form)


def _converse(pair: "tuple[Speaker, Speaker]", how: Answers, form: Format) -> None:
    """Until there is nothing more to read; what cannot be answered is said, and does not end it."""
    asking = sys.stdin.isatty()
    if asking and form == "human":
        complain(HELP)
    while True:
        try:
            text = input("> " if asking else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text == "/quit":
            return
        if text == "/new":
            for speaker in pair:
                speaker.turns.clear()
        elif text:
            try:
                _answer(pair, text, how, form)
            except HfPruneError as e:
                if not asking:
                    raise
                complain(f"Error: {e}")
            except KeyboardInterrupt:
                # Whoever has heard enough goes on with the next question.
                if not asking:
                    raise


def _answer(pair: "tuple[Speaker, Speaker]", text: str, how: Answers, form: Format) -> None:
    if form == "human" and sys.stdout.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
            for said in speaking(pair, text, how):
                live.update(_columns(said), refresh=True)
        return
    *_, said = speaking(pair, text, how)
    for name, one, seconds in zip(NAMES, said.texts, said.seconds, strict=True):
        if form == "json":
            line({"event": "Said", "model": name, "prompt": text, "text": one, "seconds": round(seconds, 3)})
        else:
            print(f"{name}: {plain(one)}", flush=True)


def speaking(pair: "tuple[Speaker, Speaker]", text: str, how: Answers) -> Iterator[Said]:
    """What both have said, as it grows: the dense model first, then the smaller one."""
    texts, seconds = ["", ""], [0.0, 0.0]
    for speaker in pair:
        # What one has no room for is said before the other speaks.
        speaker.read(text, how.tokens)
    for number, speaker in enumerate(pair):
        begun = time.monotonic()
        for texts[number] in speaker.answer(text, *how):
            seconds[number] = time.monotonic() - begun
            yield Said(tuple(texts), tuple(seconds))
    yield Said(tuple(texts), tuple(seconds))


def plain(text: str) -> str:
    """Without what a terminal would obey."""
    return scrub("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text))


def _columns(said: Said) -> Any:
    from rich.table import Table
    from rich.text import Text

    titles = (f"{n}, {s:.1f} s" if s else n for n, s in zip(NAMES, said.seconds, strict=True))
    table = Table(*titles, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(plain(text)) for text in said.texts))
    return table
