"""Access tokens are in nothing that is said, wherever they were typed or kept."""

import os
import subprocess
import sys

import pytest

from hf_prune.errors import SourceNotFound, scrub, scrubbed
from tests.runs import base, text

TOKEN = "hf_" + "aB3dE5" * 6
PLAIN = "s3cr3tw0rd"
"""A password that does not look like a token."""
SAID = {
    "an address": f"http://somebody:{PLAIN}@hub.local:1/x",
    "an address without a password": f"https://{PLAIN}@hub.local",
    "a token": f"the repo {TOKEN} is gone",
    "a token in quotes": f"'{TOKEN}'",
    "a token behind a colon": f"x:{TOKEN}@main",
    "a header": f"Authorization: Bearer {PLAIN}.abc",
    "one of another kind": "ghp_" + "aB3dE5" * 6,
    "one of a sign-in": "hf_oauth_eyJhbGciOi.J9eyJzdWIi-x",
}


@pytest.mark.parametrize("case", SAID)
def test_no_error_says_it(case):
    error = SourceNotFound(SAID[case])
    for secret in (TOKEN, PLAIN, "aB3dE5", "eyJhbG"):
        assert secret not in str(error) and secret not in repr(error)


def test_what_only_looks_a_little_like_it_is_left_alone():
    for said in ("hf_prune/cli", "hf_prune_my_long_repo_name", "https://huggingface.co/a@b", "ns/hf_model_of_mine_2024",
                 "the bearer of news", "a//b"):  # fmt: skip
        assert scrub(said) == said


@pytest.mark.parametrize("where", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "file"])
def test_the_own_login_is_known_wherever_it_is_kept(monkeypatch, tmp_path, where):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if where == "file":
        (tmp_path / "token").write_text(PLAIN)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    else:
        monkeypatch.setenv(where, PLAIN)
    assert PLAIN not in scrub(f"x {PLAIN} y")
    assert scrubbed({"a": [PLAIN, {"b": f"_{PLAIN}_"}], PLAIN: 1}) == {"a": ["***", {"b": "_***_"}], "***": 1}


def said_by(*arguments, **environment):
    """Everything that a command prints, in a process that has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-m", "hf_prune.cli", *map(str, arguments)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("debug", ["0", "1"])
@pytest.mark.parametrize(
    "case", ["endpoint of a plan", "endpoint of a push", "repo", "variant", "push target", "data", "started"]
)
def test_no_command_prints_it(tmp_path, case, debug):
    folder, words = base(tmp_path / "base"), text(tmp_path / "text.txt")
    nowhere = {"HF_ENDPOINT": f"http://somebody:{PLAIN}@127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    quick = ["--drop", "1", "--format", "json", "--output", tmp_path / "out", "--data", words]
    arguments, environment = {
        "endpoint of a plan": (["plan", "ns/base"], nowhere),
        "endpoint of a push": (["push", folder, "ns/x"], nowhere),
        "repo": (["plan", TOKEN], {}),
        "variant": (["plan", folder, "--method", "stitch", "--variant", f"ns/{TOKEN}"], {}),
        "push target": (["compress", folder, *quick, "--push-to", f"{TOKEN}/{TOKEN}"], {}),
        "data": (["compress", folder, *quick[:-1], f"https://somebody:{PLAIN}@hub.local/data.jsonl"], {}),
        "started": (["plan", folder, *quick[:4], "--commit-message", TOKEN, "--push-to", f"ns/{TOKEN}"], {}),
    }[case]
    # A client that waits between tries would make this slow.
    _, said = said_by(*arguments, HF_PRUNE_DEBUG=debug, **environment)
    assert said.strip() and TOKEN not in said and PLAIN not in said, said
