"""However many workers score, and whatever becomes of them, the figures are the same to the last bit."""

import json
import os
import pickle
import signal
import threading

import numpy as np
import pytest

from hf_prune.blueprint import Source
from hf_prune.errors import IncompatibleSources, InvalidRecipe
from hf_prune.models.devices import devices_of
from hf_prune.recipe import Recipe
from hf_prune.session.session import open_session
from hf_prune.session.workers.crew import Order
from hf_prune.session.workers.search import charge_of, working
from hf_prune.session.workers.unfinished import Unfinished
from hf_prune.session.workers.worker import check_versions, name_of, open_sources
from tests.runs import TASKS, recipe, relatives, stitching
from tests.test_processes import wait_until

EVIDENCE = {"sequences": 20, "length": 64, "search_tasks": TASKS[:1], "tasks": TASKS[1:], "search_items": 8,
            "selection_items": 4, "objective": "doubt", "repair": True, "repair_sequences": 8}  # fmt: skip
"""Ten chunks: windows, of which gaps are bridged, and a sheet of a task."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("workers")
    recipe(home, keep_layers=4)
    return home


def asked(home, name, **changes):
    files = {"base": str(home / "base"), "data": (str(home / "text.txt"),)}
    return recipe(home, **{"keep_layers": 4, **files, **EVIDENCE, "output": str(home / name), **changes})


def generation(session, count=9):
    scorer, rng = session.scorer, np.random.default_rng(0)
    return [scorer.blueprint(scorer.space.random(rng)) for _ in range(count)]


def score(session, crew=None):
    """What a generation is found to be, once all are there."""
    if crew:
        # Of one that cannot open the model the evaluation says why.
        wait_until(lambda: crew.traffic.hired == crew.size - 1 or crew._error, 300)
    evidence = session.evidence
    fidelities = (evidence.foretelling(evidence.full), evidence.selection, evidence.fidelity(8))
    return [session.evaluator.evaluate(generation(session), f) for f in fidelities]


@pytest.mark.slow
def test_one_two_and_four_workers_find_the_same(home):
    found = {}
    for workers in (1, 2, 4):
        session = open_session(asked(home, f"of-{workers}", workers=workers))
        with working(session) as crew:
            found[workers] = repr(score(session, crew)), session.evaluator.cost
            assert (crew is None) == (workers == 1)
            assert crew is None or crew.traffic.received and not crew.traffic.lost
    assert found[1] == found[2] == found[4]


@pytest.mark.slow
def test_workers_know_every_parent_and_who_teaches_which_window(tmp_path):
    relatives(tmp_path)
    found = []
    for workers in ("1", "2"):
        wanted = stitching(tmp_path, f"of-{workers}", workers=workers, sequences=24, length=64)
        session = open_session(wanted)
        with working(session) as crew:
            found.append(repr(score(session, crew)))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_nothing_changes(home):
    expected = repr(score(open_session(asked(home, "alone"))))
    session = open_session(asked(home, "killed", workers=2))
    with working(session) as crew:
        score(session, crew)
        (worker,) = crew._workers.values()
        stop = threading.Event()

        def kill():
            # At whatever it is doing.
            if not stop.wait(0.05):
                os.kill(worker.pid, signal.SIGKILL)

        threading.Thread(target=kill).start()
        assert repr(score(session)) == expected
        stop.set()
        assert wait_until(lambda: crew.traffic.lost, 60) and repr(score(session)) == expected


def test_finished_chunks_of_a_sweep_are_not_computed_again(home):
    session = open_session(asked(home, "unfinished", workers=2))
    evidence = session.evidence
    with working(session) as crew:
        whole = session.evaluator.evaluate(generation(session), evidence.full)
        orders = crew.traffic.orders
    path = session.workdir.sweep
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == orders + 2
    # Killed in the middle of the fourth.
    path.write_bytes(b"\n".join(lines[:4]) + b"\n" + lines[4][:50])
    again = open_session(session.recipe)
    with working(again) as crew:
        assert repr(again.evaluator.evaluate(generation(again), evidence.full)) == repr(whole)
        assert crew.traffic.orders == orders - 3


def test_answers_of_another_sweep_are_not_taken(tmp_path):
    kept = Unfinished(tmp_path / "sweep", {"recipe": "a"}, "one")
    kept.keep(Order(3, 0, 2, lost=1), b"[1]")
    assert Unfinished(tmp_path / "sweep", {"recipe": "a"}, "one").answers == {Order(3, 0, 2): b"[1]"}
    assert Unfinished(tmp_path / "sweep", {"recipe": "a"}, "two").answers == {}
    assert Unfinished(tmp_path / "sweep", {"recipe": "a"}, "one").answers == {}


def test_a_worker_refuses_another_model_and_other_versions(home, tmp_path):
    session = open_session(asked(home, "refused"))
    config = json.loads((home / "base" / "config.json").read_text())
    other = tmp_path / "base"
    other.mkdir()
    for path in (home / "base").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    sources = session.inputs.sources
    here = open_sources(session.recipe, [str(home / "base")], sources, None)
    assert here[0].source == sources[0]
    with pytest.raises(IncompatibleSources, match="A worker found base@sha256-.* where the run has base@sha256-"):
        open_sources(session.recipe, [str(other)], sources, None)
    with pytest.raises(IncompatibleSources, match="A worker has torch .* and not 1.0"):
        check_versions({"torch": "1.0"})


def test_no_weight_is_in_a_charge(home):
    session = open_session(asked(home, "charge"))
    size = len(pickle.dumps(charge_of(session, 1)))
    assert size < 300_000 < session.inputs.base.bytes


def test_names_of_sources_are_those_they_are_pulled_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    assert name_of("a/b", Source("a/b", "c0ffee")) == "a/b@c0ffee"
    assert name_of("a/b@v1+c/d", Source("a/b", "c0ffee", "c/d@f00d")) == "a/b@c0ffee+c/d@f00d"
    assert name_of("lora", Source("lora", "sha256-12")) == str(tmp_path / "lora")
    assert name_of("a/b+lora", Source("a/b", "c0ffee", "lora@sha256-12")) == f"a/b+{tmp_path / 'lora'}"


def test_devices_and_workers_agree():
    assert devices_of("cpu", 3) == ("cpu",) * 3 and devices_of("cpu,cpu", 1) == ("cpu", "cpu")
    with pytest.raises(InvalidRecipe, match="names 2 devices"):
        devices_of("cpu,cpu", 3)
    for wrong, why in (({"device": "cpu,cuda"}, "of one kind"), ({"workers": 0}, "from 1 to 512"),
                       ({"workers": "many"}, "from 1 to 512"), ({"device": "cpu;cpu"}, "a device is")):  # fmt: skip
        with pytest.raises(InvalidRecipe, match=why):
            Recipe.of(base="m", **wrong)
    assert Recipe.of(base="m", workers=2).digest == Recipe.of(base="m").digest
