"""Answers of a Hub that is broken, odd or has moved: contents not as they are listed, headers that no one writes."""

import json
import os
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from hf_prune import errors
from hf_prune.hub import check_login, fetch_result, peek, pull, push
from hf_prune.hub.retries import TRIES
from tests.hub.samples import adapter, model
from tests.hub.test_pull import Naps, folder, sentence
from tests.hub.test_push import FILES, heads, remote

WEIGHTS = "GET /cdn/"


@pytest.fixture
def result(tmp_path):
    return folder(tmp_path / "pruned", FILES)


# contents


def test_weights_that_came_broken_are_fetched_again(hub_server):
    seeded = hub_server.seed("ns/base", model())
    hub_server.faults.garble(WEIGHTS)
    found = pull("ns/base", sleep=Naps()).folder
    assert (found / "model.safetensors").read_bytes() == hub_server.storage.read(seeded, "model.safetensors")
    assert len(hub_server.seen(WEIGHTS)) == 2


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("base", "model.safetensors"),
        ("sharded", "model-00001-of-00002.safetensors"),
        ("lora", "adapter_model.safetensors"),
    ],
)
def test_weights_that_are_not_what_is_listed_are_neither_used_nor_kept(hub_server, repo, name):
    seeded = {
        n: hub_server.seed(f"ns/{n}", f)
        for n, f in (("base", model()), ("sharded", model(shards=2)), ("lora", adapter()))
    }
    key = seeded[repo].at("main").tree[name].key
    asked = "ns/base+ns/lora" if repo == "lora" else f"ns/{repo}"
    hub_server.faults.garble(key, 99)
    for _ in range(2):
        with pytest.raises(errors.BrokenCheckpoint) as caught:
            pull(asked, sleep=Naps())
        assert f"{name} of ns/{repo}" in sentence(caught)
        kept = Path(os.environ["HF_HOME"], "hub", f"models--ns--{repo}", "blobs")
        assert key not in {p.name for p in kept.iterdir()}
    hub_server.faults.clear()
    assert pull(asked, sleep=Naps())


@pytest.mark.parametrize("how", [peek, pull, fetch_result])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_small_files_are_what_is_listed_too(hub_server, how, name):
    hub_server.seed("ns/base", model(shards=2))
    hub_server.faults.garble(f"GET .*/{name}", 99)
    with pytest.raises(errors.BrokenCheckpoint) as caught:
        how("ns/base", sleep=Naps())
    assert name in sentence(caught)


def test_what_was_good_once_is_not_read_again_until_it_changes(hub_server):
    seeded = hub_server.seed("ns/base", model())
    weights = (pull("ns/base").folder / "model.safetensors").resolve()
    before = weights.stat()
    good = weights.read_bytes()
    # A change that no time and no size shows is seen only by reading.
    weights.write_bytes(bytes(len(good)))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pull("ns/base").folder == weights.parent.parent / "snapshots" / seeded.head
    os.utime(weights)
    pull("ns/base")
    assert (pull("ns/base").folder / "model.safetensors").read_bytes() == good


def test_a_cache_that_was_changed_is_not_believed_offline(hub_server):
    hub_server.seed("ns/base", model())
    weights = (pull("ns/base").folder / "model.safetensors").resolve()
    weights.write_bytes(bytes(weights.stat().st_size))
    hub_server.faults.drop(".", 9999)
    with pytest.raises(errors.BrokenCheckpoint) as caught:
        pull("ns/base", sleep=Naps())
    assert "model.safetensors" in sentence(caught) and not weights.exists()


def test_a_file_of_another_length_than_listed(hub_server):
    seeded = hub_server.seed("ns/base", model())
    content = hub_server.storage.path(seeded.at("main").tree["model.safetensors"].key)
    before = content.read_bytes()
    content.write_bytes(before[:-100])
    try:
        with pytest.raises(errors.SourceError) as caught:
            pull("ns/base", sleep=Naps())
    finally:
        content.write_bytes(before)
    assert "cannot be understood" in sentence(caught) and "cannot be reached" not in str(caught.value)


# lists and headers


