"""A tracker is told the figures of a run; without one nothing changes, and no trouble of its ends a run."""

import importlib.util
import logging
from contextlib import closing

import pytest

from hf_prune.blueprint import Fidelity, Outcome, Trial
from hf_prune.errors import InvalidRecipe
from hf_prune.events import Advanced, Finished, Healed, Repaired, Scored, Stage, Started
from hf_prune.pipeline import compress
from hf_prune.planning import check_evidence
from hf_prune.recipe import Recipe
from hf_prune.report import tracking
from hf_prune.report.tracking import TRACKERS, figures, tracked
from tests.runs import recipe

OUTCOME = Outcome(Trial((0, 1), Fidelity(4)), (0.5,))
EVENTS = (Scored((OUTCOME,), 3, 9, 0.5), Scored((OUTCOME,), 1, 9, float("inf")), Advanced("heal", 4, 8, 1.5),
          Advanced("heal", 5, 8), Repaired(2.0, 1.0, True), Healed(2.0, 1.5, 100, True), Stage("report"))  # fmt: skip


def events(track, fails=False):
    yield Stage("pull")
    yield Started(Recipe.of(base="ns/m", output="/somewhere/small", track=track), "ns/m", 16, "remove 4", 9)
    yield from EVENTS
    if fails:
        raise InvalidRecipe("stop")
    yield Finished("small", {})


class Kept:
    """A tracker that remembers, and may break."""

    def __init__(self, breaks=False):
        self.told, self.closed, self.breaks = [], 0, breaks

    def __call__(self, name, settings):
        assert name == "small" and settings == {"base": "ns/m"}
        return self

    def log(self, figures, step):
        if self.breaks:
            raise ConnectionError("no\nnetwork")
        self.told.append((figures, step))

    def close(self):
        self.closed += 1


@pytest.fixture
def kept(monkeypatch):
    made = Kept()
    monkeypatch.setattr(tracking, "TRACKERS", {"wandb": made})
    return made


def test_search_and_healing_are_told_and_nothing_that_is_no_number(kept):
    assert [type(e) for e in tracked(events("wandb"))] == [type(e) for e in events("none")]
    assert kept.closed == 1 and kept.told == [
        ({"search/best": 0.5, "search/evaluations": 3.0}, 3),
        ({"search/evaluations": 1.0}, 1),
        ({"heal/loss": 1.5, "heal/step": 4.0}, 4),
        ({"repair/before": 2.0, "repair/after": 1.0}, 0),
        ({"heal/before": 2.0, "heal/after": 1.5}, 0),
    ]
    assert figures(Stage("report")) is None


def test_without_one_nothing_is_opened(kept):
    assert len(list(tracked(events("none")))) == len(EVENTS) + 3 and not kept.told and not kept.closed


@pytest.mark.parametrize("how", ["fails", "closed"])
def test_it_is_closed_however_a_run_ends(kept, how):
    with pytest.raises(InvalidRecipe, match="stop") if how == "fails" else closing(tracked(events("wandb"))) as told:
        if how == "fails":
            list(tracked(events("wandb", fails=True)))
        else:
            next(told), next(told)
    assert kept.closed == 1


def test_a_run_outlives_its_tracker_and_says_so_once(kept, caplog):
    kept.breaks = True
    with caplog.at_level(logging.WARNING):
        assert len(list(tracked(events("wandb")))) == len(EVENTS) + 3
    assert [r.getMessage() for r in caplog.records] == ["wandb takes no more figures (no network); the run goes on."]


@pytest.mark.parametrize("name", TRACKERS)
def test_one_that_is_not_installed_is_told_before_anything_is_read(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InvalidRecipe, match=f"--track {name} needs the package {name}; install it with"):
        check_evidence(Recipe.of(base="ns/m", track=name))


@pytest.mark.slow
def test_tensorboard_reads_what_was_written(tmp_path, monkeypatch):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    list(compress(recipe(tmp_path, keep_layers=4, heal="2k", heal_batch=4, heal_rank=4, track="tensorboard")))
    board = event_files.EventAccumulator(str(tmp_path / "board/small")).Reload()
    assert {"search/best", "search/evaluations", "heal/loss", "heal/before"} <= set(board.Tags()["scalars"])
    assert board.Scalars("search/evaluations")[-1].value <= 24
    (written,) = (tmp_path / "board/small").iterdir()
    assert str(tmp_path) not in written.read_bytes().decode("latin1")


@pytest.mark.slow
def test_trackio_keeps_a_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "board"))
    for event in tracked(events("trackio")):
        assert event
    from trackio.sqlite_storage import SQLiteStorage

    logged = SQLiteStorage.get_logs("hf-prune", "small")
    assert any(row.get("search/best") == 0.5 for row in logged) and capsys.readouterr().out == ""
