"""A pickle can run code when it is read: one rule, for every place that reads weights."""

import ast
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_prune import hub
from hf_prune.assembly.formats import FORMATS
from hf_prune.data.tasks import bundled_tasks
from hf_prune.errors import BrokenCheckpoint, ReloadMismatch, UnsafeSource
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


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("value", ["ns/kernel", "ns/kernel@main:attention", {"": "ns/kernel"}])
def test_a_config_has_no_kernels_fetched(made, home, tmp_path, key, value):
    theirs = Path(shutil.copytree(made, tmp_path / "theirs"))
    change(theirs / "config.json", lambda raw: raw.update({key: value}))
    for opened in (lambda: list(report_folder(theirs, base=str(home / "base"), data=(str(home / "text.txt"),))),
                   lambda: open_pair(theirs, str(home / "base")), lambda: hub.peek(str(theirs))):  # fmt: skip
        with pytest.raises(UnsafeSource, match="ns/kernel"):
            opened()


def again(folder, home):
    """Report on it, with text and tasks of one's own."""
    given = {"data": (str(home / "text.txt"),), "tasks": tuple(map(str, bundled_tasks()[:1])), "task_items": 4}
    return list(report_folder(folder, base=str(home / "base"), **given))


@pytest.mark.parametrize("how", [lambda t: t * float("nan"), lambda t: t * 1.5])
def test_weights_that_the_blueprint_does_not_make_are_not_reported_as_if_they_were(made, home, tmp_path, how):
    theirs = Path(shutil.copytree(made, tmp_path / "theirs"))
    state = load_file(theirs / "model.safetensors")
    name = next(n for n in state if "down_proj" in n)
    save_file(state | {name: how(state[name])}, theirs / "model.safetensors", {"format": "pt"})
    card = (theirs / "README.md").read_bytes()
    with pytest.raises(ReloadMismatch, match="not those of its blueprint"):
        again(theirs, home)
    assert (theirs / "README.md").read_bytes() == card


@pytest.mark.parametrize("key, value", [("num_hidden_layers", "3"), ("dtype", "os.system"), ("hidden_act", "nothing")])
def test_a_config_that_transformers_refuses_is_a_sentence(made, home, tmp_path, key, value):
    theirs = Path(shutil.copytree(made, tmp_path / "theirs"))
    change(theirs / "config.json", lambda raw: raw.update({key: value}))
    with pytest.raises(BrokenCheckpoint, match="cannot be loaded"):
        open_pair(theirs, str(home / "base"))
    # A precision is not asked for by whoever loads in that of the search.
    with pytest.raises(BrokenCheckpoint, match="cannot be loaded") if key != "dtype" else nullcontext():
        again(theirs, home)
    assert not FORMATS["gguf"].suits(theirs)
