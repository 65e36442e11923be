"""What computes on a GPU mixes no devices, tried on machines without one; and the GPU script runs at a small shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "smollm3")


def test_sweep_repair_levels_and_tasks_are_the_same_on_another_device():
    # A device cannot be unregistered.
    command = [sys.executable, "-m", "tests.second_device", *FAMILIES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the same") == len(FAMILIES) + 1


@pytest.mark.slow
def test_the_gpu_script_runs_at_a_small_shape(tmp_path):
    command = [sys.executable, "gpu.py", "--output", tmp_path / "out.json", "--shape", "demo", "--device", "cpu",
               "--stream-gb", 0.06, "--memory", 0.05, "--windows", 2, "--length", 64]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT / "examples" / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert len(parts) == 7 and all("failed" not in p and p["peak GB"] > 0 for p in parts.values()), parts
    assert parts["streamed search"]["layers read"] > parts["streamed search"]["layers"]
    assert parts["search"]["ms per candidate"] < parts["search"]["plain way, ms"]
