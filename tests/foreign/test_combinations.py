"""Any mix of oddities: families, ties, dtypes, shards and adapters drawn together, and read as transformers does."""

import json
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.base_check import compare_tensors, stock_model
from hf_prune.blueprint import Blueprint
from hf_prune.hub import peek
from hf_prune.planning import plan
from hf_prune.recipe import Recipe
from tests.foreign.builders import build, bytes_of, cut, logits, opened, restate, state, stock, stored, without
from tests.foreign.layouts import EMBED, FULL, HALF, SHORT, random_head

DROPPED = (1, 4)
LORA = {"llama": ["q_proj", "down_proj"], "qwen3": ["v_proj", "up_proj"], "gemma2": ["o_proj"]}


@st.composite
def sources(draw):
    """Family, how it is built, how its tensors are stored, whether there is a head of its own, what is adapted."""
    family = draw(st.sampled_from(["llama", "qwen3", "gemma2", "gpt2", "qwen3_moe"]))
    dtype = draw(st.sampled_from([FULL, SHORT, HALF]))
    ties = family in ("gpt2", "gemma2") or draw(st.booleans())
    mix = draw(st.lists(st.tuples(st.sampled_from(["norm", "ln_", "wte", "embed", ".2.", "down_proj"]),
                                  st.sampled_from([FULL, SHORT, HALF])), max_size=2))  # fmt: skip
    how = {"family": family, "dtype": dtype, **({} if family == "gpt2" else {"tie_word_embeddings": ties})}
    how |= {"attention_bias": False, "mlp_bias": False} if family == "llama" else {}
    shards = draw(st.sampled_from([1, 3]))
    adapted = family in LORA and draw(st.booleans())
    return how, shards, mix, ties and draw(st.booleans()), adapted


def lora(folder: Path, target: Path, family: str) -> Path:
    torch.manual_seed(3)
    model = get_peft_model(stock(folder, dtype=FULL), LoraConfig(r=2, target_modules=LORA[family], lora_alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(target)
    return target


def holds(home: Path, how: dict, shards: int, mix: list, own_head: bool, adapted: bool) -> None:
    folder = build(home / "base", **how)
    restate(folder, stored(*mix))
    if own_head:
        name = "transformer.wte.weight" if how["family"] == "gpt2" else EMBED
        random_head(folder, name)
    if shards > 1:
        spread(folder, shards)
    adapter = lora(folder, home / "lora", how["family"]) if adapted else None
    name = f"{folder}+{adapter}" if adapter else str(folder)
    planned = plan(Recipe.of(base=name, drop=tuple(map(str, DROPPED))), peek(name))
    parent = opened(name)
    loaded = stock_model(parent, FULL)
    assert compare_tensors(parent, loaded) == len(parent.shapes)
    if not adapter:
        whole = assemble(Blueprint.identity(parent.source, parent.depth), [parent], dtype=FULL)
        assert torch.equal(logits(whole), logits(stock(folder, dtype=FULL)))
    out = home / "out"
    out.mkdir()
    parameters, size = write(cut(parent, DROPPED), [parent], out)
    assert (planned.result_parameters, size) == (parameters, bytes_of(out))
    ours, theirs = logits(stock(out, dtype=FULL)), logits(without(loaded, parent.family.layers, DROPPED))
    # peft merges in one precision, and here every tensor keeps its own.
    allowed = 5e-2 if adapter and mix else 1e-4 if adapter else 0
    assert float((ours - theirs).abs().max()) <= allowed * float(theirs.abs().max())


def spread(folder: Path, shards: int) -> None:
    """One file of weights as several and their index."""
    found = state(folder)
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    where = {n: names[i % shards] for i, n in enumerate(found)}
    for name in names:
        save_file({n: t for n, t in found.items() if where[n] == name}, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@hypothesis.settings(max_examples=10, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(sources())
def test_any_mix_of_oddities_is_read_as_transformers_reads_it(tmp_path_factory, source):
    holds(tmp_path_factory.mktemp("any"), *source)


@pytest.mark.slow
@hypothesis.settings(max_examples=80, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(sources())
def test_many_mixes_of_oddities_are_read_as_transformers_reads_them(tmp_path_factory, source):
    holds(tmp_path_factory.mktemp("many"), *source)
