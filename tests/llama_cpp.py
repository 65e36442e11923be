"""A real llama.cpp for slow tests: the one that the environment names, else that of the npm package, fetched once."""

import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hf_prune.assembly.gguf.llama_cpp import VARIABLE, find_llama_cpp

VERSION = "3.21.1"
NAMED = os.environ.get(VARIABLE)
PACKAGES = {
    ("linux", "x86_64"): "linux-x64",
    ("linux", "aarch64"): "linux-arm64",
    ("darwin", "arm64"): "mac-arm64-metal",
    ("darwin", "x86_64"): "mac-x64",
}
HOME = Path(tempfile.gettempdir()) / f"hf_prune-tests-llama-cpp-{VERSION}"
"""Kept for the next run."""


@functools.cache
def llama_cpp() -> Path:
    """Its library; skips the test, and says why, where there is none and none can be fetched."""
    if NAMED:
        return find_llama_cpp(NAMED)
    package = PACKAGES.get((sys.platform, platform.machine()))
    npm = shutil.which("npm")
    if not (package and npm):
        pytest.skip(f"no llama.cpp: {VARIABLE} names none, and there is no npm to fetch node-llama-cpp with")
    if not HOME.is_dir():
        with tempfile.TemporaryDirectory(dir=HOME.parent) as scratch:
            command = [npm, "install", "--prefix", scratch, "--ignore-scripts", "--no-audit", "--no-fund",
                       f"@node-llama-cpp/{package}@{VERSION}"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
                pytest.skip(f"no llama.cpp: npm cannot fetch node-llama-cpp {VERSION} ({said})")
            try:
                os.rename(scratch, HOME)
                Path(scratch).mkdir()
            except OSError:
                assert HOME.is_dir()
    return find_llama_cpp(HOME)
