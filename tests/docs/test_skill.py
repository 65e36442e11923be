"""SKILL.md is a skill after the agentskills convention, and what it says works, from top to bottom."""

import json
import re

import pytest
import yaml

from tests import runs as small
from tests.docs.commands import ROOT, blocks, lines

SKILL = ROOT / "SKILL.md"


def test_it_is_found_by_its_head():
    head = yaml.safe_load(SKILL.read_text(encoding="utf-8").split("---\n")[1])
    assert set(head) <= {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", head["name"]) and len(head["name"]) <= 64
    assert 0 < len(head["description"]) <= 1024 and len(head["compatibility"]) <= 500
    assert len(SKILL.read_text(encoding="utf-8").splitlines()) < 500


@pytest.mark.slow
def test_its_commands_run_one_after_the_other(tmp_path, hub_server):
    base, text = small.base(tmp_path / "base"), tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": p}) + "\n" for p in small.prose()))
    places = {"BASE": base, "FILE.jsonl": text, "namespace/name": "ns/name"}
    places |= {name: tmp_path / name for name in ("small", "again")}
    found = [words for language, block in blocks(SKILL) if language == "bash" for words in lines(block)]
    assert [words[0] for words in found] == ["plan", "compress", "report", "export", "push"]
    for words in found:
        short = [*small.FLAGS, "--data", text] if words[0] in ("plan", "compress") else []
        done = small.command(*(places.get(word, word) for word in words), *short)
        assert done.returncode == 0, (words, done.stderr)
        if words[0] == "compress":
            events = [json.loads(line) for line in done.stdout.splitlines()]
            assert events[-1]["event"] == "Finished" and "text" in events[-1]["report"]
    assert {"model.safetensors", "README.md"} <= set(hub_server.repo("ns/name").at("main").tree)
    assert any(name.endswith(".gguf") for name in hub_server.repo("ns/name").at("main").tree)
