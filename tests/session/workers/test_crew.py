"""Orders reach whoever is there, once; who is lost is replaced, and nobody waits for ever. With real processes."""

import functools
import json
import os
import subprocess
import sys
import time

import pytest

from hf_prune.errors import HfPruneError, IncompatibleSources, InvalidData
from hf_prune.session.workers.crew import Crew, Order, Patience
from hf_prune.session.workers.processes import Process
from tests.test_processes import alive, wait_until

MEMBERS = [3, 1, 4, 1, 5, 9]
COMMON = json.dumps(MEMBERS).encode()
PIECES = 7


def place(home, opener="add", **charge):
    return functools.partial(Process, f"tests.session.workers.openers:{opener}", {"home": str(home), **charge}, {})


def worked(home, workers=2, own=None, patience=None, pieces=PIECES, **charge):
    """Sums by piece, the crew's traffic, and what processes did."""
    crew, found = Crew([place(home, **charge)] * workers, patience), {}

    def done(order, answer):
        common, total = json.loads(answer)
        assert common == COMMON.decode()
        found.setdefault(order.piece, []).append((order.first, order.stop, total - order.piece))

    try:
        crew.work(COMMON, [Order(n, 0, len(MEMBERS)) for n in range(pieces)], done, own)
    finally:
        crew.close()
    lines = (home / "done").read_text().splitlines() if (home / "done").exists() else []
    return found, crew.traffic, lines


def check(found, pieces=PIECES):
    """Every member was counted once on every piece."""
    assert set(found) == set(range(pieces))
    for parts in found.values():
        assert sum(total for *_, total in parts) == sum(MEMBERS)
        assert sorted(n for first, stop, _ in parts for n in range(first, stop)) == list(range(len(MEMBERS)))


def test_every_order_is_carried_out_once(tmp_path):
    found, traffic, lines = worked(tmp_path, workers=3)
    check(found)
    assert len(lines) == len(set(lines)) == traffic.orders == PIECES and not traffic.lost
    assert traffic.sent <= 3 * len(COMMON) + PIECES * 8, "what orders have in common is sent to a worker once"


def test_who_asks_works_too(tmp_path):
    mine = []

    def own(order):
        mine.append(order)
        time.sleep(0.05)
        return json.dumps([COMMON.decode(), order.piece + sum(MEMBERS[order.first : order.stop])]).encode()

    found, traffic, lines = worked(tmp_path, own=own, pieces=100)
    check(found, 100)
    assert mine and len(mine) + len(lines) == traffic.orders == 100


@pytest.mark.parametrize("how", ["kill once", "hang once"])
def test_the_order_of_a_worker_that_is_lost_goes_to_another(tmp_path, how):
    found, traffic, lines = worked(tmp_path, trouble={2: how}, patience=Patience(20, 2.0, 4.0))
    check(found)
    assert len(traffic.lost) == 1 and traffic.hired >= 2 and len(lines) == PIECES
    assert ("SIGKILL" if how == "kill once" else "no answer for") in traffic.lost[0]


@pytest.mark.parametrize("how", ["memory", "kill many"])
def test_an_order_that_is_too_much_is_halved(tmp_path, how):
    found, traffic, _ = worked(tmp_path, trouble={0: how}, pieces=2)
    check(found, 2)
    assert traffic.halved and len(found[0]) > 1 == len(found[1])


def test_a_single_member_that_is_too_much_is_given_up(tmp_path):
    with pytest.raises(HfPruneError, match=r"One candidate alone is too much for a worker \(8 bytes\); lower --length"):
        worked(tmp_path, trouble={1: "no memory"})


def test_what_a_worker_refuses_is_refused_in_its_words(tmp_path):
    with pytest.raises(InvalidData, match="^The text is empty.$"):
        worked(tmp_path, trouble={1: "refuse"})
    with pytest.raises(HfPruneError, match="ZeroDivisionError: division by zero"):
        worked(tmp_path, trouble={1: "break"})
    with pytest.raises(IncompatibleSources, match="^Another model lies here.$"):
        worked(tmp_path, opener="refuse")
    with pytest.raises(HfPruneError, match="ended twice while it opened the model .killed by signal SIGKILL"):
        worked(tmp_path, opener="die")


OWNER = """
import sys, time
from hf_prune.session.workers.processes import Process
process = Process("tests.session.workers.openers:add", {"home": sys.argv[1], "trouble": {0: "hang once"}}, {})
process.open()
if sys.argv[2] == "busy":
    process.ask(b"[1]", b"[0,0,1]")
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_worker_ends_with_who_hired_it(tmp_path, state):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", OWNER, str(tmp_path), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as owner:
        worker = int(owner.stdout.readline())
        if state == "busy":
            assert wait_until((tmp_path / "hang once-0").exists)
        owner.kill()
        owner.wait()
        assert wait_until(lambda: not alive(worker), 2.0) is True
