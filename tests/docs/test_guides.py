"""The guides from top to bottom: every command of theirs is run, in order, on tiny models under the names they use."""

import contextlib
import io
import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_prune.cli.main import app
from tests.assembly.test_gguf import TOKENIZERS, save_tokenizer
from tests.docs.commands import ROOT, blocks, lines
from tests.hub.samples import model
from tests.runs import FLAGS, prose

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
TUNES = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-Coder-0.5B")
BASES = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B", *TUNES)
ELSEWHERE = ("demo", "ui")
"""Commands with tests of their own: long ones, and those that do not end."""
LEAST = {"chat": ["--tokens", "4"], "report": FLAGS[:2] + ["--report-sequences", "4", "--task-items", "4"]}
LEAST["heal"] = [*LEAST["report"], "--selection-sequences", "2", "--heal-batch", "2"]
LEAST["compress"] = LEAST["plan"] = FLAGS
"""What a reader has more patience for."""


@pytest.fixture
def reader(hub_server, tmp_path, monkeypatch):
    """Somebody with an account and some text, in a folder of their own."""
    made, folder = TOKENIZERS["smollm"](), tmp_path / "tokenizer"
    save_tokenizer(folder, made)
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    for seed, name in enumerate(BASES):
        hub_server.seed(name, {**model(seed=seed, num_hidden_layers=6, vocab_size=made.get_vocab_size()), **own})
    hub_server.seed("team/small", {})
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for number, name in enumerate(("my-text", "my-code")):
        Path(f"{name}.txt").write_text("\n\n".join(prose(number)))
    for split in ("search", "report"):
        items = [{"context": f"{split} {i}: the cat", "choices": [" sat", " and"], "answer": i % 2} for i in range(12)]
        Path(f"my-questions.{split}.jsonl").write_text("\n".join(map(json.dumps, items)))
    return home


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_command_of_a_guide_works(guide, reader):
    done = 0
    for language, text in blocks(guide):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(text, {})
        for words in lines(text) if language == "bash" else ():
            if words[0] not in ELSEWHERE:
                words = ["cpu" if word == "cuda" else word for word in words]
                said = CliRunner().invoke(app, [*words, *LEAST.get(words[0], [])])
                assert said.exit_code == 0, f"{shlex.join(words)}: {said.output} {said.exception!r}"
                done += 1
    assert done > 2
