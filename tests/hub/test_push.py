"""Publishing: one commit, private by default, nothing twice, and every kind of trouble on the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_prune.errors import PublishError
from hf_prune.hub import PushResult, push
from hf_prune.hub.retries import TRIES
from tests.hub import Hub
from tests.hub.samples import model
from tests.hub.test_pull import Naps, folder, sentence

PICTURE = os.urandom(3000)
FILES = model() | {"figures/strip.png": PICTURE, "blueprint.json": b"{}", "empty.txt": b""}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return folder(tmp_path / "pruned", FILES)


def remote(hub: Hub, repo: str = "ns/small", revision: str = "main") -> dict[str, bytes]:
    found = hub.repo(repo)
    return {n: hub.storage.read(found, n, revision) for n in found.at(revision).tree if n != ".gitattributes"}


def heads(hub: Hub, repo: str = "ns/small") -> int:
    return len(hub.repo(repo).commits)


def test_one_private_commit_with_everything(hub_server, result):
    done = push(result, "ns/small", commit_message="Smaller")
    made = hub_server.repo("ns/small")
    assert done == PushResult(f"{hub_server.endpoint}/ns/small", made.head, True)
    assert remote(hub_server) == FILES and made.private and heads(hub_server) == 2
    assert made.commits[made.head].title == "Smaller"


def test_public_and_without_namespace(hub_server, result):
    assert push(result, "small", private=False).changed
    assert not hub_server.repo("ns/small").private


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_repeat_changes_nothing(hub_server, result, create_pr):
    first = push(result, "ns/small", create_pr=create_pr)
    before, sent = heads(hub_server), len(hub_server.seen("PUT |/commit/"))
    assert push(result, "ns/small", create_pr=create_pr) == PushResult(first.url, first.commit, False)
    assert heads(hub_server) == before and len(hub_server.seen("PUT |/commit/")) == sent
    assert len(hub_server.repo("ns/small").pulls) == create_pr


def test_only_what_changed_goes_over_the_wire(hub_server, result):
    push(result, "ns/small")
    (result / "README.md").write_text("---\nlicense: mit\n---\nnew")
    hub_server.requests.clear()
    assert push(result, "ns/small").changed and not hub_server.seen("PUT ")
    assert remote(hub_server)["README.md"].endswith(b"new")


def test_same_size_other_content_is_noticed(hub_server, result):
    push(result, "ns/small")
    for name in ("model.safetensors", "blueprint.json"):
        content = bytearray(FILES[name])
        content[-1] ^= 1
        (result / name).write_bytes(content)
        assert push(result, "ns/small").changed and remote(hub_server)[name] == content


def test_weights_of_an_earlier_push_do_not_linger(hub_server, result, tmp_path):
    push(result, "ns/small")
    hub_server.seed("ns/small", {"notes.txt": b"mine", "old/model.safetensors": b"kept"})
    sharded = folder(tmp_path / "sharded", model(shards=2))
    push(sharded, "ns/small")
    assert "model.safetensors" not in remote(hub_server)
    assert {"notes.txt", "old/model.safetensors", "figures/strip.png"} <= set(remote(hub_server))
    assert not push(sharded, "ns/small").changed


def test_a_branch_is_made_when_missing(hub_server, result):
    seeded = hub_server.seed("ns/small", {"main.txt": b"x"})
    done = push(result, "ns/small", revision="v2")
    assert done.url.endswith("/ns/small/tree/v2") and done.commit == seeded.branches["v2"]
    assert remote(hub_server, revision="v2") == FILES | {"main.txt": b"x"} and remote(hub_server) == {"main.txt": b"x"}
    assert not push(result, "ns/small", revision="v2").changed


@pytest.mark.parametrize("kind", ["tag", "commit"])
def test_tags_and_commits_take_no_files(hub_server, result, kind):
    seeded = hub_server.seed("ns/small", {"main.txt": b"x"})
    seeded.tags["v1"] = seeded.head
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small", revision="v1" if kind == "tag" else seeded.head)
    assert f"is a {kind} of ns/small" in sentence(caught)


def test_a_pull_request_leaves_main_alone(hub_server, result):
    seeded = hub_server.seed("ns/small", {"main.txt": b"x"})
    before = seeded.head
    done = push(result, "ns/small", create_pr=True)
    assert done.url == f"{hub_server.endpoint}/ns/small/discussions/1" and seeded.head == before
    assert done.commit == seeded.branches["refs/pr/1"]
    assert remote(hub_server, revision="refs/pr/1") == FILES | {"main.txt": b"x"}


def test_a_pull_request_to_the_repo_of_somebody_else(hub_server, result, monkeypatch):
    hub_server.seed("ns/small", {"main.txt": b"x"})
    monkeypatch.setenv("HF_TOKEN", "hf_guest_secret")
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small")
    assert "may not write to ns/small" in sentence(caught) and "--create-pr" in str(caught.value)
    assert push(result, "ns/small", create_pr=True).changed
    assert hub_server.repo("ns/small").pulls[0].author == "guest"


def test_a_pull_request_and_a_revision_exclude_each_other(hub_server, result):
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small", create_pr=True, revision="v2")
    assert "default branch" in sentence(caught) and not hub_server.requests


# trouble on the way

STEPS = ["repos/create", "GET /api/models/ns/small", "/tree/", "validate-yaml", "/preupload/", "/commit/"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", ["500", "429", "drop", "lost"])
def test_passing_trouble_is_waited_out(hub_server, result, step, fault):
    faults = hub_server.faults
    if fault.isdigit():
        faults.status(step, int(fault))
    else:
        (faults.drop if fault == "drop" else faults.lose_answer)(step)
    done = push(result, "ns/small", sleep=Naps())
    assert faults.pending[0].times == 0, "the fault never struck"
    assert done == PushResult(f"{hub_server.endpoint}/ns/small", hub_server.repo("ns/small").head, True)
    assert remote(hub_server) == FILES and heads(hub_server) == 2, "applied once"


@pytest.mark.parametrize("step", ["POST .*/discussions$", "GET .*/discussions", "whoami", "/commit/"])
@pytest.mark.parametrize("fault", ["status", "drop", "lose_answer"])
def test_trouble_opens_no_second_pull_request(hub_server, result, step, fault):
    hub_server.seed("ns/small", {"main.txt": b"x"})
    getattr(hub_server.faults, fault)(step)
    done = push(result, "ns/small", create_pr=True, sleep=Naps())
    found = hub_server.repo("ns/small")
    assert len(found.pulls) == 1 and heads(hub_server) == 3
    assert done == PushResult(f"{hub_server.endpoint}/ns/small/discussions/1", found.branches["refs/pr/1"], True)


def test_an_upload_that_broke_off_is_finished_by_the_next(hub_server, result):
    hub_server.faults.status("/commit/", 500, TRIES)
    naps = Naps()
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small", sleep=naps)
    assert f"failed {TRIES} times" in sentence(caught) and "push again" in str(caught.value)
    assert naps == [0.5, 1, 2, 4] and heads(hub_server) == 1, "nothing half published"
    hub_server.requests.clear()
    assert push(result, "ns/small").changed and remote(hub_server) == FILES
    assert not hub_server.seen("PUT "), "contents that arrived are not sent again"


def test_the_hub_says_how_long_to_wait(hub_server, result, monkeypatch, caplog):
    monkeypatch.setattr(hub_server.faults, "headers", (("Retry-After", "7"),))
    hub_server.faults.status("repos/create", 429)
    naps = Naps()
    push(result, "ns/small", sleep=naps)
    assert naps == [7] and "The Hub answered 429; asking again in 7 s." in caplog.text


def test_an_error_page_in_place_of_json_is_waited_out(hub_server, result, monkeypatch):
    monkeypatch.setattr(hub_server.faults, "message", b"<html>Bad Gateway</html>")
    hub_server.faults.status("validate-yaml", 502)
    assert push(result, "ns/small", sleep=Naps()).changed


def test_a_commit_in_between_is_not_overwritten(hub_server, result, monkeypatch):
    from huggingface_hub import HfApi

    seeded, commit = hub_server.seed("ns/small", {"README.md": b"old"}), HfApi.create_commit

    def late(self, *args, **kwargs):
        hub_server.seed("ns/small", {"README.md": b"theirs"})
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small", sleep=Naps())
    assert "Somebody changed ns/small" in sentence(caught)
    assert hub_server.storage.read(seeded, "README.md") == b"theirs"


def test_no_login_a_bad_login_and_a_foreign_namespace(hub_server, result, monkeypatch):
    for token, says in (("", "hf auth login"), ("hf_expired", "does not accept"), ("hf_guest_secret", "may not write")):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PublishError) as caught:
            push(result, "ns/small", sleep=Naps())
        assert says in sentence(caught) and "hf_expired" not in str(caught.value)


def test_a_name_without_namespace_needs_a_login(hub_server, result, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError) as caught:
        push(result, "small")
    assert "hf auth login" in sentence(caught)


def test_a_file_that_cannot_be_read(hub_server, result, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "secret.bin")

    monkeypatch.setattr("hf_prune.hub.publish.CommitOperationAdd", refuse)
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small")
    assert "secret.bin cannot be read (Permission denied)" in sentence(caught)


def test_a_hub_that_is_not_there(hub_server, result):
    hub_server.faults.drop(".", 999)
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small", sleep=Naps())
    assert "could not be reached" in sentence(caught)


def test_other_refusals_are_quoted_without_tokens(hub_server, result, monkeypatch):
    monkeypatch.setattr(hub_server.faults, "message", "token hf_ns_secret is odd\nsecond line")
    hub_server.faults.status("/commit/", 400)
    with pytest.raises(PublishError) as caught:
        push(result, "ns/small", sleep=Naps())
    assert "is odd second line" in sentence(caught)


# what may not be published


def test_links_out_of_the_folder_are_refused(hub_server, result, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "id").write_text("x")
    for target in (tmp_path / "secret" / "id", tmp_path / "secret", tmp_path / "nothing"):
        (result / "link").symlink_to(target)
        with pytest.raises(PublishError) as caught:
            push(result, "ns/small")
        assert "link" in sentence(caught) and not hub_server.requests
        (result / "link").unlink()


def test_a_link_inside_the_folder_is_its_file(hub_server, result):
    (result / "same.json").symlink_to(result / "blueprint.json")
    push(result, "ns/small")
    assert remote(hub_server)["same.json"] == b"{}"


def test_pipes_empty_and_missing_folders_are_refused(hub_server, result, tmp_path):
    os.mkfifo(result / "pipe")
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    (tmp_path / "empty" / ".git" / "config").write_text("x")
    for path, says in ((result, "plain file"), (tmp_path / "empty", "is empty"), (tmp_path / "no", "no folder")):
        with pytest.raises(PublishError) as caught:
            push(path, "ns/small")
        assert says in sentence(caught)
    assert not hub_server.requests


@pytest.mark.parametrize("name", ["a/b/c", "../x", "ns/..", "ns/a b", "https://x/y"])
def test_names_that_are_none(hub_server, result, name):
    with pytest.raises(PublishError) as caught:
        push(result, name)
    assert "is no name for a repo" in sentence(caught)


# the default client: Xet, and stock transformers


def client(hub: Hub, code: str, **env: str) -> str:
    """Run code in a fresh process that uploads through Xet; what it printed."""
    settings = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_XET"} | env
    ran = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_xet_a_lost_answer_and_a_repeat(hub_server, result):
    hub_server.faults.lose_answer("/commit/")
    code = "import sys, json\nfrom hf_prune.hub import push\nfrom dataclasses import asdict\n"
    code += "asks = [{}, {}, {'create_pr': True}, {'revision': 'v2'}, {'revision': 'v2'}]\n"
    code += f"where = dict(folder={str(result)!r}, repo_id='ns/small', sleep=lambda s: None)\n"
    code += "for ask in asks: print(json.dumps(asdict(push(**where, **ask))))"
    done = [json.loads(line) for line in client(hub_server, code).splitlines()]
    made = hub_server.repo("ns/small")
    assert [d["changed"] for d in done] == [True, False, False, False, False]
    assert {d["commit"] for d in done} == {made.head} and heads(hub_server) == 2
    assert remote(hub_server) == FILES
    assert hub_server.seen("xet-write-token") and not hub_server.seen("PUT ")


def test_xet_a_pull_request(hub_server, result):
    hub_server.seed("ns/small", {"main.txt": b"x"})
    hub_server.faults.status("/commit/", 500)
    code = "from hf_prune.hub import push\n"
    code += f"for _ in '12': print(push({str(result)!r}, 'ns/small', create_pr=True, sleep=lambda s: None).changed)"
    assert client(hub_server, code).split() == ["True", "False"]
    assert len(hub_server.repo("ns/small").pulls) == 1
    assert remote(hub_server, revision="refs/pr/1")["model.safetensors"] == FILES["model.safetensors"]


def test_what_was_pushed_loads_with_stock_transformers(hub_server, result):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    commit = push(result, "ns/small").commit
    loaded, info = AutoModelForCausalLM.from_pretrained("ns/small", revision=commit, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = AutoTokenizer.from_pretrained("ns/small", revision=commit)("hello", return_tensors="pt").input_ids
    assert loaded(ids).logits.shape == (1, 5, 512)
