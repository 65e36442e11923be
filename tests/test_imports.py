"""The shape of the package: who may import whom, and what stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_prune.methods import METHODS
from hf_prune.search import SEARCHERS

PACKAGE = Path(__file__).parents[1] / "hf_prune"
FILES = sorted(PACKAGE.rglob("*.py"))
RANKS = [
    "errors limits",
    "data metrics blueprint atomic_files",
    "hub events",
    "models search",
    "assembly methods",
    "evaluation recipe",
    "planning demo recovery",
    "session",
    "report",
    "pipeline",
    "results",
    "app",
    "cli",
]
"""From the bottom up; the same list stands in CONTRIBUTING, from the top down."""
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names.split()}


def unit(path: Path) -> str:
    """`search` for search/space.py: a package counts as one unit."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    """hf_prune.search.space; hf_prune.search for its __init__."""
    return ".".join(("hf_prune", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path, within: ast.AST | None = None) -> list[str]:
    """Dotted names of everything a file imports; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(within or ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_import_goes_down():
    wrong = []
    for path in FILES:
        if (own := unit(path)) == "__init__":
            continue
        assert own in RANK, f"{own} has no rank: put it into a package, or give it one in {Path(__file__).name}"
        for name in imported(path):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == "hf_prune" and target not in (own, "__version__") and RANK.get(target, 99) >= RANK[own]:
                wrong.append(f"{dotted(path)} [{RANK[own]}] imports {name} [{RANK.get(target)}]")
    assert not wrong


def test_no_circles_within_a_package():
    names = {dotted(p): p for p in FILES}
    arrows = {
        name: {
            target
            for top in ast.parse(path.read_text(encoding="utf-8")).body
            for found in imported(path, top)
            for target in (found, found.rpartition(".")[0])
            if target in names and target != name
        }
        for name, path in names.items()
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail, name))}"
        if name in done:
            return
        for target in arrows.get(name, ()):
            walk(target, (*trail, name))
        done.add(name)

    for name in arrows:
        walk(name, ())


def test_the_ranks_in_contributing_are_these():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^ +(\d+) +([a-z_ ]+?)(?:  .*)?$", text, re.M)
    assert [(int(rank), names.split()) for rank, names in listed] == [
        (rank, names.split()) for rank, names in reversed(list(enumerate(RANKS)))
    ]


def test_the_listing_is_short():
    assert len({unit(path) for path in FILES}) <= 24
    assert len([p for p in PACKAGE.iterdir() if p.suffix == ".py"]) <= 14


def test_only_the_hub_package_and_cards_talk_to_the_hub():
    users = {dotted(p) for p in FILES if any(m.split(".")[0] == "huggingface_hub" for m in imported(p))}
    assert {u for u in users if not u.startswith("hf_prune.hub.")} <= {
        "hf_prune.report.card",
        "hf_prune.report.card_data",
    }


def test_nothing_but_the_command_line_prints():
    def prints(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call):
            return False
        return ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write", "Console", "typer.echo")

    loud = {dotted(p) for p in FILES if any(map(prints, ast.walk(ast.parse(p.read_text(encoding="utf-8")))))}
    # The probe is a program of its own, which answers on stdout.
    assert {n for n in loud if not n.startswith("hf_prune.cli.")} == {
        "hf_prune.assembly.reload_probe",
        "hf_prune.data.template_probe",
    }


@pytest.mark.parametrize("part", ["methods", "search", "recipe", "planning", "models.variants", "app", "cli.main"])
def test_light_modules_load_neither_torch_nor_transformers(part):
    # What a plan, `--help` and the pages of the app need.
    code = f"import sys, hf_prune.{part}\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_nobody_but_methods_and_searchers_knows_their_names():
    names = {*METHODS, *SEARCHERS}
    known_in = {"methods", "search", "recipe", "demo"}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} says {node.value!r}"
        for path in FILES
        if unit(path) not in known_in and dotted(path) != "hf_prune.app.forms"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not wrong


def test_a_session_is_handed_to_nobody_below_it():
    above = RANKS[RANK["session"] :]
    allowed = {name for names in above for name in names.split()}
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for argument in (node.args.args + node.args.kwonlyargs) if isinstance(node, ast.FunctionDef) else ():
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                handed = kind in ("Session", "Inputs") or argument.arg in ("session", "job") and kind in ("", "Any")
                if handed and (unit(path) not in allowed or kind not in ("Session", "Inputs")):
                    wrong.append(f"{dotted(path)}.{node.name}({argument.arg}: {kind})")
    assert not wrong
