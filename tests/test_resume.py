"""Interrupted at any moment and started again, a run ends with the same bytes, and scores nothing twice."""

import json
import shutil
import signal
import time
from collections import Counter

import pytest

from hf_prune.errors import StaleJournal
from hf_prune.pipeline import run
from tests.runs import FLAGS, Command, base, command, leftovers, recipe, text

pytestmark = pytest.mark.slow

LONG = ["--keep-layers", 3, *FLAGS, "--evaluations", 60, "--sequences", 16, "--length", 64]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    home = tmp_path_factory.mktemp("source")
    return ["compress", base(home / "base"), "--data", text(home / "text.txt"), *LONG]


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "small"
    done = command(*source, "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder


def rows(journal):
    """Trials of the lines that are whole; a killed process may leave half of one."""
    lines = journal.read_text().split("\n")[1:-1] if journal.exists() else []
    return [trial for line in lines for trial in json.loads(line)["trials"]]


def pairs(journal):
    return Counter(json.dumps([r["digest"], r["fidelity"]]) for r in rows(journal))


def interrupted(arguments, journal, after, how):
    """Start, wait until the journal has `after` rows (or the process ends), and send the signal."""
    process = Command(*arguments)
    until = time.monotonic() + 120
    while process.poll() is None and len(rows(journal)) < after and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_killed_again_and_again_it_ends_with_the_same_bytes(source, undisturbed, tmp_path):
    folder = tmp_path / "small"
    journal = tmp_path / "small.run/journal.jsonl"
    kills, seen, total = 0, 0, len(rows(undisturbed / "journal.jsonl"))
    # The last time while it writes the result.
    for after in (1, total // 3, total):
        code, _, _ = interrupted([*source, "--output", folder], journal, max(after, seen + 1), signal.SIGKILL)
        kills += code == -signal.SIGKILL
        seen = len(rows(journal))
        assert not folder.exists()
    done = command(*source, "--output", folder)
    assert done.returncode == 0 and kills == 3, done.stderr
    for name in ("model.safetensors", "blueprint.json", "config.json", "recipe.yaml"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert rows(folder / "journal.jsonl") == rows(undisturbed / "journal.jsonl")
    assert set(pairs(folder / "journal.jsonl").values()) == {1} and leftovers(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(source, undisturbed, tmp_path, how):
    folder, journal = tmp_path / "small", tmp_path / "small.run/journal.jsonl"
    code, _, err = interrupted([*source, "--output", folder], journal, 5, how)
    assert code == 130 and "run the same command again to resume" in err.splitlines()[-1] and "Traceback" not in err
    kept = rows(journal)
    assert len(kept) >= 5 and not folder.exists()
    assert command(*source, "--output", folder).returncode == 0
    assert rows(folder / "journal.jsonl")[: len(kept)] == kept
    assert (folder / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_a_journal_of_another_recipe_is_refused(tmp_path):
    run(recipe(tmp_path, drop=("1",), baselines=("last",)))
    home = tmp_path / "small.run"
    home.mkdir()
    shutil.move(tmp_path / "small/journal.jsonl", home / "journal.jsonl")
    shutil.rmtree(tmp_path / "small")
    with pytest.raises(StaleJournal, match="recipe"):
        run(recipe(tmp_path, drop=("2",), baselines=("last",)))
    run(recipe(tmp_path, drop=("1",), baselines=("last",)))


AFTER = ["--repair", "--repair-sequences", 24, "--repair-finalists", 3, "--search-heal", "2k", "--heal", "20k",
         "--heal-batch", 4, "--heal-rank", 4]  # fmt: skip


def killed_when(arguments, pattern, home):
    """Start, wait until a file like that lies in `home`, and kill."""
    process = Command(*arguments)
    until = time.monotonic() + 240
    while process.poll() is None and not list(home.glob(pattern)) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode


def test_killed_in_every_stage_after_the_search_it_ends_with_the_same_bytes(source, tmp_path):
    whole, folder, home = tmp_path / "whole", tmp_path / "small", tmp_path / "small.run"
    done = command(*source, *AFTER, "--output", whole)
    assert done.returncode == 0, done.stderr
    stages = ("repairs/*.json", "trials/*.safetensors", "heal-*/checkpoint-*/complete")
    codes = [killed_when([*source, *AFTER, "--output", folder], stage, home) for stage in stages]
    assert codes == [-signal.SIGKILL] * 3 and not folder.exists()
    done = command(*source, *AFTER, "--output", folder)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "blueprint.json", "repairs/patches.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert rows(folder / "journal.jsonl") == rows(whole / "journal.jsonl") and leftovers(tmp_path) == []