@pytest.mark.parametrize("key", ["id", "sha", "siblings", "cardData", "tags", "private", "gated", "lastModified"])
@pytest.mark.parametrize("value", [None, 5, "x", [], {}, [5], [{}], {"a": [5]}, "absent"])
def test_what_is_missing_in_a_list_is_told(hub_server, monkeypatch, key, value):
    hub_server.seed("ns/base", model())
    said = {"id": "ns/base", "_id": "1", "sha": "a" * 40, "siblings": [], "tags": [], "private": False} | {key: value}
    body = json.dumps({k: v for k, v in said.items() if v != "absent"}).encode()
    monkeypatch.setattr(hub_server.faults, "message", body)
    hub_server.faults.status("GET /api/models/ns/base", 200, 99)
    with pytest.raises(errors.SourceError) as caught:
        pull("ns/base", sleep=Naps())
    assert "ns/base" in sentence(caught) and len(str(caught.value)) < 400
    if key == "siblings" and value in (None, "absent"):
        assert "cannot be understood" in str(caught.value)


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b'"x"', b"<html>", b"", b'{"errors": 5}', b"\xff" * 9])
@pytest.mark.parametrize("code", [200, 403, 500])
def test_answers_of_no_shape_are_told(hub_server, result, monkeypatch, body, code):
    hub_server.seed("ns/small", model())
    monkeypatch.setattr(hub_server.faults, "message", body)
    hub_server.faults.status(".", code, 999)
    with pytest.raises(errors.SourceError) as caught:
        pull("ns/small", sleep=Naps())
    assert "ns/small" in sentence(caught)
    with pytest.raises(errors.PublishError) as caught:
        push(result, "ns/small", sleep=Naps())
    assert "ns/small" in sentence(caught)


@pytest.mark.parametrize("bad", ["../../up.json", "/etc/passwd", "a//b.json", "..\\x.json", "C:/x.json", ""])
def test_files_that_have_no_place_in_a_repo_are_none_of_it(hub_server, monkeypatch, bad):
    hub_server.seed("ns/base", model())
    rows = [{"rfilename": bad, "size": 3, "blobId": "a" * 40}]
    body = json.dumps({"id": "ns/base", "sha": "a" * 40, "siblings": rows}).encode()
    monkeypatch.setattr(hub_server.faults, "message", body)
    hub_server.faults.status("GET /api/models/ns/base", 200, 99)
    with pytest.raises(errors.SourceError) as caught:
        fetch_result("ns/base", sleep=Naps())
    assert "is empty" in sentence(caught)


ODD = [
    "\u00b2",
    "-1",
    "nan",
    "inf",
    "1e3",
    "soon",
    "",
    " ",
    "0x10",
    "1.5.2",
    "Wed, 99 Foo 2026 99:99:99 GMT",
    "\u00d9\u00a3",
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", ["GET /api/models/ns/base", "/tree/", WEIGHTS])
def test_an_odd_retry_after_is_not_heard(hub_server, monkeypatch, place, odd):
    hub_server.seed("ns/base", model())
    monkeypatch.setattr(hub_server.faults, "headers", (("Retry-After", odd),))
    hub_server.faults.status(place, 429)
    naps = Naps()
    assert pull("ns/base", sleep=naps)
    assert naps == [0.5]


def test_a_date_and_a_rate_limit_are_heard(hub_server, monkeypatch):
    hub_server.seed("ns/base", model())
    for name, value, least in (
        ("Retry-After", formatdate(time.time() + 60, usegmt=True), 55),
        ("RateLimit", '"api";r=0;t=55', 55),
    ):
        monkeypatch.setattr(hub_server.faults, "headers", ((name, value),))
        hub_server.faults.status("GET /api/models/ns/base", 429)
        naps = Naps()
        pull("ns/base", sleep=naps)
        assert len(naps) == 1 and least <= naps[0] <= 60, naps


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Retry-After", str(10**9)),
        ("Retry-After", "9" * 6000),
        ("Retry-After", formatdate(time.time() + 86400 * 365, usegmt=True)),
        ("RateLimit", '"api";r=0;t=3600'),
        ("RateLimit", f'"api";r=0;t={"9" * 4000}'),
    ],
    ids=["seconds", "many-digits", "a-date", "rate-limit", "rate-limit-of-many-digits"],
)
@pytest.mark.parametrize("place", ["GET /api/models/ns/", "PUT /lfs/", "/preupload/", "GET /cdn/"])
def test_nobody_waits_for_days(hub_server, result, monkeypatch, name, value, place):
    hub_server.seed("ns/base", model())
    monkeypatch.setattr(hub_server.faults, "headers", ((name, value),))
    hub_server.faults.status(place, 429, 999)
    naps, began = Naps(), time.monotonic()
    with pytest.raises(errors.HfPruneError) as caught:
        pull("ns/base", sleep=naps) if place.endswith("cdn/") else push(result, "ns/small", sleep=naps)
    assert sum(naps) <= 10 and time.monotonic() - began < 10
    if len(value) < 4000 or name == "Retry-After":
        assert "asks to wait" in sentence(caught)


