"""Who may read a source, and trouble on the way to it: waited out, or told in one sentence."""

import json
import os
import subprocess
import sys

import pytest

from hf_prune import errors
from hf_prune.hub import peek, pull
from hf_prune.hub.contents import INDEX
from tests.hub import Hub
from tests.hub.samples import model
from tests.hub.test_pull import Naps, folder, sentence

# access


def test_a_repo_that_is_not_there(hub_server):
    with pytest.raises(errors.SourceNotFound) as caught:
        pull("ns/nothing")
    assert "ns/nothing does not exist" in sentence(caught)


def test_a_revision_that_is_not_there(hub_server):
    hub_server.seed("ns/base", model())
    with pytest.raises(errors.SourceNotFound) as caught:
        pull("ns/base@v9")
    assert "'v9'" in sentence(caught)


@pytest.mark.parametrize(
    ("token", "says"), [("hf_guest_secret", "your login may not read it"), (None, "hf auth login")]
)
def test_a_private_repo_of_somebody_else(hub_server, monkeypatch, token, says):
    hub_server.seed("ns/base", model(), private=True)
    assert pull("ns/base").source.repo == "ns/base"
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(errors.SourceNotFound) as caught:
        pull("ns/base")
    assert says in sentence(caught)


@pytest.mark.parametrize("token", ["hf_guest_secret", None])
def test_a_gated_repo(hub_server, monkeypatch, token):
    hub_server.seed("ns/base", model(seed=11), gated=True)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(errors.SourceForbidden) as caught:
        pull("ns/base")
    assert "is gated" in sentence(caught) and f"{hub_server.endpoint}/ns/base" in str(caught.value)


def test_a_bad_token(hub_server, monkeypatch):
    hub_server.seed("ns/base", model())
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(errors.SourceForbidden) as caught:
        pull("ns/base")
    assert "does not accept the login" in sentence(caught) and "hf_expired" not in str(caught.value)


# trouble on the way


@pytest.mark.parametrize("place", ["GET /api/models/ns/base", "HEAD .*config.json", "/tree/", "GET /cdn/"])
@pytest.mark.parametrize("fault", ["status", "limit", "drop"])
def test_passing_trouble_is_waited_out(hub_server, place, fault):
    seeded = hub_server.seed("ns/base", model())
    faults = hub_server.faults
    faults.drop(place, 1) if fault == "drop" else faults.status(place, 429 if fault == "limit" else 503, 1)
    found = pull("ns/base", sleep=Naps())
    assert not any(f.times for f in faults.pending), "the fault never struck"
    assert found.source.revision == seeded.head
    assert (found.folder / "model.safetensors").read_bytes() == hub_server.storage.read(seeded, "model.safetensors")


def test_trouble_that_stays_is_told_after_five_tries(hub_server):
    hub_server.seed("ns/base", model())
    hub_server.faults.status("GET /api/models/ns/base", 500, 99)
    naps = Naps()
    with pytest.raises(errors.SourceOffline) as caught:
        pull("ns/base", sleep=naps)
    assert "answered 500" in sentence(caught) and naps == [0.5, 1, 2, 4]


def test_what_was_pulled_works_without_the_hub(hub_server):
    hub_server.seed("ns/base", model(shards=2))
    online, seen = pull("ns/base"), peek("ns/base")
    hub_server.faults.drop(".", 9999)
    assert pull("ns/base", sleep=Naps()) == online
    offline = peek(f"ns/base@{online.source.revision}", sleep=Naps())
    assert (offline.tensors, offline.source, offline.card) == (seen.tensors, seen.source, seen.card)
    with pytest.raises(errors.SourceOffline) as caught:
        pull("ns/other", sleep=Naps())
    assert "cannot be reached" in sentence(caught)


def test_offline_mode_says_so(hub_server):
    hub_server.seed("ns/base", model())
    code = "from hf_prune.hub import pull\ntry: pull('ns/base')\nexcept Exception as e: print(type(e).__name__, e)"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    said = "SourceOffline There is no folder ns/base here, and ns/base is not in the cache and HF_HUB_OFFLINE is set"
    assert ran.stdout.startswith(said)
    assert not hub_server.requests


@pytest.mark.parametrize("typed", ["{}", "{}@main", "{folder}+{}"])
@pytest.mark.parametrize("name", ["typo", "models/typo"])
@pytest.mark.parametrize("trouble", [None, 500, 401, "drop"])
@pytest.mark.parametrize("how", [peek, pull])
def test_a_mistyped_folder_is_said_not_to_be_here_before_what_the_hub_says(
    hub_server, tmp_path, monkeypatch, typed, name, trouble, how
):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "here", model())
    if trouble == "drop":
        hub_server.faults.drop(".", 9999)
    elif trouble:
        hub_server.faults.status("GET /api/models", trouble, 9999)
    with pytest.raises(errors.SourceError) as caught:
        how(typed.format(name, folder="here"), sleep=Naps())
    assert sentence(caught).startswith(f"There is no folder {name} here, and ")


def test_a_folder_that_is_here_is_not_said_to_be_missing(hub_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "models" / "base", model())
    with pytest.raises(errors.SourceNotFound) as caught:
        pull("models/base@main")
    assert "folder" not in sentence(caught)


def test_the_index_is_read_from_the_pinned_commit(hub_server: Hub):
    hub_server.seed("ns/base", model(shards=2))
    index = json.loads((pull("ns/base").folder / INDEX).read_text())
    assert len(set(index["weight_map"].values())) == 2
