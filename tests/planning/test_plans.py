"""Plans: planning arithmetic from headers alone."""

import math
from functools import partial
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from hf_prune import planning
from hf_prune.blueprint import Source
from hf_prune.data.tasks import bundled_tasks
from hf_prune.errors import InvalidRecipe, SourceError, UnsupportedArchitecture
from hf_prune.hub import Peek, TensorInfo
from hf_prune.methods import METHODS
from hf_prune.methods.method import Sizes
from hf_prune.models.headers import weigh
from hf_prune.planning import describe_target, facts_of, plan, target_of
from hf_prune.recipe import Recipe

SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
OWN_WORDS = {
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 5, "n_head": 4, "n_positions": 64},
    "opt": SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
FAMILIES = ("llama mistral qwen2 qwen3 gemma2 gemma3_text phi3 olmo2 smollm3 gpt_neox gpt2 opt").split()


TASKS = tuple(map(str, bundled_tasks()))
OWN = {"model_type": "ours", "auto_map": {"AutoConfig": "ours.Config"}}
"""Of a model whose layers and sizes are whatever a test wants, since its code alone knows better."""


def tensor(*shape, dtype="BF16", file="model.safetensors"):
    return TensorInfo(shape, dtype, file)


def peeked(config, tensors, **more):
    """Of a source whose tensors are all zeros."""
    files = more.pop("files", {"model.safetensors": 0})
    span = lambda file, first, last: bytes(last - first)  # noqa: E731
    return Peek(more.pop("source", Source("m", "f")), config, tensors, files, {}, span=span, **more)


def header(depth=16, layer=100, outside=400, revision="f" * 40, **config):
    """What hub.peek finds in a model of `depth` equal layers."""
    tensors = {f"model.layers.{i}.mlp.weight": tensor(layer) for i in range(depth)}
    tensors["model.embed_tokens.weight"] = tensor(outside)
    config = OWN | {"num_hidden_layers": depth, "hidden_size": 8, "vocab_size": 50} | config
    files = {"model.safetensors": 2 * (depth * layer + outside) + 64, "config.json": 700, "pytorch_model.bin": 10**9}
    return peeked(config, tensors, files=files, source=Source("ns/m", revision))


def recipe(**fields):
    return Recipe.of(base="ns/m", **fields)


def target(depth=16, layer=100, total=2000, **fields):
    return target_of(recipe(**fields), Sizes((layer,) * depth, total))


def counted(what, wanted, depth, remove):
    """One of the plan's counts for a cut of that many layers."""
    return getattr(planning, what)(wanted, facts_of(wanted, depth, remove))


candidates, evaluations, baseline_evaluations, layer_passes = (
    partial(counted, name) for name in ("candidates", "evaluations", "baseline_evaluations", "layer_passes")
)


def test_ratio_means_parameters_of_the_whole_model_and_says_by_how_much_it_misses():
    found = target(ratio=0.25)
    assert (found.remove, found.removed_ratio, found.miss) == (5, 0.25, 0.0)
    found = target(ratio=0.22)
    assert found.remove == 4 and math.isclose(found.miss, 0.20 - 0.22)


def test_a_quarter_is_the_default():
    assert target() == target(ratio=0.25)


