"""A card names `ollama run` only where a GGUF file lies, and says whether a llama.cpp has read it."""

import json
import struct

import pytest
import yaml
from typer.testing import CliRunner

from hf_prune.assembly.gguf.stamp import BLANK, KEY, put_stamp, read_stamp
from hf_prune.cli.main import app
from hf_prune.errors import InvalidRecipe
from hf_prune.report.gguf_card import HEADING, apart, publish, tell_gguf
from tests.hub.samples import model
from tests.hub.test_pull import folder
from tests.hub.test_push import remote

CARD = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# Small\n\nText.\n"
CERTIFICATE = {"kind": "Q8_0", "tokens": {"ok": True, "texts": 128},
               "logits": {"ok": True, "kl": 0.0109, "same_top": 0.927}}  # fmt: skip


def stamped(path, certificate=None):
    """The beginning of a file as the package gguf writes it."""
    text = BLANK.encode()
    path.write_bytes(b"GGUF" + bytes(20) + KEY.encode() + struct.pack("<IQ", 8, len(text)) + text + b"the rest")
    if certificate:
        put_stamp(path, certificate)


@pytest.fixture
def result(tmp_path):
    made = folder(tmp_path / "small", model() | {"README.md": CARD, "LICENSE": b"terms"})
    stamped(made / "small-Q8_0.gguf", CERTIFICATE)
    return made


def test_a_certificate_is_put_into_the_file_and_read_back(tmp_path):
    stamped(tmp_path / "x.gguf")
    before = (tmp_path / "x.gguf").stat().st_size
    assert read_stamp(tmp_path / "x.gguf") == {}
    put_stamp(tmp_path / "x.gguf", CERTIFICATE)
    assert read_stamp(tmp_path / "x.gguf") == CERTIFICATE and (tmp_path / "x.gguf").stat().st_size == before
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + bytes(99))
    assert read_stamp(tmp_path / "y.gguf") is None


def test_the_card_says_how_to_run_the_file_and_who_has_read_it(result):
    tell_gguf(result, "ns/small")
    text = (result / "README.md").read_text()
    assert "ollama run hf.co/ns/small:Q8_0\n" in text and "certified: 128 hard texts" in text and "92.7%" in text
    tell_gguf(result, "ns/small")
    assert (result / "README.md").read_text() == text
    stamped(result / "small-Q8_0.gguf")
    tell_gguf(result, "ns/small")
    assert "**not certified**" in (result / "README.md").read_text()
    (result / "small-Q8_0.gguf").unlink()
    tell_gguf(result, "ns/small")
    assert (result / "README.md").read_bytes() == CARD


def test_a_section_in_the_middle_goes_and_the_others_stay(result):
    (result / "README.md").write_text(f"# Small\n\n{HEADING}\n\nold\n\n## Limits\n\nSome.\n")
    (result / "small-Q8_0.gguf").unlink()
    tell_gguf(result, "ns/small")
    assert (result / "README.md").read_text() == "# Small\n\n## Limits\n\nSome.\n"


def test_a_file_is_run_by_the_full_name_of_its_repo(result):
    with pytest.raises(InvalidRecipe, match="write NAMESPACE/small"):
        tell_gguf(result, "small")
    assert (result / "README.md").read_bytes() == CARD


def test_weights_and_files_go_into_one_repo(hub_server, result):
    said = CliRunner().invoke(app, ["push", str(result), "ns/small", "--format", "json"])
    assert said.exit_code == 0 and json.loads(said.output)["changed"]
    held = remote(hub_server)
    assert {"small-Q8_0.gguf", "model.safetensors"} <= set(held) and b"ollama run hf.co/ns/small:" in held["README.md"]
    assert not publish(result, "ns/small")[0].changed


def test_or_into_two_and_the_second_says_what_it_was_made_of(hub_server, result):
    first, second = publish(result, "ns/small", gguf_apart=True)
    assert first.changed and second.changed and second.url.endswith("ns/small-GGUF")
    weights, files = remote(hub_server), remote(hub_server, "ns/small-GGUF")
    assert "small-Q8_0.gguf" not in weights and b"ollama run hf.co/ns/small-GGUF:Q8_0" in weights["README.md"]
    assert set(files) == {"README.md", "LICENSE", "small-Q8_0.gguf"}
    head = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert head["base_model"] == "ns/small" and head["license"] == "apache-2.0"
    assert not any(done.changed for done in publish(result, "ns/small", gguf_apart=True))


def test_there_must_be_one(tmp_path):
    made = folder(tmp_path / "small", model())
    with pytest.raises(InvalidRecipe, match="holds no GGUF file; write one with: hf-prune export"):
        apart(made, "ns/small", tmp_path)
