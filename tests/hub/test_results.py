"""A published result is fetched, trained and measured again, by its repo's name alone."""

import json

import pytest

from tests.hub.samples import model
from tests.runs import DEPTH, FLAGS, command, leftovers, text
from tests.test_end_to_end import loaded_by_a_stranger

pytestmark = pytest.mark.slow

HEAL = ["--heal", "3k", "--heal-batch", 4, "--heal-rank", 4]


@pytest.fixture
def published(hub_server, tmp_path):
    """`ns/small`: repaired, cut from `ns/base`."""
    hub_server.seed("ns/base", model(num_hidden_layers=DEPTH))
    done = command("compress", "ns/base", "--drop", "1,3", "--repair", "--repair-sequences", 24, *FLAGS, "--data",
                   text(tmp_path / "t.txt"), "--output", tmp_path / "made", "--push-to", "ns/small")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return hub_server


def test_a_repo_is_healed_and_published_again(published, tmp_path):
    done = command("heal", "ns/small", *HEAL, "--data", tmp_path / "t.txt", "--output", tmp_path / "healed")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "healed/report.json").read_text())
    assert report["stages"]["names"] == ["dense", "cut", "repaired", "healed"] and report["certificate"]["ok"]
    assert leftovers(tmp_path) == [] and loaded_by_a_stranger(tmp_path / "healed") == DEPTH - 2
    assert (tmp_path / "healed/repairs/patches.safetensors").is_file()
    pushed = command("push", tmp_path / "healed", "ns/small")
    assert pushed.returncode == 0, pushed.stderr
    made = published.repo("ns/small")
    stored = published.storage.read(made, "model.safetensors")
    assert stored == (tmp_path / "healed/model.safetensors").read_bytes()
    assert "repairs/patches.safetensors" in made.at("main").tree


def test_a_repo_is_measured_again_into_a_folder_if_it_is_a_result(published, tmp_path):
    head = published.repo("ns/small").head
    done = command("report", "ns/small", "--report-sequences", 3, "--data", tmp_path / "t.txt", "--output",
                   tmp_path / "again", "--format", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])["report"]
    assert report["text"]["all"]["tokens"] == 3 * 31 and report["stages"]["names"] == ["dense", "cut", "repaired"]
    assert json.loads((tmp_path / "again/report.json").read_text()) == report
    assert published.repo("ns/small").head == head
    # What is no result is refused.
    done = command("heal", "ns/base", *HEAL, "--data", tmp_path / "t.txt", "--output", tmp_path / "x")
    assert done.returncode == 2 and "not a result of hf_prune" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()
