"""A pickle can run code when it is read: one rule, for every place that reads weights."""

import ast
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_prune.errors import UnsafeSource
from hf_prune.pipeline import Result
from hf_prune.results import open_pair, report_folder
from tests.hostile.folders import change, result

PACKAGE = Path(__file__).parents[2] / "hf_prune"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home):
    return result(home)


class Armed:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("where", ["model", "adapter"])
@pytest.mark.parametrize("armed", [False, True])
def test_a_result_of_pickles_is_not_read(made, home, tmp_path, where, armed):
    theirs = Path(shutil.copytree(made, tmp_path / "theirs"))
    state = Armed(tmp_path / "ran") if armed else load_file(theirs / "model.safetensors")
    if where == "model":
        (theirs / "model.safetensors").unlink()
        torch.save(state, theirs / "pytorch_model.bin")
    else:
        (theirs / "adapter").mkdir()
        (theirs / "adapter/adapter_config.json").write_text(
            '{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}'
        )
        torch.save(state, theirs / "adapter/adapter_model.bin")
    before = sorted(theirs.rglob("*"))
    with pytest.raises(UnsafeSource, match="pickle"):
        list(report_folder(theirs, base=str(home / "base"), data=(str(home / "text.txt"),)))
    with pytest.raises(UnsafeSource, match="pickle"):
        open_pair(theirs, str(home / "base"))
    if where == "model":
        with pytest.raises(OSError, match="safetensors"):
            Result(theirs, {}).model  # noqa: B018 - loads it
    assert sorted(theirs.rglob("*")) == before and not (tmp_path / "ran").exists()


def test_every_loading_of_a_model_says_whether_pickles_may_be_read():
    """A new one must pass `use_safetensors`, or take its tensors from our own reader."""
    silent = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("AutoModelForCausalLM.from_pretrained"):
                named = {k.arg for k in node.keywords}
                # `how` of the dequantisation holds it.
                if not named & {"use_safetensors"} and path.name != "dequantisation.py":
                    silent.append(f"{path.name}:{node.lineno}")
    assert silent == []


def test_figures_need_a_folder(made, home, tmp_path):
    """Found before the first measurement, not when they are drawn."""
    theirs = Path(shutil.copytree(made, tmp_path / "theirs"))
    shutil.rmtree(theirs / "figures", ignore_errors=True)
    (theirs / "figures").write_text("")
    change(theirs / "report.json", lambda raw: None)
    with pytest.raises(Exception, match="figures is a file"):
        list(report_folder(theirs, base=str(home / "base"), data=(str(home / "text.txt"),)))