@given(st.integers(2, 96), st.integers(1, 10**9), st.integers(0, 10**10), st.floats(1e-4, 0.9999))
def test_no_other_number_of_layers_comes_nearer(depth, layer, outside, ratio):
    total = depth * layer + outside
    errors = [abs(n * layer / total - ratio) for n in range(depth + 1)]
    try:
        found = target(depth, layer, total, ratio=ratio)
    except InvalidRecipe:
        assert min(errors[0], errors[depth]) <= min(errors[1:depth]) * (1 + 1e-9) + 1e-12
    else:
        assert 1 <= found.remove < depth
        assert errors[found.remove] <= min(errors) * (1 + 1e-9) + 1e-12
        assert math.isclose(found.removed_ratio - ratio, found.miss, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 0.01}, ("0.01", "0.050")),
        ({"ratio": 0.95}, ("0.95", "0.750")),
        ({"keep_layers": 16}, ("16", "between 1 and 15")),
        ({"keep_layers": 0}, ("between 1 and 15",)),
        ({"keep_layers": 40}, ("40", "between 1 and 15")),
        ({"drop": ("14-16",)}, ("layer 16", "0 to 15")),
        ({"drop": ("0-15",)}, ("at least one",)),
        ({"drop": (",",)}, ("no layer",)),
    ],
)
def test_an_impossible_target_is_refused_with_what_is_possible(fields, words):
    with pytest.raises(InvalidRecipe) as caught:
        target(**fields)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("remove", [1, 15])
def test_the_range_named_in_a_refusal_is_accepted(remove):
    assert target(ratio=remove * 0.05).remove == remove


def test_keep_and_drop_have_no_miss():
    assert target(keep_layers=12).remove == 4 and target(keep_layers=12).miss is None
    by_hand = target_of(recipe(drop=("1-2",)), Sizes((10, 20, 30, 40), 200))
    assert (by_hand.remove, by_hand.removed_ratio, by_hand.miss) == (2, 0.25, None)


def test_nsga2_has_no_single_size():
    assert target(search="nsga2").remove == 0


def test_the_request_in_words():
    fields = ({}, {"ratio": 0.3}, {"keep_layers": 12}, {"drop": ("3,6", "8-9")}, {"search": "nsga2"})
    assert [describe_target(recipe(**f)) for f in fields] == [
        "ratio 0.25",
        "ratio 0.3",
        "keep 12",
        "drop 3,6,8-9",
        "every size",
    ]


@given(st.integers(2, 9), st.data())
def test_with_deletions_alone_the_candidates_are_the_subsets(depth, data):
    remove, only = data.draw(st.integers(1, depth - 1)), recipe(rules=("keep",))
    assert candidates(only, depth, remove) == len(list(combinations(range(depth), remove)))
    assert candidates(only, depth, 0) == sum(candidates(only, depth, n) for n in range(1, depth))


@pytest.mark.parametrize("method", sorted(name for name, m in METHODS.items() if "listed" in m.genes and not m.several))
@pytest.mark.parametrize("remove", [0, 1, 2])
def test_no_method_has_more_models_than_announced(method, remove):
    wanted = recipe(method=method, **({} if remove else {"search": "nsga2"}))
    models = len(list(METHODS[method].space(wanted, facts_of(wanted, 5, remove)).enumerate()))
    assert models <= candidates(wanted, 5, remove) <= 3 * models
    assert evaluations(recipe(method=method, search="exhaustive"), 5, 2) == candidates(recipe(method=method), 5, 2)


def test_number_of_evaluations_per_search():
    assert evaluations(recipe(search="greedy"), 16, 4) == 16 + 15 + 14 + 13
    assert evaluations(recipe(search="greedy", method="halves"), 16, 1) == 32 + 31
    assert evaluations(recipe(search="exhaustive", rules=("keep",)), 16, 4) == 1820
    assert evaluations(recipe(search="window"), 16, 4) == 1
    assert evaluations(recipe(drop=("3",)), 16, 1) == 0
    assert evaluations(recipe(), 16, 4) == 2 * 16 + 4 * 12
    assert evaluations(recipe(evaluations=99), 16, 4) == 99
    stitch = recipe(method="stitch", variants=("a", "b", "c"))
    assert evaluations(stitch, 16, 4) == 2 * 16 + 5 * (4 * 12 + 4 * 3 * 12)
    assert baseline_evaluations(stitch, 16, 4) == 5 * (1 + 58) + 1 + 2 * evaluations(stitch, 16, 4)


def test_number_of_evaluations_of_the_baselines():
    assert baseline_evaluations(recipe(), 16, 4) == 58 + 5 + 3
    assert baseline_evaluations(recipe(baselines=("last",)), 16, 4) == 1
    assert baseline_evaluations(recipe(search="nsga2"), 16, 0) == 0


