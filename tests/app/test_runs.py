"""Runs of the app: their folders and states; a whole run, stopped and resumed, is slow."""

import json
import os
import time
from pathlib import Path

import pytest

from hf_prune.app import runs as module
from hf_prune.app.runs import Limits, Run, Runs, _tell, owner_of, public
from hf_prune.app.workers import stop
from hf_prune.errors import CannotWrite, InvalidRecipe
from hf_prune.recipe import Recipe
from tests import runs as small
from tests.disks import disk

OWNER, OTHER = owner_of("visitor a"), owner_of("visitor b")


@pytest.fixture
def idle(tmp_path, monkeypatch) -> Runs:
    """Runs that nobody works on."""
    monkeypatch.setattr(Runs, "_serve", lambda self: None)
    return Runs(tmp_path / "runs", Limits(waiting=3, waiting_each=2))


def recipe(seed: int = 0) -> Recipe:
    return Recipe.of(base="ns/tiny", ratio=0.25, seed=seed)


def test_the_same_request_of_the_same_visitor_is_the_same_run(idle):
    run = idle.begin(recipe(), OWNER)
    assert idle.begin(recipe(), OWNER) == run and idle.state(run) == "queued"
    assert idle.begin(recipe(), OTHER) != run and idle.begin(recipe(1), OWNER) != run
    assert run.recipe.digest == recipe().digest and Path(run.recipe.output) == run.result


def test_nobody_sees_the_run_of_another(idle):
    run = idle.begin(recipe(), OWNER)
    assert idle.find(run.id, OWNER) == run
    assert [r.id for r in idle.of(OWNER)] == [run.id] and not idle.of(OTHER)
    with pytest.raises(InvalidRecipe, match="no such run"):
        idle.find(run.id, OTHER)


@pytest.mark.parametrize("id", ["", "..", "../../etc", "0" * 15, "g" * 16, "0123456789abcdef", "\0" * 16])
def test_an_id_is_never_a_way_out_of_the_folder(idle, id):
    with pytest.raises(InvalidRecipe, match="no such run"):
        idle.find(id, OWNER)


def test_the_queue_is_short_for_each_and_for_all(idle):
    idle.begin(recipe(0), OWNER)
    second = idle.begin(recipe(1), OWNER)
    assert idle.ahead(second) == 1
    with pytest.raises(InvalidRecipe, match="waiting already"):
        idle.begin(recipe(2), OWNER)
    idle.begin(recipe(0), OTHER)
    with pytest.raises(InvalidRecipe, match="waiting already"):
        idle.begin(recipe(1), OTHER)


def test_a_cancelled_run_leaves_the_queue_and_can_be_begun_again(idle):
    run = idle.begin(recipe(), OWNER)
    idle.cancel(run)
    assert idle.state(run) == "stopped" and run.last == "Stopped"
    assert idle.begin(recipe(), OWNER) == run and idle.state(run) == "queued"


def test_a_line_that_is_being_written_is_not_read(idle):
    run = idle.begin(recipe(), OWNER)
    _tell(run, {"event": "Stage", "name": "pull"})
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "Sco')
    assert [e["event"] for e in run.events()] == ["Stage"]


def test_old_runs_expire_and_published_ones_do_not(idle):
    ended, published = (idle.begin(recipe(i), OWNER) for i in range(2))
    for run in (ended, published):
        idle.cancel(run)
        os.utime(run.folder / "events.jsonl", (0, 0))
    (published.folder / "published").write_text("https://hub.example/me/small")
    waiting = idle.begin(recipe(2), OWNER)
    idle.expire()
    assert not ended.folder.exists() and published.folder.exists() and waiting.folder.exists()


def test_messages_have_no_paths_and_no_tokens():
    text = public("cannot read /srv/app/runs/a/secret.json with hf_abcdefghijklmnopqrstuv")
    assert "/srv" not in text and "abcdefgh" not in text


def wait(runs: Runs, run: Run, *states: str, seconds: float = 240) -> str | None:
    until = time.monotonic() + seconds
    while runs.state(run) not in states and time.monotonic() < until:
        time.sleep(0.1)
    return runs.state(run)


