"""Spaces and jobs against the stand-in Hub."""

import shlex

import pytest

from hf_prune.errors import PublishError
from hf_prune.hub import flavor, job_command, push_space, run_job


def test_a_space_is_created_updated_and_left_alone(hub_server, tmp_path):
    (tmp_path / "app.py").write_text("print(1)\n")
    first = push_space(tmp_path, "ns/app", hardware="cpu-upgrade")
    repo = hub_server.repo("ns/app", "space")
    assert first.changed and repo.private and hub_server.hardware == {"ns/app": "cpu-upgrade"}
    assert hub_server.storage.read(repo, "app.py") == b"print(1)\n"
    assert not push_space(tmp_path, "ns/app").changed
    (tmp_path / "app.py").write_text("print(2)\n")
    assert push_space(tmp_path, "ns/app").changed
    assert hub_server.storage.read(repo, "app.py") == b"print(2)\n"


def test_a_space_of_somebody_else_is_refused(hub_server, tmp_path):
    (tmp_path / "app.py").write_text("print(1)\n")
    with pytest.raises(PublishError, match="may not write"):
        push_space(tmp_path, "guest/app")


def test_a_job_runs_the_hf_prune_of_a_space_and_pushes(hub_server):
    job = run_job("ns/app", ["compress", "ns/big model", "--ratio", "0.25"], "ns/small", "a10g-small")
    asked = hub_server.jobs[0]
    assert job.url == f"{hub_server.endpoint}/jobs/ns/{job.id}" and asked["flavor"] == "a10g-small"
    assert asked["secrets"] == {"HF_TOKEN": "hf_ns_secret"}
    shell = asked["command"][-1]
    assert "hf_ns_secret" not in shell and "hf download ns/app --repo-type space" in shell
    words = shlex.split(shell.rpartition("&& ")[2])
    assert words[:3] == ["python", "-m", "hf_prune.cli"]
    assert words[3:] == ["compress", "ns/big model", "--ratio", "0.25", "--push-to", "ns/small"]
    assert "hf_ns_secret" not in job_command("ns/app", ["compress", "ns/big"], "a10g-small")


def test_a_job_is_started_once_or_not_at_all(hub_server, monkeypatch):
    with pytest.raises(PublishError, match="no name for the result"):
        run_job("ns/app", ["compress", "x"], "a b", "a10g-small")
    hub_server.faults.status("POST /api/jobs", 503)
    with pytest.raises(PublishError, match="status 503"):
        run_job("ns/app", ["compress", "x"], "ns/small", "a10g-small", sleep=lambda _: None)
    assert len(hub_server.seen("POST /api/jobs")) == 1
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(PublishError, match="does not accept the login"):
        run_job("ns/app", ["compress", "x"], "ns/small", "a10g-small", sleep=lambda _: None)


def test_the_smallest_hardware_with_room():
    assert flavor(1e9, gpu=False) == "cpu-upgrade" and flavor(1e9) == "a10g-small"
    assert flavor(30e9) == "a10g-large" and flavor(1e12) is None
