"""The command line: flags from `Recipe`, events to a progress bar, errors to one line and an exit code."""

import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_prune import __version__
from hf_prune.cli.chat import chat_command
from hf_prune.cli.completion import NAME, VARIABLE, completion_command
from hf_prune.cli.export import export_command
from hf_prune.cli.flags import flags_of, with_flags
from hf_prune.cli.panels import HELP_ALL, PanelCommand
from hf_prune.cli.planning import show_plan
from hf_prune.cli.steps import announced
from hf_prune.cli.terminal import Format, complain, format_of, guarded, line, loading, result, show, watch
from hf_prune.demo import Act
from hf_prune.errors import InvalidRecipe
from hf_prune.recipe import OPTIONS, Recipe
from hf_prune.recipe.fields import Size

# Read when torch is loaded, which no import above does. OpenMP threads that spin while they wait starve each other on
# shared cores: a small model then ran forty times slower, and on quiet cores sleeping costs nothing that shows.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

FormatFlag = Annotated[Format, typer.Option("--format", help="human, json (one line per event on stdout) or quiet.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Same as --format quiet: only the result on stdout.")]
RecipeFlag = Annotated[Path | None, typer.Option("--recipe", help="YAML recipe; flags given here override it.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop; nothing is written.")]
MEASUREMENT = (
    "variants", "data", "report_sequences", "length", "tasks", "task_items", "lm_eval", "lm_eval_limit", "library",
    "device",
)  # fmt: skip
RECOVERY = (
    "repair", "reach", "repair_sequences", "heal_method", "heal_rank", "heal_alpha", "heal_kl", "heal_ce", "heal_top_k",
    "heal_lr", "heal_batch", "heal_checks", "heal_patience", "gradient_checkpointing", "keep_adapter", "seed",
    "selection_sequences", "own_tokens", "overwrite", "track",
)  # fmt: skip
BaseOption = Annotated[str | None, typer.Option("--base", help="The dense parent; default: the blueprint's.")]

