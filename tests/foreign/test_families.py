"""Every causal language model type that transformers knows is cut rightly, or refused with its true reason.

A release of transformers that brings a new type fails here unless the type works: then it needs a row, or a reason.
"""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_prune import hub
from hf_prune.assembly.assemble import assemble, write
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part
from hf_prune.errors import InvalidBlueprint, UnsupportedArchitecture
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.speed import kv_bytes_per_token
from hf_prune.models.families import CUT_BY_WIDTH, FAMILIES
from hf_prune.models.headers import weigh
from hf_prune.models.inference import family_of
from hf_prune.models.parent import Parent
from hf_prune.pipeline import run
from hf_prune.planning import plan
from hf_prune.recipe import Recipe
from tests.families import SOURCE, jittered
from tests.runs import base
from tests.runs import recipe as small
from tests.shrunk import DEPTH, shrunk, whole
from tests.supported import PAGE, REASONS, between, listed, outcome

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
REFUSED = {
    "encoders with a decoder": """bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen
        musicgen_melody mvp pegasus plbart prophetnet whisper""",
    "encoders, whose tokens see those behind them": """bert bert-generation big_bird camembert data2vec-text electra
        ernie megatron-bert rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod""",
    "models of more than language": """emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git got_ocr2 mllama moshi
        moss_transcribe_diarize phi4_multimodal""",
    "decoders that read an encoder": "trocr",
    "layers that use keys and values of others": "gemma3n_text gemma4_assistant gemma4_unified_assistant",
    "layers that share their weights": "zamba zamba2",
    "no norm behind the layers": "openai-gpt xlnet",
    "several residual streams": "deepseek_v4 hy_v4 inkling2_text qwen4_exp qwen4_exp_text",
    "layers made from their number": "beam diffllama gpt_neox_japanese minicpm3 modernbert-decoder zaya",
    "periods that no config can list": "jamba",
    "activations halved every few layers": "rwkv",
    "biases or masks for a whole batch": "bloom xglm",
    "a state inside of its modules": "recurrent_gemma",
    "a prompt of its own": "cpmant",
    "reversible layers": "reformer",
    "several lists of layers": "blt hrm_text xlm",
}
WHY = {name: words for words, names in REFUSED.items() for name in names.split()}
CUT = [name for name in TYPES if name not in WHY]
QUICK = ("deepseek_v3", "gemma4_text", "gpt_oss", "lfm2", "mamba", "nemotron_h", "qwen3_next")
LISTS = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "layer_rope_theta",
    "attention_layers",
    "num_attention_heads_per_layer",
    "indexer_types",
)
CACHES = {"mimo_v2_flash": "its sliding layers have twice the heads, which its config does not say"}
"""Whose cache is not counted right, and why."""
TOKENS = torch.randint(3, 90, (3, 16), generator=torch.Generator().manual_seed(1))

some = pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CUT])


def test_every_refusal_is_of_a_type_there_is():
    assert set(WHY) <= set(TYPES) and set(QUICK) <= set(CUT) and set(FAMILIES) <= set(CUT)
    assert set(REFUSED) == set(REASONS)


first = {names.split()[0] for names in REFUSED.values()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in first else pytest.mark.slow) for n in sorted(WHY)])
def test_what_is_refused_is_refused_for_its_reason(name):
    assert outcome(name) == WHY[name]


# What is cut ---------------------------------------------------------------------------------------------------------


