"""The app as it is served: what programs are told when something is wrong, and what nobody needs is closed."""

import json
import os
import subprocess
import sys

import gradio as gr
import httpx
import pytest

from hf_prune import hub
from hf_prune.app.layout import open_here
from tests.hub import samples


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    yield open_here(tmp_path_factory.mktemp("runs"), wait=False)
    gr.close_all()


def called(address, name, *data):
    """The last event of a call of a tool."""
    begun = httpx.post(f"{address}gradio_api/call/{name}", json={"data": list(data)}, timeout=60)
    events = httpx.get(f"{address}gradio_api/call/{name}/{begun.json()['event_id']}", timeout=120).text
    last = events.strip().split("\n\n")[-1]
    kind, _, said = last.partition("\n")
    return kind.removeprefix("event: "), json.loads(said.removeprefix("data: "))


@pytest.mark.parametrize("tool", ["plan", "compress"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("ns/none", "collapse", 0.25), "does not exist"),
        (("../etc", "collapse", 0.25), "neither a folder here nor a repo name"),
        (("ns/model", "magic", 0.25), "no method 'magic'"),
        (("ns/model", "collapse", 7.0), "between 1 and 90 percent"),
        (("ns/model", "stitch", 0.25), "variant"),
        (("ns/pickled", "collapse", 0.25), "pickle"),
    ],
)
def test_programs_are_told_what_is_wrong(address, hub_server, tool, asked, words):
    hub_server.seed("ns/model", samples.model())
    files = samples.model()
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub_server.seed("ns/pickled", files)
    kind, said = called(address, tool, *asked)
    assert kind == "error" and words in said["error"], said


def test_any_other_error_has_words_too(address, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("of /home/somebody/x")

    monkeypatch.setattr("hf_prune.app.plans.summary", broken)
    kind, said = called(address, "plan", "ns/model", "collapse", 0.25)
    assert kind == "error" and "ZeroDivisionError" in said["error"] and "/home" not in said["error"]


@pytest.mark.parametrize("place", ["upload", "upload/", "process_recording", "mcp/upload"])
def test_nobody_uploads_files(address, place):
    answer = httpx.post(f"{address}gradio_api/{place}", files={"files": ("x", b"y" * 1000)}, timeout=30)
    assert answer.status_code == 404
    assert httpx.get(f"{address}gradio_api/upload_progress?upload_id=1", timeout=30).status_code == 404


FORGETFUL = """
import os, sys
from pathlib import Path
import huggingface_hub
from hf_prune.hub import forget_login
assert huggingface_hub.get_token() == "hf_of_the_owner", huggingface_hub.get_token()
forget_login()
assert huggingface_hub.get_token() is None
import subprocess
code = "import huggingface_hub; assert huggingface_hub.get_token() is None"
subprocess.run([sys.executable, "-c", code], check=True)
"""


@pytest.mark.parametrize("where", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME"])
def test_a_space_forgets_its_login_wherever_it_is_kept(tmp_path, where):
    (tmp_path / "token").write_text("hf_of_the_owner")
    value = {"HF_TOKEN_PATH": tmp_path / "token", "HF_HOME": tmp_path}.get(where, "hf_of_the_owner")
    environment = {k: v for k, v in os.environ.items() if "TOKEN" not in k} | {where: str(value)}
    subprocess.run([sys.executable, "-c", FORGETFUL], env=environment, check=True)


def test_what_serves_strangers_forgets_it_first(tmp_path, monkeypatch):
    monkeypatch.setattr(gr.utils, "get_space", lambda: "ns/app")
    before = []
    monkeypatch.setattr("hf_prune.app.layout.forget_login", lambda: before.append(True))
    monkeypatch.setattr("hf_prune.app.layout.build", lambda do: (_ for _ in ()).throw(KeyError(str(before))))
    with pytest.raises(KeyError, match="True"):
        open_here(tmp_path, wait=False)
    assert hub.forget_login
