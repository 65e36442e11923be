"""README and the pages say commands that exist, and the site is built of them without a warning."""

import html
import re
import subprocess
import sys

import pytest
import typer
from typer.main import get_command

import hf_prune
from hf_prune.cli import main
from hf_prune.recipe import OPTIONS, Recipe
from tests.docs.commands import PAGES, ROOT, blocks, commands, lines

ROOT_COMMAND = get_command(main.app)
FOUND = [(path, words) for path in PAGES for words in commands(path)]


def parsed(words):
    """The command a line calls, and its values, by the program's own parser."""
    command, name = ROOT_COMMAND, "hf-prune"
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{name} knows no command {words[:1]}"
        command, name, words = command.commands[words[0]], f"{name} {words[0]}", words[1:]
    return name, command.make_context(name, list(words)).params


@pytest.mark.parametrize(("path", "words"), FOUND, ids=[f"{p.stem}: {' '.join(w)}" for p, w in FOUND])
def test_every_command_line_is_one(path, words):
    words = [word for word in words if not word.startswith("--help")]
    # Three dots stand for what the reader would write, and a name alone for the command.
    if words[1:] == [] or "..." in words:
        assert words[:1] == [] or words[0] in ROOT_COMMAND.commands
        return
    name, values = parsed(words)
    if name in ("hf-prune plan", "hf-prune compress"):
        values = {k: v for k, v in values.items() if k in OPTIONS or k == "recipe"}
        recipe = values.pop("recipe")
        assert recipe is None or (ROOT / recipe).is_file(), f"{path.name} names {recipe}, which is not there"
        if recipe is None and values["base"]:
            main._recipe(values.pop("base"), None, values)


def test_a_line_that_is_none_is_noticed():
    (words,) = lines("hf-prune compress ns/model --rato 0.25  # a comment")
    with pytest.raises(typer._click.exceptions.NoSuchOption):
        parsed(words)
    assert len(FOUND) > 40 and {"README.md", "first-model.md"} <= {path.name for path, _ in FOUND}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_every_recipe_shown_is_one(path, tmp_path):
    for language, text in blocks(path):
        if language == "yaml":
            (tmp_path / "recipe.yaml").write_text(text)
            Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.slow
def test_the_site_is_built_and_holds_every_command_key_and_name(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    reference = {
        name: html.unescape(re.sub(r"<[^>]+>", "", (tmp_path / "reference" / name / "index.html").read_text()))
        for name in ("commands", "recipe", "python")
    }
    named = [f"hf-prune {name}" for name in ROOT_COMMAND.commands]
    assert [n for n in named if n not in reference["commands"]] == []
    assert [o.flag for o in OPTIONS.values() if o.flag not in reference["recipe"]] == []
    assert [o.field.description for o in OPTIONS.values() if o.field.description not in reference["recipe"]] == []
    assert [n for n in hf_prune.PUBLIC if n not in reference["python"]] == []
    assert "Search throughput" in (tmp_path / "benchmarks" / "index.html").read_text()
