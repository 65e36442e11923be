"""2,000 spoiled files in every run of the tests, 200,000 by `make fuzz`: a value, or a sentence that names the file."""

import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings

from hf_prune.errors import HfPruneError
from tests.fuzz.readers import READERS, Reader, reading

EXAMPLES = int(os.environ.get("HF_PRUNE_FUZZ", 2000))
SECONDS = 10.0
"""Processor time that a file may take."""
MEMORY = 512 << 10
"""KiB by which reading it may raise the most that this process ever held."""


class TookTooLong(BaseException):
    """No reader catches this."""


@contextmanager
def bounded() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TookTooLong(f"more than {SECONDS} s")

    before, most = signal.signal(signal.SIGVTALRM, stop), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < MEMORY


def share(reader: Reader) -> int:
    return max(5, round(EXAMPLES * reader.weight / sum(r.weight for r in READERS)))


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_whatever_a_file_says_there_is_a_value_or_one_sentence(reader):
    @settings(
        max_examples=share(reader), derandomize=EXAMPLES <= 2000, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(content=reader.content())
    def check(content: bytes) -> None:
        try:
            with bounded():
                reading(reader, content)
        except HfPruneError as e:
            said = str(e)
            assert (reader.said or reader.file) in said, said
            assert said.endswith((".", "?")) and "\n" not in said and len(said) < 1500, said
            assert not re.search(r"Errno|Traceback|unexpected;|https://errors\.pydantic", said), said

    check()