@pytest.mark.slow
def test_a_run_is_stopped_goes_on_and_ends_like_an_uninterrupted_one(tmp_path):
    asked = small.recipe(tmp_path, drop_layers=2, evaluations=60)
    runs, whole = Runs(tmp_path / "runs"), Runs(tmp_path / "whole")
    run = runs.begin(asked, OWNER)
    until = time.monotonic() + 120
    while not any(e["event"] == "Scored" for e in run.events()) and time.monotonic() < until:
        time.sleep(0.05)
    runs.cancel(run)
    assert wait(runs, run, "stopped", "done") == "stopped"
    assert "as you asked" in list(run.events())[-1]["message"] and not run.result.exists()
    assert runs.begin(run.recipe, OWNER) == run
    assert wait(runs, run, "done", "failed") == "done", list(run.events())[-1]
    assert not small.leftovers(run.folder)
    other = whole.begin(asked, OWNER)
    assert wait(whole, other, "done", "failed") == "done"
    digests = [json.loads((r.result / "report.json").read_text())["digest"] for r in (run, other)]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_stopped_and_the_next_one_gets_its_turn(tmp_path):
    runs = Runs(tmp_path / "runs", Limits(seconds=0.5))
    first = runs.begin(small.recipe(tmp_path, drop_layers=2), OWNER)
    second = runs.begin(Recipe.of(base=str(tmp_path / "nothing"), ratio=0.25), OTHER)
    assert wait(runs, first, "stopped", "done") == "stopped"
    assert "most a run may take" in list(first.events())[-1]["message"]
    assert wait(runs, second, "failed", "stopped") in ("failed", "stopped")
    assert str(tmp_path) not in (second.folder / "events.jsonl").read_text()


def said(run: Run) -> str:
    return " ".join(e.get("message", "") for e in run.events())


def test_a_full_disk_costs_one_run_and_never_the_queue(tmp_path, caplog):
    with disk(tmp_path / "disk", 1 << 20) as small:
        runs = Runs(small.folder / "runs")
        asked = Recipe.of(base=str(tmp_path / "nothing"), ratio=0.25)
        first = runs.begin(asked, OWNER)
        filler = small.fill()
        with pytest.raises(CannotWrite, match="The disk is full; nothing was started"):
            runs.begin(asked, OTHER)
        # Its sentence finds no room on the disk, and is not lost.
        assert wait(runs, first, "failed", seconds=60) == "failed" and first.last == ""
        assert "disk of this machine is full" in runs._untold[first]["message"] and "kept in memory" in caplog.text
        filler.unlink()
        until = time.monotonic() + 30
        while first.last != "Failed" and time.monotonic() < until:
            time.sleep(0.05)
        assert "disk of this machine is full" in said(first) and runs.state(first) == "failed"
        second = runs.begin(asked, OTHER)
        assert wait(runs, second, "failed", seconds=60) == "failed" and "nothing" in said(second)


class Broken:
    """A process that has gone between two looks, or that cannot be looked at."""

    pid = 2**22 + 1

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def is_alive(self) -> bool:
        if self.error:
            raise self.error
        return True

    def join(self, timeout: float | None = None) -> None: ...
    def kill(self) -> None: ...


def test_a_worker_that_has_just_gone_is_stopped_all_the_same():
    stop(Broken(), patience=0.01)


@pytest.mark.parametrize("step", ["expire", "start", "over", "size"])
def test_whatever_goes_wrong_the_next_run_has_its_turn(tmp_path, monkeypatch, caplog, step):
    wrong, calls = PermissionError(13, "not yours", "/srv/secret"), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise wrong
        return {"expire": None, "size": 0}.get(step) if step in ("expire", "size") else original(*args, **kwargs)

    place, name = {"expire": (Runs, "expire"), "start": (module, "start"), "over": (module._Work, "over"),
                   "size": (module, "_size")}[step]  # fmt: skip
    original = getattr(place, name)
    monkeypatch.setattr(place, name, failing)
    runs = Runs(tmp_path / "runs")
    first = runs.begin(Recipe.of(base=str(tmp_path / "nothing"), ratio=0.25), OWNER)
    second = runs.begin(Recipe.of(base=str(tmp_path / "nothing"), ratio=0.25, seed=1), OTHER)
    assert [wait(runs, run, "failed", "stopped", seconds=60) for run in (first, second)] == ["failed", "failed"]
    assert runs._work is None and calls and "not yours" in caplog.text and "/srv" not in caplog.text
    assert "/srv" not in said(first)


def test_a_torn_line_hides_none_of_the_others(idle):
    run = idle.begin(recipe(), OWNER)
    _tell(run, {"event": "Stage"})
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "Sc\xff\n')
    _tell(run, {"event": "Failed"})
    assert [e["event"] for e in run.events()] == ["Stage", "Failed"]