def stock(folder: Path) -> PreTrainedModel:
    """As a user loads it; anything missing, unexpected or of another shape fails."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval().requires_grad_(False)


def saved(config, folder: Path, tokenizer: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    jittered(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
    return stock(folder)


def cut(parent: Parent, folder: Path, *layers: int | LayerSpec) -> PreTrainedModel:
    folder.mkdir()
    specs = (s if isinstance(s, LayerSpec) else LayerSpec((Part(0, s),)) for s in layers)
    write(Blueprint((parent.source,), tuple(specs)), [parent], folder)
    return stock(folder)


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def cache_of(out) -> dict:
    name = "past_key_values" if getattr(out, "past_key_values", None) is not None else "cache_params"
    return {name: getattr(out, name)}


@torch.no_grad()
def cached_logits(model: PreTrainedModel) -> torch.Tensor:
    """Prefill of a half, then a token at a time."""
    placed = "position_ids" in inspect.signature(model.forward).parameters
    out = model(input_ids=TOKENS[:, :8], use_cache=True)
    steps = [out.logits]
    for t in range(8, TOKENS.shape[1]):
        where = {"position_ids": torch.full((len(TOKENS), 1), t)} if placed else {}
        out = model(input_ids=TOKENS[:, t : t + 1], use_cache=True, **cache_of(out), **where)
        steps.append(out.logits)
    return torch.cat(steps, 1)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance * max(1.0, float(a.abs().max()))


def kinds(model: PreTrainedModel, path: str) -> list[tuple]:
    """What tells layers apart: their tensors, and what the config lists for them."""
    layers, lists = model.get_submodule(path), [getattr(model.config, k, None) for k in LISTS]
    lists = [found for found in lists if isinstance(found, list) and len(found) == DEPTH]
    return [
        (*sorted((n, tuple(t.shape)) for n, t in layer.state_dict().items()), *(str(found[i]) for found in lists))
        for i, layer in enumerate(layers)
    ]


def chosen(found: list[tuple]) -> list[int]:
    """Layers to drop: one of each kind from the middle, as long as another one of it stays."""
    drop: list[int] = []
    for kind in dict.fromkeys(found):
        middle = [i for i in range(1, len(found) - 1) if found[i] == kind]
        if middle and found.count(kind) > 1 and len(drop) < len(found) - 3:
            drop.append(middle[-1])
    return drop or [1]


def without(model: PreTrainedModel, path: str, drop: list[int]) -> PreTrainedModel:
    """The stock model with entries of its list of layers deleted, and of the lists in its configs."""
    model, left = copy.deepcopy(model), [i for i in range(DEPTH) if i not in drop]
    trunk, _, name = path.rpartition(".")
    layers = model.get_submodule(path)
    setattr(model.get_submodule(trunk), name, torch.nn.ModuleList(layers[i] for i in left))
    # Layers keep theirs: what one computes must not depend on where it stands.
    configs = {id(m.config): m.config for n, m in model.named_modules() if hasattr(m, "config") and path not in n}
    for config in configs.values():
        for key in (config.attribute_map.get(k, k) for k in LISTS):
            if isinstance(found := vars(config).get(key), list) and len(found) == DEPTH:
                vars(config)[key] = [found[i] for i in left]
        for key in (config.attribute_map.get(k, k) for k in ("num_hidden_layers", "num_layers")):
            if vars(config).get(key) == DEPTH:
                vars(config)[key] = len(left)
    return model


@some
def test_what_is_cut_is_the_stock_model_without_these_layers(name, tmp_path):
    dense = saved(shrunk(name), tmp_path / "base")
    expected = logits(dense)
    parent = Parent.open(SOURCE, tmp_path / "base")
    state, made = dense.state_dict(), assemble(Blueprint.identity(SOURCE, DEPTH), [parent])
    assert state.keys() == made.state_dict().keys() and torch.equal(logits(made), expected)
    assert all(torch.equal(t, state[n]) for n, t in made.state_dict().items())
    assert torch.equal(logits(cut(parent, tmp_path / "same", *range(DEPTH))), expected)
    files = [set(safe_open(tmp_path / f / "model.safetensors", "pt").keys()) for f in ("base", "same")]
    assert files[0] == files[1]

    drop = chosen(kinds(dense, parent.family.layers))
    left = [i for i in range(DEPTH) if i not in drop]
    model = cut(parent, tmp_path / "cut", *left)
    found = logits(model)
    assert not close(found, expected, 1e-2) and close(logits(without(dense, parent.family.layers, drop)), found)
    # A state is carried on step by step, but made from a text in chunks.
    assert close(found, cached_logits(model), 1e-3)


@some
def test_a_search_sees_the_same_model_and_a_plan_the_same_sizes(name, tmp_path):
    dense = saved(shrunk(name), tmp_path)
    parent, walk = Parent.open(SOURCE, tmp_path), Dense(dense, family_of(dense.config))
    assert close(walk.logits(walk.run(TOKENS).hidden[-1]), logits(dense), 1e-3)
    peek = hub.peek(str(tmp_path))
    weights = weigh(peek)
    sizes = [sum(parent.shapes[f"{parent.family.prefix}{i}.{s}"].numel() for s in parent.layer_suffixes[i])
             for i in range(DEPTH)]  # fmt: skip
    assert list(weights.layers) == sizes and weights.total == parent.parameters and weights.kinds == parent.kinds
    with torch.no_grad():
        held = next(iter(cache_of(dense(input_ids=TOKENS[:1, :4], use_cache=True)).values()))
    keys = [layer for layer in getattr(held, "layers", ()) if getattr(layer, "keys", None) is not None]
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in keys)
    assert (kv_bytes_per_token(dense.config, 4) * 4 == real) == (name not in CACHES)
    planned = plan(Recipe.of(base=str(tmp_path), keep_layers=DEPTH - 1), peek)
    assert planned.depth == DEPTH and planned.parameters == parent.parameters


@some
def test_halves_are_silenced_or_refused(name, tmp_path):
    saved(shrunk(name), tmp_path / "base")
    parent = Parent.open(SOURCE, tmp_path / "base")
    halved = [LayerSpec((Part(0, i),), attn_level=-(i == 1), mlp_level=-(i == 3)) for i in range(DEPTH)]
    recipe = Recipe.of(base=str(tmp_path / "base"), method="halves", keep_layers=DEPTH - 1)
    peek = hub.peek(str(tmp_path / "base"))
    if not parent.family.halved:
        with pytest.raises(InvalidBlueprint, match="no two halves"):
            cut(parent, tmp_path / "cut", *halved)
        with pytest.raises(UnsupportedArchitecture, match="--method halves takes attention and MLP of a layer"):
            plan(recipe, peek)
        return
    assert GONE == -1 and plan(recipe, peek).method == "halves"
    model, said = cut(parent, tmp_path / "cut", *halved), {}
    layers = model.get_submodule(parent.family.layers)
    for number, half in ((1, "attention"), (3, "mlp")):
        names = {s for s, _ in layers[number].named_parameters() if parent.family.half(s) == half}
        top = {s.partition(".")[0] for s in names}
        assert names and all(parent.family.half(f"{t}.weight") == half for t in top)
        for child in top if half == "attention" or parent.family.mlp else [parent.family.mlp_out]:
            layers[number].get_submodule(child).register_forward_hook(
                # Falcon adds one half to the other in place.
                lambda _, args, out, key=(number, child): said.update({key: (args, copy.deepcopy(out))})
            )
    logits(model)
    for args, out in said.values():
        out = out[0] if isinstance(out, tuple) else out
        # MPT's MLP adds the residual itself.
        residual = args[1] if name == "mpt" and len(args) > 1 else torch.zeros(())
        assert bool((out == residual).all())
    assert said


@pytest.mark.parametrize("name", [n for n in QUICK if n not in CUT_BY_WIDTH])
def test_width_is_refused_by_plan_and_run_alike(name, tmp_path):
    saved(shrunk(name), tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=f"Width pruning knows llama, .*, not '{name}'"):
        plan(Recipe.of(base=str(tmp_path), method="width"), hub.peek(str(tmp_path)))


def test_a_cut_that_no_config_can_say_is_refused_by_plan_and_run_alike(tmp_path):
    saved(shrunk("gemma4_text"), tmp_path)
    recipe = Recipe.of(base=str(tmp_path), drop="5", output=str(tmp_path / "small"))
    for asked in (lambda: plan(recipe, hub.peek(str(tmp_path))), lambda: run(recipe)):
        with pytest.raises(UnsupportedArchitecture, match="last layer of a gemma4_text must be of full_attention"):
            asked()


RUNS = {
    "gemma4_text": {},
    "gpt_oss": {"method": "halves"},
    "lfm2": {"repair": True},
    "nemotron_h": {"heal": "512", "heal_batch": 2, "heal_checks": 1},
    "qwen3_next": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_from_a_recipe_to_a_model_that_stock_transformers_loads(name, tmp_path):
    folder = base(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    tokens = {"vocab_size": 512, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1}
    saved(shrunk(name, **tokens, pad_token_id=None), folder, tokenizer=False)
    done = run(small(tmp_path, base=str(folder), keep_layers=4, **RUNS[name]))
    assert done.report["certificate"]["ok"] and done.report["certificate"]["without_hf_prune"]
    assert stock(done.folder).config.model_type == name
    # Whatever is cut, Gemma 4 keeps its last layer.
    last = [b for b in done.report["baselines"] if b["name"] == "last"]
    assert bool(last) == (name != "gemma4_text")


# Language towers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.slow),
                                  pytest.param("llama4", marks=pytest.mark.slow)])  # fmt: skip
def test_the_language_tower_of_a_larger_model_is_what_transformers_makes_of_it(name, tmp_path):
    jittered(AutoModelForImageTextToText.from_config(whole(name))).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    parent, weights = Parent.open(SOURCE, tmp_path / "base"), weigh(hub.peek(str(tmp_path / "base")))
    assert (
        weights.total
        == parent.parameters
        < sum(t.numel() for t in safe_tensors(tmp_path / "base" / "model.safetensors"))
    )
    assert torch.equal(logits(assemble(Blueprint.identity(SOURCE, DEPTH), [parent])), logits(dense))
    model = cut(parent, tmp_path / "cut", 0, 1, 3, 4)
    assert model.config.model_type == f"{name}_text" and type(model) is type(dense)
    assert close(logits(model), logits(without(dense, parent.family.layers, [2, 5])))


def safe_tensors(path: Path):
    with safe_open(path, "pt") as f:
        return [f.get_tensor(n) for n in f.keys()]  # noqa: SIM118 - not a dict


# What is said of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_readme_lists_what_is_cut_and_what_is_not():
    """`make families` writes it anew."""
    text = PAGE.read_text(encoding="utf-8")
    assert between(text) == listed(), "run make families"
    assert set(re.findall(r"`([\w-]+)`", between(text).partition("<details>")[2].partition("Refused")[0])) == set(CUT)
