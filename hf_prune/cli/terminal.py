"""What commands print: tables for people, one JSON line per event for programs, errors as one line on stderr."""

import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from hf_prune.atomic_files import what_failed
from hf_prune.errors import CannotWrite, HfPruneError, scrub, scrubbed

if TYPE_CHECKING:
    from hf_prune.events import Event

Format = Literal["human", "json", "quiet"]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one line on stderr and an exit code; the traceback is kept for HF_PRUNE_DEBUG=1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            complain("Interrupted; run the same command again to resume where it stopped.")
            raise typer.Exit(130) from None
        except Exception as e:
            if os.environ.get("HF_PRUNE_DEBUG") == "1":
                complain(traceback.format_exc().rstrip())
                raise typer.Exit(getattr(e, "exit_code", 1)) from None
            if not isinstance(e, HfPruneError) and (said := what_failed(e)):
                e = CannotWrite(f"{said}; put that right, and run the same command again.")
            known = isinstance(e, HfPruneError)
            text = str(e) if known else f"{type(e).__name__}: {e} (unexpected; HF_PRUNE_DEBUG=1 shows the traceback)"
            complain("Error: " + " ".join(text.split()))
            raise typer.Exit(e.exit_code if known else 1) from None

    return run


def format_of(format: Format, quiet: bool) -> Format:
    """The output format; also silences the progress bars of the libraries where nobody would see them."""
    form = "quiet" if quiet else format
    if form != "human" or not sys.stderr.isatty():
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
            os.environ.setdefault(name, "1")
    return form


def watch(events: "Iterable[Event]", form: Format, parent: str | None = None) -> None:
    """Show a run, at the end its report and what comes after it; `parent` is the dense model as it was named."""
    from rich.console import Console

    from hf_prune.cli.screen import Screen
    from hf_prune.cli.steps import next_commands
    from hf_prune.report.schema.report import Report
    from hf_prune.report.text import event_dict

    with Screen(Console(stderr=True, quiet=form != "human")) as screen, heartbeat(screen.pace.line, form):
        for event in events:
            screen.show(event)
            if form == "json":
                line(event_dict(event))
    if form == "human":
        show_report(event.report)
    if form != "json":
        card = str(Path(event.folder) / "README.md")
        result(form, "Finished", result=event.folder, report=card, **({"hub": event.url} if event.url else {}))
    if form == "human":
        report = Report.from_dict(event.report, "The run")
        print(
            "Next", *(scrub(f"  {c}") for c in next_commands(Path(event.folder), report, parent, event.url)), sep="\n"
        )


@contextmanager
def heartbeat(line: Callable[[], str], form: Format, every: float = 30.0) -> Iterator[None]:
    """Where no bar is to be seen, say on stderr where a run is, every so many seconds."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(every):
            complain(line())

    if form == "quiet" or form == "human" and sys.stderr.isatty():
        yield
        return
    thread = threading.Thread(target=beat, name="hf_prune heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def loading(form: Format) -> None:
    """Say what the first seconds are spent on."""
    if form != "quiet" and "torch" not in sys.modules:
        complain("loading torch")


def result(form: Format, event: str, **fields: Any) -> None:
    """The last word of a command: names and values, one JSON line, or (quiet) the first value alone."""
    if form == "json":
        line({"event": event, **fields})
    elif form == "quiet":
        print(scrub(str(next(iter(fields.values())))))
    else:
        print(event, *(scrub(f"  {name:8} {value}") for name, value in fields.items()), sep="\n")


def line(value: dict[str, Any]) -> None:
    """A value as one line of JSON on stdout."""
    from hf_prune.report.text import plain

    print(json.dumps(scrubbed(plain(value)), allow_nan=False), flush=True)


def show_report(raw: dict[str, Any]) -> None:
    """The table of a report and the sentences below it."""
    from hf_prune.cli.screen import report_table
    from hf_prune.report.schema.report import Report
    from hf_prune.report.text import report_lines

    report = Report.from_dict(raw, "The run")
    show(report_table(report))
    for line in report_lines(report):
        print(scrub(line))


def show(table: Any) -> None:
    """A table on stdout."""
    from rich.console import Console

    # Tables must not be cut to 80 columns when they go to a file.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    with console.capture() as drawn:
        console.print(table)
    print(scrub(drawn.get()), end="")


def complain(text: str) -> None:
    """One line on stderr, or a traceback."""
    print(scrub(text), file=sys.stderr)
