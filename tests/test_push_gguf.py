"""GGUF files in one go: refused before anything long, else written, certified and published with the result."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from hf_prune.assembly.gguf.llama_cpp import VARIABLE
from hf_prune.assembly.gguf.stamp import read_stamp
from hf_prune.data.bundled import bundled_folder
from hf_prune.errors import HfPruneError, InvalidRecipe, UnsupportedArchitecture
from hf_prune.events import Exported, Pushed, Stage
from hf_prune.hub import peek
from hf_prune.pipeline import compress
from hf_prune.planning import plan
from hf_prune.recipe import Recipe
from tests.llama_cpp import llama_cpp
from tests.mixtures import saved
from tests.runs import base, recipe

CUT = {"drop": ("1", "3"), "baselines": ()}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("apart", [False, True])
def test_a_run_writes_them_and_publishes_them_once(tmp_path, hub_server, apart):
    wanted = recipe(tmp_path, **CUT, push_to="ns/small", gguf=("Q8_0", "f16", "q8_0"), gguf_apart=apart)
    told = list(compress(wanted))
    written = [e for e in told if isinstance(e, Exported)]
    names = ["small-Q8_0.gguf", "small-F16.gguf"]
    assert [e.path for e in written] == [str(tmp_path / "small" / name) for name in names]
    assert all(not e.certified and "UNCERTIFIED" in e.said for e in written)
    weights = hub_server.repo("ns/small")
    beside = hub_server.repo("ns/small-GGUF") if apart else weights
    here, there = ({*repo.at("main").tree} for repo in (weights, beside))
    assert {*names} <= there and "model.safetensors" in here and here.isdisjoint(names) is apart
    again = list(compress(wanted))
    assert not [e for e in again if isinstance(e, Exported)]
    assert [e.changed for e in again if isinstance(e, Pushed)] == [False] * (1 + apart)
    report = json.loads((tmp_path / "small/report.json").read_text())
    assert "gguf" not in report["command"] and not {"gguf", "gguf_apart"} & set(report["recipe"])


REFUSED = {
    "no architecture": ({"base": "gpt_neox"}, "", UnsupportedArchitecture, "gpt_neox is not written as GGUF"),
    "widths of their own": (
        {"base": "gemma3_text", "method": "width", "ratio": 0.3},
        "",
        UnsupportedArchitecture,
        "gemma3_text whose layers have widths of their own.*--pad",
    ),
    "experts of every layer by themselves": (
        {"base": "mixtral", "method": "experts", "per_layer": True},
        "",
        UnsupportedArchitecture,
        r"mixtral whose layers have widths of their own; leave out --gguf\.",
    ),
    "needs a llama.cpp": ({"gguf": "q4_k_m"}, "", InvalidRecipe, "--gguf q4_k_m is done by llama.cpp, and none is"),
    "no such type": ({"gguf": "q9_0"}, "", InvalidRecipe, "a type of GGUF is f32"),
    "a llama.cpp that is none": ({}, "{home}", InvalidRecipe, "holds no libllama"),
    "no namespace": ({"push_to": "small"}, "", InvalidRecipe, "write NAMESPACE/small"),
    "a training apart": ({"heal": "2k", "keep_adapter": True}, "", InvalidRecipe, "keep_adapter leaves the training"),
    "apart from nothing": ({"gguf": (), "gguf_apart": True}, "", InvalidRecipe, "name their types"),
}


def other(folder, family):
    """A base of another family."""
    base(folder)
    (folder / "model.safetensors").unlink()
    config = AutoConfig.for_model(family, vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=6,
                                  num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16,
                                  pad_token_id=0)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_written_is_told_by_plan_and_run_before_anything_is_pulled(tmp_path, monkeypatch, case):
    changes, named, error, why = REFUSED[case]
    changes = {"ratio": 0.3, "gguf": "q8_0", **changes}
    if family := changes.pop("base", None):
        changes["base"] = str(other(tmp_path / "base", family))
    if named:
        monkeypatch.setenv(VARIABLE, named.format(home=tmp_path))
    with pytest.raises(error, match=why):
        wanted = recipe(tmp_path, **changes)
        plan(wanted, peek(wanted.base))
    told = []
    with pytest.raises(error, match=why):
        for event in compress(recipe(tmp_path, **changes)):
            told.append(event)
    assert [e.name for e in told] in ([], ["pull"]) and not (tmp_path / "small.run").exists()


def test_a_plan_says_what_the_files_take_and_that_nobody_has_read_them(tmp_path):
    plain, asked = recipe(tmp_path, **CUT), recipe(tmp_path, **CUT, gguf=("q8_0", "f32"))
    without, with_files = (plan(r, peek(r.base)) for r in (plain, asked))
    assert with_files.disk_bytes - without.disk_bytes == pytest.approx((34 / 32 + 4) * with_files.result_parameters, 1)
    assert [n for n in with_files.notes if "UNCERTIFIED" in n] and not [n for n in without.notes if "GGUF" in n]


def test_a_tokenizer_without_words_there_is_told_before_the_base_is_measured(tmp_path):
    folder = base(tmp_path / "base")
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    told = []
    with pytest.raises(UnsupportedArchitecture, match="no words for this tokenizer"):
        for event in compress(recipe(tmp_path, **CUT, base=str(folder), gguf="q8_0")):
            told.append(event)
    assert [e.name for e in told if isinstance(e, Stage)] == ["pull"]


def test_digests_do_not_ask_for_files_beside_the_weights():
    one = Recipe.of(base="ns/x", ratio=0.25)
    other = one.replace(gguf="q8_0", gguf_apart=True, push_to="me/small")
    assert (one.digest, one.search_digest) == (other.digest, other.search_digest)
    with pytest.raises(HfPruneError):
        one.replace(gguf_apart=True)


@pytest.mark.slow
def test_a_llama_cpp_that_the_environment_names_certifies_them(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(llama_cpp()))
    wanted = recipe(tmp_path, **CUT, base=str(bundled_folder("examples/demo") / "stories260K"), gguf="q8_0")
    (done,) = [e for e in compress(wanted) if isinstance(e, Exported)]
    assert done.certified and "Certified with llama.cpp (llama)" in done.said
    assert read_stamp(tmp_path / "small/small-Q8_0.gguf")["kind"] == "Q8_0"


@pytest.mark.slow
def test_fewer_experts_are_the_same_there(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(llama_cpp()))
    saved("mixtral", tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_folder("examples/demo") / "stories260K" / name, tmp_path / "base")
    wanted = recipe(tmp_path, base=str(tmp_path / "base"), method="experts", ratio=0.3, evaluations=6, baselines=(),
                    gguf="f32")  # fmt: skip
    (done,) = [e for e in compress(wanted) if isinstance(e, Exported)]
    fields = json.loads((tmp_path / "small/config.json").read_text())
    assert done.certified and fields["num_local_experts"] < 8
