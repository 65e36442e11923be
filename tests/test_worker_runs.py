"""Whole runs on several workers: the same journal and model, and whatever is killed, nothing is scored twice."""

import json
import os
import signal

import pytest

from hf_prune.pipeline import run
from tests.runs import TASKS, Command, recipe
from tests.test_processes import alive, children, wait_until

EVIDENCE = {"keep_layers": 4, "sequences": 20, "length": 64, "tasks": TASKS[1:], "search_tasks": TASKS[:1],
            "objective": "doubt", "search_items": 4, "selection_items": 4, "evaluations": 40}  # fmt: skip
pytestmark = pytest.mark.slow


def asked(home, name, **changes):
    given = {} if not (home / "base").exists() else {"base": str(home / "base"), "data": (str(home / "text.txt"),)}
    return recipe(home, **{**EVIDENCE, **given, "output": str(home / name), **changes})


def found(folder):
    """Every trial in its order, and the weights."""
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()[1:]]
    trials = [trial for row in rows for trial in row["trials"]]
    keys = [(t["digest"], tuple(t["fidelity"])) for t in trials]
    assert len(keys) == len(set(keys)), "nothing is scored twice"
    return trials, (folder / "model.safetensors").read_bytes()


def test_two_devices_find_what_one_finds(tmp_path):
    one = run(asked(tmp_path, "one"))
    two = run(asked(tmp_path, "two", device="cpu,cpu", repair=False))
    assert found(one.folder) == found(two.folder)
    assert one.report["text"] == two.report["text"]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_that_is_killed_goes_on_with_any_number_of_workers(tmp_path, workers):
    expected = found(run(asked(tmp_path, "whole")).folder)
    path = tmp_path / "recipe.yaml"
    path.write_text(asked(tmp_path, "killed", workers=2).to_yaml())
    process = Command("compress", "--recipe", path)
    try:
        # In the middle of a sweep that both workers are at.
        def kept() -> int:
            sweep = tmp_path / "killed.run" / "sweep.jsonl"
            return sweep.read_bytes().count(b"\n") if sweep.exists() else 0

        assert wait_until(lambda: kept() > 2 or process.poll() is not None, 300)
        workers_of_it = [p for p in children(process.pid) if alive(p)]
        os.kill(process.pid, signal.SIGKILL)
        assert wait_until(lambda: not any(map(alive, workers_of_it)), 2.0) is True
    finally:
        process.send_signal(signal.SIGKILL)
    again = run(asked(tmp_path, "killed", workers=workers))
    assert found(again.folder) == expected
