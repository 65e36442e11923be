"""Whoever is killed takes along what worked for it: nothing of ours runs on for more than two seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_prune.app import workers
from hf_prune.assembly import reload_probe
from tests.runs import base

GRACE = 2.0
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")

OWNER = """
import os, subprocess, sys, time
probe, request = sys.argv[1:3]
command = [sys.executable, probe, "--serve", str(os.getpid())]
server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
# Somebody else holds the other end of its stdin, too, as a fork of the owner would.
holder = subprocess.Popen(["sleep", "60"], pass_fds=[server.stdin.fileno()])
server.stdin.write(request.encode() + b"\\n")
server.stdin.flush()
print(server.pid, holder.pid, flush=True)
time.sleep(60)
"""


def children(pid):
    """Processes whose parent has this id."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(rest.split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true, seconds=60.0):
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


@pytest.fixture
def request_line(tmp_path):
    """One that keeps the probe busy: its code sleeps while the model is loaded."""
    folder = base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "slow.Slow", "AutoModelForCausalLM": "slow.Model"}
    config["model_type"] = "slow"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "slow.py").write_text(
        "import time\ntime.sleep(60)\nfrom transformers import LlamaConfig as Slow, LlamaForCausalLM as Model\n"
    )
    save_file({"tokens": torch.zeros(1, 4, dtype=torch.int64)}, tmp_path / "windows.safetensors")
    words = [tmp_path / "errors", folder, tmp_path / "windows.safetensors", tmp_path / "answer", "float32", "cpu"]
    return json.dumps([*map(str, words), "--trust-remote-code"])


@pytest.mark.parametrize("busy", [True, False])
def test_the_probe_ends_when_who_asks_is_killed(request_line, busy):
    request = request_line if busy else json.dumps([os.devnull, "gone", "gone", "gone", "float32", "cpu"])
    owner = subprocess.Popen([sys.executable, "-c", OWNER, reload_probe.__file__, request], stdout=subprocess.PIPE)
    server, holder = map(int, owner.stdout.readline().split())
    try:
        if busy:
            assert wait_until(lambda: children(server))
        else:
            # Still importing what it needs.
            time.sleep(1.0)
        working = [server, *children(server)]
        owner.kill()
        owner.wait()
        assert alive(server)
        assert wait_until(lambda: not any(map(alive, working)), GRACE) is True
    finally:
        os.kill(holder, signal.SIGKILL)
        owner.stdout.close()


def test_a_fork_of_the_probe_ends_with_the_probe(request_line):
    server = subprocess.Popen(
        [sys.executable, reload_probe.__file__, "--serve", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    server.stdin.write(request_line.encode() + b"\n")
    server.stdin.flush()
    (fork,) = wait_until(lambda: children(server.pid))
    # It has said to the kernel what is to become of it.
    time.sleep(0.5)
    server.kill()
    server.wait()
    assert wait_until(lambda: not alive(fork), GRACE)
    server.stdin.close()
    server.stdout.close()


APP = """
import sys, time
from hf_prune.app import workers
from tests.test_processes import stubborn

if __name__ == "__main__":
    process = workers.start(stubborn, sys.argv[1])
    print(process.pid, flush=True)
    time.sleep(60)
"""


def stubborn(sign):
    """Work that does not listen to being interrupted."""
    Path(sign).touch()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            continue


def test_a_worker_ends_when_its_app_is_killed(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    app = subprocess.Popen(
        [sys.executable, tmp_path / "app.py", tmp_path / "begun"], stdout=subprocess.PIPE, env=environment
    )
    worker = int(app.stdout.readline())
    assert wait_until((tmp_path / "begun").exists, 120)
    app.kill()
    app.wait()
    assert wait_until(lambda: not alive(worker), GRACE)
    app.stdout.close()


def test_a_worker_that_is_asked_to_terminate_puts_its_things_away(tmp_path):
    process = workers.start(_tidy, str(tmp_path))
    assert wait_until((tmp_path / "begun").exists, 120)
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == 130 and (tmp_path / "tidied").exists()


def _tidy(folder):
    try:
        Path(folder, "begun").touch()
        time.sleep(60)
    finally:
        Path(folder, "tidied").touch()
