import os
import time
from pathlib import Path

import pytest

from hf_prune.app.workers import ask, start, stop
from hf_prune.errors import HfPruneError, InvalidRecipe


def add(a: int, b: int, times: int = 1) -> int:
    return (a + b) * times


def login() -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("HF_TOKEN")


def refuse() -> None:
    raise InvalidRecipe("nothing of the kind")


def break_down() -> None:
    raise KeyError("inside")


def vanish() -> None:
    os._exit(9)


def sleep(begun: str, ended: str) -> None:
    Path(begun).touch()
    try:
        time.sleep(60)
    finally:
        Path(ended).touch()


def write_niceness(path: str) -> None:
    Path(path).write_text(str(os.nice(0)))


def test_long_work_gives_way_as_far_as_it_is_told(tmp_path):
    for niceness in (0, 3):
        process = start(write_niceness, str(tmp_path / "nice"), niceness=niceness)
        process.join(60)
        assert int((tmp_path / "nice").read_text()) == os.nice(0) + niceness


def test_an_answer_comes_back_from_a_process_of_its_own():
    assert ask(add, 2, 3, times=4) == 20
    assert ask(login)[0] != os.getpid()


def test_a_login_is_that_of_the_process_alone():
    assert ask(login, login="hf_guest_secret")[1] == "hf_guest_secret"
    assert os.environ["HF_TOKEN"] == "hf_ns_secret"


def test_what_went_wrong_is_said():
    with pytest.raises(InvalidRecipe, match="nothing of the kind"):
        ask(refuse)
    with pytest.raises(HfPruneError, match="KeyError: 'inside'"):
        ask(break_down)
    with pytest.raises(HfPruneError, match="ended without an answer"):
        ask(vanish)


def test_work_that_takes_too_long_is_ended(tmp_path):
    with pytest.raises(HfPruneError, match="longer than 1 seconds"):
        ask(sleep, str(tmp_path / "begun"), str(tmp_path / "ended"), patience=1.0)


def test_a_stopped_process_puts_its_things_away(tmp_path):
    process = start(sleep, str(tmp_path / "begun"), str(tmp_path / "ended"))
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < until:
        time.sleep(0.05)
    stop(process)
    assert not process.is_alive() and (tmp_path / "ended").exists()
