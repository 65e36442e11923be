"""Twenty kills of the two hundred that `make chaos` makes; see tests/chaos.py."""

from pathlib import Path

import pytest

from tests import chaos


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_killed_at_any_moment_everything_ends_as_if_undisturbed(tmp_path, hub_server):
    hits = chaos.run(tmp_path, hub_server, kills=20, seed=1)
    assert hits.total() == 20 and len(hits) >= 4