def test_layer_passes_count_each_candidate_at_its_own_depth():
    alone = {"baselines": (), "rules": ("keep",)}
    assert layer_passes(recipe(search="exhaustive", **alone), 16, 4) == 16 + 21840
    assert layer_passes(recipe(search="greedy", **alone), 4, 2) == 4 + 4 * 3 + 3 * 2
    assert layer_passes(recipe(search="greedy", baselines=("greedy", "last")), 4, 2) == 4 + 2 * (4 * 3 + 3 * 2) + 2
    assert layer_passes(recipe(drop=("3",), baselines=()), 16, 1) == 16


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_agree_with_transformers(family):
    config = AutoConfig.for_model(family, **OWN_WORDS.get(family, SMALL))
    model = AutoModelForCausalLM.from_config(config)
    tensors = {n: tensor(*p.shape, dtype="F32") for n, p in model.state_dict().items()}
    weights = weigh(peeked(config.to_dict(), tensors))
    assert len(weights.layers) == 5
    assert weights.total == model.num_parameters()
    assert weights.bytes == 4 * weights.total
    assert len(set(weights.layers)) == 1 and weights.layers[0] > 0


def test_older_checkpoints_store_masks_and_bare_names():
    tensors = {f"h.{i}.attn.c_attn.weight": tensor(8, 24) for i in range(3)}
    tensors |= {f"h.{i}.attn.bias": tensor(1, 1, 64, 64) for i in range(3)}
    tensors |= {f"h.{i}.attn.masked_bias": tensor() for i in range(3)} | {"wte.weight": tensor(10, 8)}
    weights = weigh(peeked({**OWN, "n_layer": 3}, tensors))
    assert (weights.layers, weights.outside) == ((192,) * 3, 80)


def test_experts_and_towers_are_not_taken_for_layers():
    tensors = {f"language_model.layers.{i}.mlp.experts.{j}.w": tensor(5) for i in range(3) for j in range(4)}
    tensors |= {f"vision.encoder.layers.{i}.w": tensor(100) for i in range(2)}
    weights = weigh(peeked({**OWN, "text_config": {"num_hidden_layers": 3}}, tensors))
    assert (weights.layers, weights.outside) == ((20, 20, 20), 200)


@pytest.mark.parametrize("gap", ["model.layers.7.mlp.weight", "model.layers.15.mlp.weight"])
def test_a_missing_layer_is_refused(gap):
    peek = header()
    del peek.tensors[gap]
    with pytest.raises(UnsupportedArchitecture, match="16"):
        weigh(peek)


def test_pickles_cannot_be_planned():
    peek = header()
    peek.tensors.clear()
    with pytest.raises(SourceError, match="safetensors"):
        plan(recipe(), peek)


def test_plan_adds_up():
    found = plan(recipe(ratio=0.25, sequences=4, length=10, rules=("keep",), baselines=("last",)), header())
    assert (found.depth, found.parameters, found.bytes) == (16, 2000, 4000)
    assert (found.target.remove, found.result_layers, found.result_parameters) == (5, 11, 1500)
    assert found.result_bytes == 3000
    assert found.download_bytes == 4064 + 700, "the pickle beside the safetensors is not needed"
    assert found.disk_bytes == found.download_bytes + found.result_bytes
    assert found.candidates == math.comb(16, 5)
    assert found.forward_tokens == (1 + found.evaluations + 1) * 40
    assert found.layer_tokens == (16 + (found.evaluations + 1) * 11) * 40
    assert found.to_dict()["target"].items() >= {"remove": 5, "removed_ratio": 0.25, "miss": 0.0}.items()
    assert found.target.goal == "remove 5 of 16 layers"


def test_a_local_folder_is_not_downloaded():
    assert plan(recipe(), header(revision="sha256-0123456789ab")).download_bytes == 0


