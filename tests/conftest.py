"""The Hub of all tests is a stand-in on this machine: no test reaches the network or a person's login and cache."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.hub import Hub

# Machines are noisy, and a slow one is not a wrong one.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Read when torch is loaded; see hf_prune/cli.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Every core has a worker already.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# The client reads these when it is imported, which the first test module may do.
_HOME = tempfile.TemporaryDirectory(prefix="hf_prune_tests_")
HUB = Hub(Path(_HOME.name, "hub")).start()
os.environ |= {
    "HF_ENDPOINT": HUB.endpoint,
    "HF_HOME": str(Path(_HOME.name, "home")),
    "HF_TOKEN": "hf_ns_secret",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(_name, None)


@pytest.fixture
def hub_server() -> Iterator[Hub]:
    """The running stand-in, empty, and nothing in the client's cache."""
    HUB.reset()
    shutil.rmtree(Path(_HOME.name, "home"), ignore_errors=True)
    yield HUB
    HUB.reset()