@pytest.mark.parametrize("fault", ["status", "drop"])
@pytest.mark.parametrize(
    ("place", "how"),
    [("PUT /lfs/", "push"), ("/preupload/", "push"), ("objects/batch", "push"),
     ("/tree/", "push"), ("/tree/", "pull"), (WEIGHTS, "pull"), ("HEAD ", "pull")],
)  # fmt: skip
def test_what_always_fails_is_told_once_and_soon(hub_server, result, tmp_path, caplog, place, how, fault):
    hub_server.seed("ns/base", model())
    changed = folder(tmp_path / "changed", model(seed=os.getpid()))
    getattr(hub_server.faults, fault)(place, **{"times": 9999})
    naps, began = Naps(), time.monotonic()
    with pytest.raises(errors.HfPruneError) as caught:
        pull("ns/base", sleep=naps) if how == "pull" else push(changed, "ns/small", sleep=naps)
    assert sentence(caught) and sum(naps) + time.monotonic() - began < 20
    # The client asks twice for what it has not in its cache.
    assert TRIES <= len(hub_server.seen(place)) <= 2 * TRIES
    # Our own words say how long is waited; the client's are noise.
    ours = "hf_prune.hub.retries"
    assert not [r for r in caplog.records if r.levelname == "WARNING" and r.name != ours], "noise"


DATASET = """
from hf_prune.hub import watch_session
from hf_prune.data.hub_datasets import explained, split_names
watch_session()
try:
    split_names("ns/texts", "", "hf://ns/texts")
except Exception as e:
    print(type(e).__name__, e)
"""


def test_no_data_set_makes_anybody_wait_for_days(hub_server, monkeypatch):
    hub_server.seed("ns/texts", {"data.jsonl": b'{"text": "a"}\n'}, "dataset")
    monkeypatch.setattr(hub_server.faults, "headers", (("Retry-After", str(10**9)),))
    hub_server.faults.status("datasets/ns/texts", 429, 9999)
    ran = subprocess.run([sys.executable, "-c", DATASET], env=os.environ, capture_output=True, text=True, timeout=120)
    assert "Invalid" in ran.stdout or "Offline" in ran.stdout, ran.stderr


# another name


def test_a_renamed_model_is_pulled_by_its_old_name(hub_server):
    hub_server.seed("ns/old", model())
    made = hub_server.rename("ns/old", "ns/new")
    found = pull("ns/old")
    assert found.source.revision == made.head and peek("ns/old").source == found.source
    assert (found.folder / "model.safetensors").read_bytes() == hub_server.storage.read(made, "model.safetensors")
    assert hub_server.seen("/api/models/ns/old") and hub_server.seen("/ns/old/resolve/")


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_renamed_model_is_pushed_to_by_its_old_name(hub_server, result, create_pr):
    hub_server.seed("ns/old", {"notes.txt": b"mine"})
    hub_server.rename("ns/old", "ns/new")
    check_login("ns/old")
    done = push(result, "ns/old", create_pr=create_pr)
    assert done.url.startswith(f"{hub_server.endpoint}/ns/new")
    revision = "refs/pr/1" if create_pr else "main"
    assert remote(hub_server, "ns/new", revision) == FILES | {"notes.txt": b"mine"}
    assert ("model", "ns/old") not in hub_server.storage.repos
    before = heads(hub_server, "ns/new")
    assert not push(result, "ns/old", create_pr=create_pr).changed and heads(hub_server, "ns/new") == before


def test_a_model_that_went_to_somebody_else_is_not_written(hub_server, result):
    hub_server.seed("ns/old", {"notes.txt": b"mine"})
    hub_server.rename("ns/old", "guest/new")
    with pytest.raises(errors.PublishError) as caught:
        push(result, "ns/old", sleep=Naps())
    assert "guest/new" in sentence(caught)
    with pytest.raises(errors.PublishError) as caught:
        check_login("ns/old", sleep=Naps())
    assert "guest" in sentence(caught)


def test_names_that_lead_round_in_a_circle(hub_server, result):
    hub_server.renamed |= {"ns/a": "ns/b", "ns/b": "ns/a"}
    with pytest.raises(errors.SourceError) as caught:
        pull("ns/a", sleep=Naps())
    assert "ns/a" in sentence(caught)
    with pytest.raises(errors.PublishError) as caught:
        push(result, "ns/a", sleep=Naps())
    assert "ns/a" in sentence(caught)
