"""The base check: what was read of a source is what a fresh process loads, or the tensor that differs is named."""

import pytest
import torch

from hf_prune.assembly import base_check
from hf_prune.assembly.base_check import check_base, compare_tensors, stock_model
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import LayerSpec, Part, Source
from hf_prune.errors import Misread
from hf_prune.models.checkpoint import Adapter, Checkpoint
from hf_prune.models.parent import Parent
from tests.foreign.builders import build, put, restate, stored
from tests.runs import adapter

FULL, SHORT = torch.float32, torch.bfloat16
DOWN = "model.layers.3.mlp.down_proj.weight"
PLAIN = {"attention_bias": False, "mlp_bias": False}


def opened(folder, **how):
    return Parent.open(Source(folder.name, "tiny"), folder, **how)


def tokens(rows=2, length=16):
    return torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return opened(build(tmp_path_factory.mktemp("home") / "llama"))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "gpt2"])
def test_a_base_that_is_read_right_passes(tmp_path, family, whole):
    parent = opened(build(tmp_path / family, family, SHORT, shards=2))
    for dtype in (FULL, SHORT):
        said = check_base(parent, stock_model(parent, dtype), tokens(), whole=whole)
        assert said["ok"] and said["without_hf_prune"] and said["dtype"] == str(dtype).removeprefix("torch.")
        # Two processes may have different numbers of threads, which add up in another order.
        assert said["max_logit_difference"] <= (1e-5 if dtype == FULL else said["tolerance"])
        assert said["tensors"] == len(parent.shapes)
        assert said["read"] == ("whole" if whole else "layer by layer")


@pytest.mark.parametrize("name", [DOWN, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_a_misread_tensor_is_named(llama, monkeypatch, name):
    read = Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, n: read(self, n) + (1e-6 if n == name else 0))
    with pytest.raises(Misread, match=f"llama@tiny was not read as stock transformers loads it: {name} differs"):
        check_base(llama, stock_model(llama, FULL), tokens())


def test_a_head_that_was_thrown_away_is_named(tmp_path):
    folder = build(tmp_path / "base", tie_word_embeddings=True)
    tied = opened(folder)
    restate(folder, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"] * 1.01}))
    with pytest.raises(Misread, match="lm_head.weight differs"):
        compare_tensors(tied, stock_model(tied, FULL))
    again = opened(folder)
    assert check_base(again, stock_model(again, FULL), tokens())["notes"]


def test_a_fresh_process_that_loads_another_model_is_named(llama, monkeypatch):
    model = stock_model(llama, FULL)
    model.get_submodule(DOWN.removesuffix(".weight")).weight.mul_(1.5)
    monkeypatch.setattr(base_check, "compare_tensors", lambda *_: 0)
    with pytest.raises(Misread, match=f"{DOWN} differs"):
        check_base(llama, model, tokens())


def test_what_transformers_would_make_up_is_named(tmp_path):
    folder = build(tmp_path / "base")
    parent = opened(folder)
    restate(folder, put(model__norm__weight=None))
    with pytest.raises(Misread, match="incomplete: .*model.norm.weight"):
        stock_model(parent, FULL)


@pytest.mark.parametrize("dtype", [FULL, SHORT, torch.float16])
def test_an_adapter_is_merged_as_peft_does(tmp_path, monkeypatch, dtype):
    folder = build(tmp_path / "base", dtype=dtype, **PLAIN)
    parent = opened(folder, adapter=adapter(tmp_path / "lora", folder))
    for search in {FULL, dtype}:
        said = check_base(parent, stock_model(parent, search), tokens())
        assert said["read"] == "whole" and said["max_logit_difference"] <= said["tolerance"]
    assert check_base(parent, stock_model(parent, dtype), tokens(), whole=False)["read"] == "tensors"
    monkeypatch.setattr(Adapter, "apply", lambda self, name, weight: weight)
    with pytest.raises(Misread, match=r"base@tiny was not read .* model.layers.0..*(q_proj|down_proj).weight differs"):
        check_base(parent, stock_model(parent, dtype), tokens())


def test_an_adapter_beside_float32_norms_passes(tmp_path):
    folder = restate(build(tmp_path / "base", dtype=SHORT, **PLAIN), stored(("norm", FULL), ("3.mlp", FULL)))
    parent = opened(folder, adapter=adapter(tmp_path / "lora", folder))
    assert check_base(parent, stock_model(parent, SHORT), tokens())["ok"]


def test_numbers_that_overflow_alike_are_alike(tmp_path):
    folder = restate(build(tmp_path / "base", dtype=torch.float16), lambda s: s[DOWN].fill_(60000))
    parent = opened(folder)
    said = check_base(parent, stock_model(parent, torch.float16), tokens())
    assert said["ok"] and not said["finite"]


def test_layers_that_are_made_have_the_dtypes_of_the_model(tmp_path):
    folder = restate(build(tmp_path / "base", dtype=SHORT), stored(("norm", FULL)))
    parent = opened(folder)
    bank = LayerBank(stock_model(parent, SHORT), [parent])
    made = bank.module(LayerSpec((Part(0, 1, 0.5), Part(0, 2, 0.5)))).state_dict()
    assert {t.dtype for t in made.values()} == {SHORT}
