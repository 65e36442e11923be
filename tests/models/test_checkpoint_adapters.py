"""A LoRA merged on read gives the weights that peft's own merge gives; what is more than a LoRA is refused by name."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from hf_prune.assembly.assemble import assemble, write
from hf_prune.blueprint import Blueprint
from hf_prune.errors import BrokenCheckpoint, IncompatibleSources
from tests.families import SOURCE, blueprint, mean, opened, save_tiny
from tests.oracle import logits, saved, stock, tokens

QUERY = {"target_modules": ["q_proj"]}
TWO = {"target_modules": ["q_proj", "down_proj"]}


def adapter(folder, name, dtype=torch.float32, edit=None, base=None, **lora):
    """A random adapter for a tiny model, saved by peft; `edit` changes its config afterwards."""
    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **lora}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(stock(base or saved(name, dtype), dtype=dtype), LoraConfig(**settings))
        draw = torch.Generator().manual_seed(3)
        for key, p in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                p.data = 0.3 * torch.randn(p.shape, generator=draw)
        model.save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(edit or {})}))
    return folder


def merged(base, folder, dtype=torch.float32):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(stock(base, dtype=dtype), folder).merge_and_unload().eval()


def agree(base, folder, dtype=torch.float32):
    """Whether both merges give one model, and how many tensors they changed."""
    parent = opened(base, adapter=folder)
    ours = assemble(Blueprint.identity(SOURCE, parent.depth), [parent]).state_dict()
    theirs, before = merged(base, folder, dtype).state_dict(), stock(base, dtype=dtype).state_dict()
    bound = {"atol": 1e-6, "rtol": 0 if dtype == torch.float32 else 2**-8}
    assert ours.keys() == theirs.keys()
    assert all(ours[k].dtype == dtype and torch.allclose(ours[k], theirs[k], **bound) for k in ours)
    return sum(not torch.equal(theirs[k], before[k]) for k in before)


@pytest.mark.parametrize(
    ("name", "changed", "settings"),
    [
        ("llama", 12, TWO),
        ("llama", 12, {**TWO, "use_rslora": True}),
        ("llama", 12, {**TWO, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}}),
        ("llama", 12, {**TWO, "rank_pattern": {r".*\.[0-3]\..*": 2}, "alpha_pattern": {"^model.layers.4.mlp.*": 9}}),
        ("llama", 12, {**TWO, "rank_pattern": {"q_proj": 1}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True}),
        ("llama", 2, {**QUERY, "layers_to_transform": [1, 3]}),
        ("llama", 7, {"target_modules": ["q_proj", "lm_head"]}),
        ("llama", 8, {**QUERY, "modules_to_save": ["lm_head", "embed_tokens"]}),
        ("llama", 6, {**QUERY, "init_lora_weights": "gaussian"}),
        ("qwen2", 42, {"target_modules": "all-linear"}),
        ("phi3", 12, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("gpt_neox", 12, {"target_modules": ["query_key_value", "attention.dense"]}),
        ("opt", 12, {"target_modules": ["q_proj", "fc2"]}),
        ("gpt2", 18, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        # Square matrices fit either way round, so only the module's own layout tells.
        ("gpt2", 6, {"target_modules": ["attn.c_proj"], "edit": {"fan_in_fan_out": False}}),
        ("llama", 6, {**QUERY, "edit": {"fan_in_fan_out": True}}),
    ],
)
def test_the_merge_is_peft_s(tmp_path, name, changed, settings):
    assert agree(saved(name), adapter(tmp_path, name, **settings)) == changed


def test_the_merge_keeps_the_precision_of_the_base(tmp_path):
    assert (
        agree(saved("llama", torch.bfloat16), adapter(tmp_path, "llama", torch.bfloat16, **TWO), torch.bfloat16) == 12
    )


def test_transposed_and_usual_modules_mix(tmp_path):
    base = tmp_path / "base"
    save_tiny("gpt2", base, tie_word_embeddings=False)
    folder = adapter(tmp_path / "lora", "gpt2", base=base, target_modules=["attn.c_proj", "lm_head"])
    assert agree(base, folder) == 7


def test_an_unmerged_layer_and_a_merged_one_are_written_with_the_adapter(tmp_path):
    folder, out = adapter(tmp_path / "lora", "qwen3", **TWO), tmp_path / "out"
    out.mkdir()
    write(blueprint(0, mean(1, 2), 5), [opened(saved("qwen3"), adapter=folder)], out)
    peft, ours = merged(saved("qwen3"), folder).state_dict(), stock(out).state_dict()
    key = "model.layers.{}.self_attn.q_proj.weight"
    expected = [peft[key.format(0)], (peft[key.format(1)] + peft[key.format(2)]) / 2, peft[key.format(5)]]
    assert all(torch.allclose(ours[key.format(i)], e, atol=1e-6) for i, e in enumerate(expected))
    assert logits(stock(out), tokens(1)).isfinite().all()


def test_an_adapter_of_another_model_is_refused(tmp_path):
    other = adapter(tmp_path / "opt", "opt", target_modules=["fc2"])
    with pytest.raises(IncompatibleSources, match=r"changes model\.decoder\.layers\.\d\.fc2\.weight"):
        opened(saved("llama"), adapter=other)
    wide = tmp_path / "wide"
    save_tiny("llama", wide, intermediate_size=64)
    folder = adapter(tmp_path / "lora", "llama", base=wide, target_modules=["up_proj"])
    with pytest.raises(IncompatibleSources, match=r"up_proj\.weight is \(48, 32\), its update \(64, 32\)"):
        assemble(blueprint(0), [opened(saved("llama"), adapter=folder)])


def test_tensors_of_no_known_kind_are_refused(tmp_path):
    folder = adapter(tmp_path, "llama", **QUERY)
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.model.norm.oft_r": torch.ones(2)}, path)
    with pytest.raises(IncompatibleSources, match=r"holds base_model\.model\.model\.norm\.oft_r"):
        opened(saved("llama"), adapter=folder)


def test_an_adapter_cut_short_is_refused(tmp_path):
    folder = adapter(tmp_path / "lora", "llama", **QUERY)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(BrokenCheckpoint, match="lora/adapter_model.safetensors is truncated"):
        opened(saved("llama"), adapter=folder)


@pytest.mark.parametrize("text", ["", "[1]", "null", None])
def test_an_adapter_without_a_config_is_refused(tmp_path, text):
    folder = adapter(tmp_path / "lora", "llama", **QUERY)
    (folder / "adapter_config.json").unlink()
    if text is not None:
        (folder / "adapter_config.json").write_text(text)
    with pytest.raises(BrokenCheckpoint, match="lora/adapter_config.json is missing or malformed"):
        opened(saved("llama"), adapter=folder)


def test_an_adapter_without_its_second_factor_is_refused(tmp_path):
    folder = adapter(tmp_path, "llama", **QUERY)
    path = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "layers.3.self_attn.q_proj.lora_B" not in k}, path)
    with pytest.raises(BrokenCheckpoint, match=r"lacks .*layers\.3\.self_attn\.q_proj\.lora_B"):
        opened(saved("llama"), adapter=folder)


def test_rank_and_alpha_left_out_are_peft_s_defaults(tmp_path):
    folder = adapter(tmp_path, "llama", **QUERY, r=8, lora_alpha=8)
    path = folder / "adapter_config.json"
    short = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("r", "lora_alpha")}
    path.write_text(json.dumps(short))
    assert agree(saved("llama"), folder) == 6
