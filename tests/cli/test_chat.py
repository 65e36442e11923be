"""`hf-prune chat` on a small result: what it prints, and whom it believes."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_prune.cli.chat import plain
from hf_prune.cli.main import app
from hf_prune.errors import HfPruneError
from hf_prune.results import open_pair
from tests.hostile.folders import change, result


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home):
    return result(home)


def chat(made, home, *words, **more):
    return CliRunner().invoke(app, ["chat", str(made), "--base", str(home / "base"), *words], **more)


def spoken(folder, text, tokens):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    return tokenizer.decode(
        model.generate(ids, do_sample=False, max_new_tokens=tokens)[0, ids.shape[1] :], skip_special_tokens=True
    )


def test_both_answer_as_stock_transformers_says(made, home):
    done = chat(made, home, "--prompt", "the cat", "--tokens", "9", "--temperature", "0", "--format", "json")
    assert done.exit_code == 0, done.output
    said = {line["model"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(said) == ["dense", "pruned"]
    assert said["dense"]["text"] == spoken(home / "base", "the cat", 9)
    assert said["pruned"]["text"] == spoken(made, "the cat", 9)


def test_the_dense_model_is_the_parent_and_the_other_is_the_result(made, home):
    dense, pruned = open_pair(made, str(home / "base"))
    assert (dense.model.config.num_hidden_layers, pruned.model.config.num_hidden_layers) == (6, 4)


def test_lines_on_stdin_are_answered_one_after_the_other(made, home):
    done = chat(made, home, "--tokens", "4", input="the cat\n\n/new\na dog\n/quit\nnever\n")
    assert done.exit_code == 0, done.output
    assert [line.partition(":")[0] for line in done.stdout.splitlines() if ": " in line] == ["dense", "pruned"] * 2


def test_what_cannot_be_answered_is_one_sentence(made, home, tmp_path):
    done = chat(made, home, "--prompt", "the cat " * 90)
    assert done.exit_code == 2 and "fewer --tokens" in done.stderr and "Traceback" not in done.output
    assert chat(made, home, "--prompt", " ").exit_code == 2
    alone = CliRunner().invoke(app, ["chat", str(made), "--prompt", "x"])
    assert alone.exit_code == 4 and "say where it is with" in alone.stderr and "--base" in alone.stderr
    (tmp_path / "empty").mkdir()
    assert "name what hf-prune wrote" in CliRunner().invoke(app, ["chat", str(tmp_path / "empty")]).stderr


def test_code_beside_the_weights_is_not_run(made, home, tmp_path):
    theirs = Path(shutil.copytree(made, tmp_path / "theirs"))
    (theirs / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change(
        theirs / "config.json",
        lambda raw: raw.update(
            model_type="odd", auto_map={n: "evil.X" for n in ("AutoConfig", "AutoModelForCausalLM")}
        ),
    )
    with pytest.raises(HfPruneError, match="cannot be loaded"):
        open_pair(theirs, str(home / "base"))
    assert not (tmp_path / "ran").exists()


def test_a_terminal_obeys_nothing_that_a_model_says():
    assert plain("a\x1b[2Jb\r\x07\u009bc\nd\te") == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\nd\te"
