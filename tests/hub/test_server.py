"""The stand-in itself: calls that hf_prune does not make but its users do, against the real client."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.hub.samples import dataset, model
from tests.hub.test_pull import folder

WIKITEXT = "wikitext-2-raw-v1"


def test_load_dataset(hub_server):
    from datasets import load_dataset

    hub_server.seed("Salesforce/wikitext", dataset(WIKITEXT, "wikitext-103-raw-v1"), "dataset")
    rows = load_dataset("Salesforce/wikitext", WIKITEXT, split="train")
    assert rows["text"][:2] == [f"{WIKITEXT} train 0", f"{WIKITEXT} train 1"] and len(rows) == 20
    assert not hub_server.seen("wikitext-103-raw-v1/.*parquet")


def test_tags_branches_and_pull_requests(hub_server):
    api, repo = HfApi(), hub_server.seed("ns/base", model())
    first = repo.head
    api.create_tag("ns/base", tag="v1")
    api.create_tag("ns/base", tag="v1", exist_ok=True)
    api.create_branch("ns/base", branch="next", revision="v1")
    made = api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ns/base", create_pr=True)
    refs = api.list_repo_refs("ns/base", include_pull_requests=True)
    assert [t.target_commit for t in refs.tags] == [first] and {b.name for b in refs.branches} == {"main", "next"}
    assert [p.target_commit for p in refs.pull_requests] == [made.oid]
    api.merge_pull_request("ns/base", made.pr_num)
    assert api.file_exists("ns/base", "x.txt") and not api.file_exists("ns/base", "x.txt", revision="v1")
    assert [c.commit_id for c in api.list_repo_commits("ns/base")][1] == first
    api.delete_branch("ns/base", branch="next")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ns/base", revision="next")


def test_settings_and_deletion(hub_server):
    api = HfApi()
    hub_server.seed("ns/base", model())
    api.update_repo_settings("ns/base", visibility="private", gated="manual")
    assert hub_server.repo("ns/base").private and api.model_info("ns/base").gated == "manual"
    with pytest.raises(HfHubHTTPError):
        HfApi(token="hf_guest_secret").delete_repo("ns/base")
    api.delete_repo("ns/base")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("ns/base")


def test_upload_folder_of_the_client(hub_server, tmp_path):
    api, files = HfApi(), model(shards=2)
    api.create_repo("ns/set", repo_type="dataset")
    path = folder(tmp_path / "m", files)
    api.upload_folder(repo_id="ns/set", folder_path=path, repo_type="dataset")
    back = Path(api.snapshot_download("ns/set", repo_type="dataset", revision="main"))
    assert {n: (back / n).read_bytes() for n in files} == files
    info = api.get_paths_info("ns/set", ["config.json", "absent"], repo_type="dataset")
    assert [(i.path, i.size) for i in info] == [("config.json", len(files["config.json"]))]


def test_contents_that_lie_about_their_name_are_refused(hub_server):
    from huggingface_hub.utils import get_session

    answer = get_session().put(f"{constants.ENDPOINT}/lfs/{'0' * 64}", content=b"x")
    assert answer.status_code == 400 and not hub_server.storage.path("0" * 64).exists()


def test_by_hand(tmp_path):
    path = folder(tmp_path / "base", model())
    command = [sys.executable, "-m", "tests.hub", "--root", tmp_path / "root", "--seed", f"ns/base={path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as server:
        try:
            assert server.stdout.readline().startswith("model ns/base@")
            settings = dict(pair.split("=", 1) for pair in server.stdout.readline().split())
            api = HfApi(endpoint=settings["HF_ENDPOINT"], token=settings["HF_TOKEN"])
            assert api.whoami()["name"] == "ns" and api.file_exists("ns/base", "config.json")
        finally:
            server.terminate()
            start = time.monotonic()
        assert server.wait(10) == 0 and time.monotonic() - start < 5
    assert os.environ["HF_ENDPOINT"] != settings["HF_ENDPOINT"]
