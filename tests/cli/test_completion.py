"""What a shell completes, asked as a shell asks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASKED = [
    ("comp", {"compress", "completion"}),
    ("compress --rat", {"--ratio"}),
    ("plan --method wid", {"width", "width+depth"}),
    ("space pu", {"push"}),
    ("export small --format gg", {"gguf"}),
]


@pytest.fixture
def shell(tmp_path):
    """A program of this name and this Python, in front of all others; runs a command with it."""
    program = tmp_path / "hf-prune"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P -m hf_prune.cli \"$@\"\n")
    program.chmod(0o755)
    root = str(Path(__file__).parents[2])
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": root}

    def run(*words, **more):
        done = subprocess.run(words, env=os.environ | path | more, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_commands_options_and_their_values(shell):
    asked = "\n".join(
        f"COMP_WORDS=(hf-prune {words}); COMP_CWORD={len(words.split())}; _hf_prune_completion hf-prune; "
        'echo "${COMPREPLY[@]}"'
        for words, _ in ASKED
    )
    said = shell("bash", "-euc", f'eval "$(hf-prune completion bash)"\n{asked}').splitlines()
    assert [set(line.split()) for line in said] == [found for _, found in ASKED]


@pytest.mark.parametrize(("name", "more"), [("zsh", {}), ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args"})])
def test_other_shells_are_answered_in_their_way(shell, name, more):
    script = shell("hf-prune", "completion", name)
    assert f"_HF_PRUNE_COMPLETE=complete_{name}" in script and "hf-prune" in script
    asked = {"_HF_PRUNE_COMPLETE": f"complete_{name}", "_TYPER_COMPLETE_ARGS": "hf-prune compress --rat"}
    said = shell("hf-prune", **asked, **more)
    assert "--ratio" in said and "Share of the whole model" in said and "--repair" not in said
