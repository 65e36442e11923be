import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_prune.blueprint import Fidelity
from hf_prune.errors import StaleJournal
from hf_prune.session.journal import Journal

HEADER = {"recipe": "abc", "numerics": {"torch": "2.6", "dtype": "float32"}}
FULL = Fidelity(8)


def entry(digest, value=1.0, fidelity=FULL, genome=(0, 1)):
    return (digest, fidelity), genome, (value, 2.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.jsonl"


def written(path, *batches):
    with Journal.open(path, HEADER) as journal:
        for batch in batches:
            journal.record(batch)
    return path.read_bytes()


def test_what_was_recorded_is_read_back(path):
    written(path, [entry("a"), entry("b", math.inf)], [entry("a", 3.5, Fidelity(2, 4, 1000))])
    with Journal.open(path, HEADER) as journal:
        assert journal.get(("a", FULL)) == (1.0, 2.0)
        assert journal.get(("b", FULL)) == (math.inf, 2.0)
        assert journal.get(("a", Fidelity(2, 4, 1000))) == (3.5, 2.0)
        assert journal.get(("a", Fidelity(2))) is None
        assert len(journal) == 3
        assert [(r.digest, r.genome, r.fidelity.start, r.values[0]) for r in journal.rows()] == [
            ("a", (0, 1), 0, 1.0), ("b", (0, 1), 0, math.inf), ("a", (0, 1), 4, 3.5)]  # fmt: skip


@given(st.lists(st.floats(), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
def test_values_come_back_to_the_last_bit(tmp_path, values):
    path = tmp_path / "bits.jsonl"
    path.unlink(missing_ok=True)
    with Journal.open(path, HEADER) as journal:
        journal.record([(("a", FULL), (1,), tuple(values))])
    with Journal.open(path, HEADER) as journal:
        assert list(map(repr, journal.get(("a", FULL)))) == list(map(repr, values))


def test_the_file_is_one_header_and_one_strict_json_line_per_batch(path):
    text = written(path, [entry("a"), entry("b", math.inf)], [], [entry("c")]).decode()
    header, *batches = [json.loads(line, parse_constant=lambda c: pytest.fail(c)) for line in text.splitlines()]
    assert header["header"] == HEADER
    assert [[t["digest"] for t in b["trials"]] for b in batches] == [["a", "b"], ["c"]]
    assert batches[0]["trials"][1] == {
        "digest": "b",
        "genome": [0, 1],
        "fidelity": [8, 0, 0, 0],
        "values": ["inf", 2.0],
    }


def test_a_journal_from_before_repairs_is_read(path):
    written(path, [entry("a")])
    path.write_bytes(path.read_bytes().replace(b"[8,0,0,0]", b"[8,0,0]"))
    with Journal.open(path, HEADER) as journal:
        assert journal.get(("a", FULL)) is not None


def test_a_known_pair_is_never_written_again(path):
    before = written(path, [entry("a", 1.0)])
    assert written(path, [entry("a", 7.0)]) == before
    text = written(path, [entry("a", 7.0), entry("b")])
    assert text.count(b'"a"') == 1 and text.count(b'"b"') == 1


def test_a_file_cut_anywhere_keeps_exactly_its_whole_batches(path):
    whole = written(path, [entry("a"), entry("b")], [entry("c")])
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with Journal.open(path, HEADER) as journal:
            assert len(journal) == {0: 0, 1: 0, 2: 2, 3: 3}[sum(end <= cut for end in ends)]
            journal.record([entry("d")])
        with Journal.open(path, HEADER) as journal:
            assert journal.get(("d", FULL)) == (1.0, 2.0)


def test_a_last_line_of_rubbish_is_dropped(path):
    whole = written(path, [entry("a")])
    path.write_bytes(whole + b"\0\0\0\0\n")
    assert written(path) == whole


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"recipe": "xyz", "numerics": HEADER["numerics"]}, "recipe was 'abc' and is 'xyz'"),
        ({"recipe": "abc", "numerics": {"torch": "2.7", "dtype": "float32"}}, "numerics was .*2.6.* and is .*2.7"),
        ({"recipe": "abc"}, "numerics was .* and is None"),
    ],
)
def test_another_header_is_stale_and_the_file_stays_as_it_is(path, changed, told):
    before = written(path, [entry("a")]) + b'{"trials":[{"dig'
    path.write_bytes(before)
    with pytest.raises(StaleJournal, match=told) as error:
        Journal.open(path, changed)
    assert str(path) in str(error.value) and "move the journal away" in str(error.value)
    assert path.read_bytes() == before
    Journal.open(path, HEADER).close()


def test_damage_before_the_last_line_is_told(path):
    header, first, second = written(path, [entry("a")], [entry("b")]).splitlines(keepends=True)
    path.write_bytes(header + first[:-9] + b"\n" + second)
    with pytest.raises(StaleJournal, match=r"Line 2 .* damaged"):
        Journal.open(path, HEADER)


@pytest.mark.parametrize(
    "text", ['{"trials": []}\n', "[1]\n", '{"header": 3}\n', "# notes\n{}\n", "hello\n", "hello", "[]"]
)
def test_a_foreign_file_is_refused_and_not_touched(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(StaleJournal, match="not a journal"):
        Journal.open(path, HEADER)
    assert path.read_text() == text


def test_memory_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal.memory()
    journal.record([entry("a")])
    assert journal.get(("a", FULL)) == (1.0, 2.0) and len(journal) == 1 and not list(tmp_path.iterdir())


def start(path, name):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.search.killed", str(path), name],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["staged", pytest.param("nsga2", marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path, name):
    """SIGKILL in the middle of evaluations and writes; the last bits of a value depend on its batch."""
    expected, _ = start(tmp_path / "undisturbed", name).communicate(timeout=60)
    reference = (tmp_path / "undisturbed").read_bytes()
    path, moments, kills = tmp_path / "killed", random.Random(3), 0
    while True:
        process = start(path, name)
        size = path.stat().st_size if path.exists() else 0
        # Wait for progress first: otherwise slow machines would only ever kill the import of Python modules.
        while process.poll() is None and (path.stat().st_size if path.exists() else 0) <= size:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        if kills < 4 and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
            process.communicate()
            continue
        printed, _ = process.communicate(timeout=60)
        break
    assert kills >= 3
    assert printed == expected and expected.strip()
    assert path.read_bytes() == reference
    trials = [(t["digest"], *t["fidelity"]) for line in path.open() for t in json.loads(line).get("trials", ())]
    assert len(set(trials)) == len(trials)