def test_layers_dropped_by_hand_need_no_search():
    found = plan(recipe(drop=("3,6",), baselines=()), header())
    assert (found.search, found.evaluations, found.candidates) == ("none", 0, 1)
    assert (found.forward_tokens, found.layer_tokens) == (16 * 256, 16 * 16 * 256)


def test_memory_follows_the_stated_formula():
    fields = {"sequences": 4, "selection_sequences": 2, "length": 10, "offspring": 7, "device": "cpu"}
    state = 60 * 8 * 4
    parts = {"weights": 2000 * 4, "reference": 17 * state, "top": 60 * 50 * 12, "frontier": 14 * 40 * 8 * 4}
    head = 2 * 60 * 50 * 4
    assert plan(recipe(**fields), header()).memory_bytes == sum(parts.values()) + head
    gelaco = plan(recipe(**fields, objective="gelaco_v1"), header()).memory_bytes
    assert gelaco == sum(parts.values()) + head + 32 * state
    asking = {"objective": "doubt", "search_tasks": TASKS[:2], "search_items": 3, "selection_items": 2}
    assert plan(recipe(**fields, **asking), header()).memory_bytes == sum(parts.values()) + head + 17 * 10 * 10 * 8 * 4
    half = plan(recipe(**fields, dtype="bfloat16"), header()).memory_bytes
    assert half == (sum(parts.values()) + parts["top"]) // 2 + head


def test_memory_of_the_frontier_is_capped():
    one, two = (plan(recipe(offspring=n), header(hidden_size=4096)).memory_bytes for n in (10**4, 10**5))
    assert one == two


def test_a_config_without_sizes_is_refused_by_name():
    peek = header()
    del peek.config["hidden_size"]
    with pytest.raises(UnsupportedArchitecture, match="hidden_size"):
        plan(recipe(), peek)


@given(st.floats(0.06, 0.7), st.sampled_from(["staged", "greedy", "random", "last"]))
def test_a_larger_ratio_never_gives_a_larger_model(ratio, search):
    smaller = ratio + 0.03
    assume(smaller < 0.75)
    one, two = (plan(recipe(ratio=r, search=search), header()) for r in (ratio, smaller))
    assert one.result_bytes >= two.result_bytes and one.target.remove <= two.target.remove


def test_variants_are_downloaded_too_and_merged_layers_held():
    base, other = header(), header()
    stitch = recipe(method="stitch", variants=("a", "b"))
    alone, both = plan(recipe(), base), plan(stitch, base, (other, other))
    assert both.download_bytes == 3 * alone.download_bytes
    layer = max(alone.layer_parameters)
    assert both.memory_bytes - alone.memory_bytes == 64 * layer * 4
    tight = plan(stitch.replace(memory=(alone.memory_bytes + 7.5 * layer * 4) / 2**30), base)
    assert tight.memory_bytes - alone.memory_bytes == pytest.approx(7 * layer * 4, abs=8)


def test_tuning_reads_the_search_windows_in_every_step_and_holds_a_float32_copy():
    asked_for = {"method": "stitch", "variants": ("ns/v",), "sequences": 8, "length": 32, "offspring": 1}
    plain = plan(recipe(**asked_for), header(layer=10**6), [header()])
    tuned = plan(recipe(**asked_for, tune=5), header(layer=10**6), [header()])
    assert tuned.train_tokens - plain.train_tokens == 5 * 8 * 32
    asking = {**asked_for, "objective": "abilities", "search_tasks": TASKS[:1], "repair": True}
    again, never = (plan(recipe(**asking, tune=t), header(layer=10**6), [header()]) for t in (5, 0))
    assert again.train_tokens - never.train_tokens == 2 * 5 * 8 * 32, "from tasks, its repair learns as well"
    frontier = 2 * 16 * 32 * 8 * 4
    assert tuned.memory_bytes - plain.memory_bytes == 4 * plain.parameters - frontier