app = typer.Typer(
    name="hf-prune",
    help="Make a smaller model out of a model on the Hub: search, assemble, certify, measure, publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def main() -> None:
    """Entry point of the console script; what SIGTERM ends is put away as after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name=NAME, complete_var=VARIABLE)


RECIPE_FLAGS = [*flags_of(option for name, option in OPTIONS.items() if name != "base"), HELP_ALL]
BaseArgument = Annotated[str | None, typer.Argument(metavar="BASE", help=OPTIONS["base"].field.description)]


@app.command("plan", cls=PanelCommand)
@with_flags(*RECIPE_FLAGS)
@guarded
def plan_command(
    base: BaseArgument = None,
    recipe: RecipeFlag = None,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say how the search is counted, too.")] = False,
    **values: Any,
) -> None:
    """Say what compress would do and need.

    Reads the config and the weight headers alone; no weights are downloaded.
    """
    show_plan(_recipe(base, recipe, values), format_of(format, quiet), verbose)


@app.command("compress", cls=PanelCommand)
@with_flags(*RECIPE_FLAGS)
@guarded
def compress_command(
    base: BaseArgument = None,
    recipe: RecipeFlag = None,
    dry_run: DryRunFlag = False,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
    **values: Any,
) -> None:
    """Search for a smaller model and write it.

    The result is loaded afresh to check it, measured beside its dense parent and, with --push-to, published.
    Interrupted, the same command resumes.
    """
    form, does = format_of(format, quiet), show_plan if dry_run else _compress
    does(_recipe(base, recipe, values), form)


@app.command("demo")
@guarded
def demo_command(
    act: Annotated[
        Act,
        typer.Argument(
            help="cut: layers of one model; stitch: of it and its three specialists; width: heads, neurons."
        ),
    ] = "cut",
    output: Annotated[
        str | None, typer.Option("--output", help="Folder for the result; default: pruned-, stitched- or narrow-demo.")
    ] = None,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
) -> None:
    """Compress the bundled model by a quarter and repair it.

    It has 16 layers; needs no network and no account.
    """
    form = format_of(format, quiet)
    from hf_prune.demo import demo_recipe

    _compress(demo_recipe(act, output), form)


@app.command("assemble")
@guarded
def assemble_command(
    path: Annotated[Path, typer.Argument(metavar="BLUEPRINT", help="blueprint.json, or front.json with --pick.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the model; must not exist.")] = Path("Assembled"),
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Read the weights here instead of the repos the blueprint names; base first."),
    ] = None,
    pick: Annotated[
        str | None, typer.Option("--pick", help="Member of a front: knee, a share removed such as 0.25, or #3.")
    ] = None,
    library: Annotated[
        Path | None, typer.Option("--library", help="The level library of its run, where that had a --library.")
    ] = None,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
) -> None:
    """Rebuild the model of a blueprint, bit for bit."""
    form = format_of(format, quiet)
    from hf_prune.results import assemble_blueprint

    folder = assemble_blueprint(path, output, source=source, pick=pick, library=library)
    result(form, "Assembled", folder=str(folder))


@app.command("report", cls=PanelCommand)
@with_flags(*flags_of(map(OPTIONS.get, MEASUREMENT)), HELP_ALL)
@guarded
def report_command(
    source: Annotated[str, typer.Argument(metavar="RESULT", help="A folder that compress wrote, or its repo.")],
    base: BaseOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Folder for a copy with the new report; for a repo its name."),
    ] = None,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
    **values: Any,
) -> None:
    """Measure a result again beside its dense parent."""
    form = format_of(format, quiet)
    loading(form)
    from hf_prune.results import report_folder

    watch(report_folder(source, base=base, output=output, **_given(values)), form, base)


@app.command("heal", cls=PanelCommand)
@with_flags(*flags_of(map(OPTIONS.get, (*MEASUREMENT, *RECOVERY))), HELP_ALL)
@guarded
def heal_command(
    source: Annotated[str, typer.Argument(metavar="RESULT", help="A folder that compress wrote, or its repo.")],
    heal: Annotated[str, typer.Option("--heal", help="Tokens to train on, e.g. 1M.")] = "1M",
    base: BaseOption = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Folder for the trained model; default: RESULT-healed.")
    ] = None,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
    **values: Any,
) -> None:
    """Train a result, with --repair after refitting its weights.

    Interrupted, the same command resumes.
    """
    form = format_of(format, quiet)
    loading(form)
    from hf_prune.results import heal_folder

    watch(heal_folder(source, base=base, output=output, heal=heal, **_given(values)), form, base)


@app.command("push")
@guarded
def push_command(
    folder: Annotated[Path, typer.Argument(help="A folder that compress or assemble wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Repo to publish to, ns/name.")],
    public: Annotated[bool, typer.Option("--public", help="Make a newly created repo public.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Publish as a pull request.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch to push to.")] = None,
    commit_message: Annotated[str | None, typer.Option("--commit-message", help="Commit message.")] = None,
    gguf_apart: Annotated[
        bool, typer.Option("--gguf-apart", help="GGUF files go into REPO-GGUF, not beside the weights.")
    ] = False,
    front: Annotated[
        bool, typer.Option("--front", help="Every size of its front: REPO-2.62M and so on, and a collection of them.")
    ] = False,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="With --front: where the weights are, as for assemble.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded and stop.")] = False,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
) -> None:
    """Publish a finished folder.

    Doing it twice changes nothing. The card says how to run the GGUF files that export put into the folder.
    """
    form = format_of(format, quiet)
    _check_here(folder)
    if not (folder / "config.json").is_file():
        raise InvalidRecipe(f"{folder} is not a finished model folder (no config.json); run compress first.")
    if dry_run:
        files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        return result(form, "WouldPush", repo=repo_id, folder=str(folder), files=files)
    from hf_prune.report.gguf_card import publish

    if front:
        from hf_prune.results import push_front

        for done in push_front(folder, repo_id, source=source or (), private=not public):
            result(form, "Pushed" if done.changed else "Unchanged", url=done.url, changed=done.changed)
        return
    how = {"private": not public, "create_pr": create_pr, "revision": revision, "commit_message": commit_message}
    for done in publish(folder, repo_id, gguf_apart=gguf_apart, **how):
        result(form, "Pushed" if done.changed else "Unchanged", url=done.url, commit=done.commit, changed=done.changed)


@app.command("register")
@guarded
def register_command(format: FormatFlag = "human", quiet: QuietFlag = False) -> None:
    """Make `hf prune ...` work.

    Writes the manifest by which the hf command finds hf-prune.
    """
    form = format_of(format, quiet)
    from hf_prune.cli.extension import register

    result(form, "Registered", manifest=str(register()), try_it="hf prune --help")


app.command("export")(guarded(export_command))
app.command("chat")(guarded(chat_command))
app.command("completion")(guarded(completion_command))


@app.command("scout")
@guarded
def scout_command(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A repo of the Hub.")],
    most: Annotated[int, typer.Option("--limit", min=1, help="Look at so many, the most downloaded first.")] = 20,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
) -> None:
    """List the fine-tunes of a base that stitch could use.

    Reads the model tree, headers and a few rows of weights; nothing is downloaded whole.
    """
    form = format_of(format, quiet)
    from hf_prune.cli.screen import scout_table
    from hf_prune.models.scout import scout

    found = []
    for candidate in scout(base, most):
        found.append(candidate)
        if form == "json":
            line({"event": "Candidate", **asdict(candidate)})
        elif form == "quiet" and candidate.fits:
            print(candidate.repo, flush=True)
    if form == "human":
        show(scout_table(base, found))
        chosen = " ".join(f"--variant {c.repo}" for c in found if c.fits)
        print(f"Next: hf-prune compress {base} --method stitch {chosen}" if chosen else "None of them fits.")


@app.command("ui")
@guarded
def ui_command(
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Default: the first free one.")] = None,
    home: Annotated[Path, typer.Option("--home", help="Folder of the runs.")] = Path("~/.cache/hf_prune/runs"),
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a window.")] = True,
) -> None:
    """Open the app in the browser.

    Runs go on when the window is closed; needs hf-prune[space].
    """
    try:
        from hf_prune.app import open_here
    except ImportError:
        raise InvalidRecipe("The app needs gradio; install it with: pip install 'hf-prune[space]'.") from None
    said = "The app is at {}; runs are kept in " + f"{home}, and Ctrl-C ends it."
    open_here(home.expanduser(), port, browser=browser, tell=lambda address: complain(said.format(address)))


space_app = typer.Typer(help="The app as a Space of your own.", no_args_is_help=True)
app.add_typer(space_app, name="space")


@space_app.command("push")
@guarded
def space_push_command(
    repo_id: Annotated[str, typer.Argument(metavar="REPO", help="Space to create or update, ns/name.")],
    public: Annotated[bool, typer.Option("--public", help="Make a newly created Space public.")] = False,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="Ask for this hardware, e.g. cpu-upgrade; it may cost money.")
    ] = None,
    format: FormatFlag = "human",
    quiet: QuietFlag = False,
) -> None:
    """Create or update a Space that runs this version of hf_prune.

    Doing it twice changes nothing.
    """
    form = format_of(format, quiet)
    from tempfile import TemporaryDirectory

    from hf_prune.app.space import write_space
    from hf_prune.hub import push_space

    with TemporaryDirectory() as folder:
        done = push_space(write_space(Path(folder)), repo_id, private=not public, hardware=hardware)
    result(form, "Pushed" if done.changed else "Unchanged", url=done.url, commit=done.commit, changed=done.changed)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def _check_here(folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidRecipe(f"There is no folder {folder} here; name what compress or assemble wrote.")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v not in (None, [])}


def _recipe(base: str | None, path: Path | None, values: dict[str, Any]) -> Recipe:
    fields = _given({"base": base, **values})
    sizes = set(Size.model_fields)
    if sizes & set(fields):  # a flag for one way to say how small replaces whichever the file uses
        fields = {**dict.fromkeys(sizes - {"drop"}), "drop": (), **fields}
    if path is None and base is None:
        raise InvalidRecipe("Say which model to compress: hf-prune compress BASE, or --recipe FILE.yaml with a base.")
    return Recipe.load(path, **fields) if path else Recipe.of(**fields)


def _compress(recipe: Recipe, form: Format) -> None:
    loading(form)
    from hf_prune.pipeline import compress

    events = compress(recipe)
    watch(announced(events, recipe) if form == "human" else events, form, recipe.base)
