"""The shape of the package: who may import whom, and what stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hf_prune"
FILES = sorted(PACKAGE.rglob("*.py"))
LADDER = {
    0: "errors",
    0.1: "blueprint experts",
    0.2: "events clock bundled staging",
    0.5: "modeling_pruned modeling_decilm registration",
    0.6: "pruned_models",
    0.9: "obs units masks doubt",
    1: "recipe methods search architecture checkpoint calibration merge metrics hub patches ridge trie vocabulary",
    1.5: "parents asked",
    2: "journal tasks acts",
    3: "assemble objectives reference reload_probe",
    3.1: "exam items",
    3.15: "pieces",
    3.2: "bank sites",
    3.3: "teachers levels",
    3.5: "repair",
    3.9: "harness_tasks headers",
    4: "watch heal evaluate harness generation speed figures certificate licence redaction verdicts plan export",
    4.1: "task_sources nemotron_nas tables",
    4.2: "compatibility",
    4.3: "descent",
    4.4: "variants",
    4.5: "training_aware tuning scout",
    4.8: "scorer budgets",
    5: "report card job",
    5.1: "capabilities found",
    5.15: "rivals width_rivals",
    5.18: "retention",
    5.2: "front measurement",
    5.5: "documents",
    5.7: "recovery",
    6: "pipeline screen flags extension hosting",
    6.5: "folder terminal",
    6.6: "workers",
    6.7: "runs",
    6.9: "pages",
    7: "cli",
}
RANK = {name: rank for rank, names in LADDER.items() for name in names.split()}


def unit(path: Path) -> str:
    """`search` for search/space.py: a package counts as one unit."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(path: Path) -> list[str]:
    """Dotted names of everything a file imports; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def test_every_module_imports_strictly_lower_ranks():
    wrong = []
    for path in FILES:
        if (own := unit(path)) == "__init__":
            continue
        assert own in RANK, f"{own} has no rank: give it one in {Path(__file__).name}"
        for name in modules(path):
            top, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if top == "hf_prune" and target not in (own, "__version__") and RANK.get(target, 99) >= RANK[own]:
                wrong.append(f"{own} [{RANK[own]}] imports {target} [{RANK.get(target)}]")
    assert not wrong


def test_the_tree_in_contributing_lists_every_module_with_its_rank():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = {name: int(rank) for name, rank in re.findall(r"^      (\w+)(?:\.py|/) +\[(\d)\]", text, re.M)}
    units = {unit(path) for path in FILES} - {"__init__"}
    assert {name: int(RANK[name]) for name in units} == {name: tree.get(name) for name in units}


def test_only_hub_and_card_talk_to_the_hub():
    users = {unit(path) for path in FILES if any(m.split(".")[0] == "huggingface_hub" for m in modules(path))}
    assert users <= {"hub", "card"}


def test_nothing_but_the_command_line_prints():
    def prints(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call):
            return False
        return ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write", "Console", "typer.echo")

    loud = {unit(path) for path in FILES if any(map(prints, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))}
    # The probe is a program of its own, which answers on stdout.
    assert loud == {"cli", "terminal", "reload_probe"}


def test_light_modules_load_neither_torch_nor_transformers():
    # What a plan and the pages of the app need.
    code = (
        "import sys, hf_prune.recipe, hf_prune.search, hf_prune.plan, hf_prune.models.variants, hf_prune.app.layout\n"
    )
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
