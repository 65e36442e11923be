"""Recipe: one definition behind YAML, flags and Python."""

from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import InvalidRecipe
from hf_prune.recipe import (
    AFTER_SEARCH,
    NOT_IDENTITY,
    RULES,
    TASK_OBJECTIVES,
    Baseline,
    Method,
    Objective,
    Recipe,
    Search,
    spelled,
)

CHANGED = {
    "base": "other",
    "method": "halves",
    "ratio": 0.5,
    "keep_layers": 3,
    "drop": ("1",),
    "rules": ("mean",),
    "norms": "follow",
    "objective": "perplexity",
    "search": "greedy",
    "dtype": "bfloat16",
    "data": ("text.jsonl",),
    "tasks": ("task.jsonl",),
    "baselines": ("last",),
    "output": "elsewhere",
    "push_to": "me/small",
    "commit_message": "smaller",
    "device": "cuda",
    "lm_eval": ("arc_easy",),
    "reach": "gap",
    "heal_method": "dora",
    "heal_alpha": 8.0,
    "heal_kl": 0.5,
    "heal_ce": 0.25,
    "heal_lr": 1e-4,
    "variants": ("other",),
    "merges": ("linear", "slerp"),
    "search_tasks": ("search.jsonl",),
    "damping": 0.02,
    "library": "elsewhere",
    "latency": 0.5,
}
STITCH = {"method": "stitch", "variants": ("one",)}
BESIDE = {"latency": {"method": "width"}, "variants": STITCH, "tune": STITCH}
"""What a field needs beside it."""


@pytest.mark.parametrize(
    ("drop", "layers"),
    [
        (("21-28",), tuple(range(21, 29))),
        (("[21-28]",), tuple(range(21, 29))),
        (("3,6,7",), (3, 6, 7)),
        (("7", "3", "3-4"), (3, 4, 7)),
        ((" 1 - 2 , 5 ",), (1, 2, 5)),
        ((), ()),
    ],
)
def test_drop_reads_numbers_and_closed_ranges(drop, layers):
    assert Recipe.of(base="m", drop=drop).dropped() == layers


@pytest.mark.parametrize("drop", ["28-21", "a", "-3", "1.5", "3;4"])
def test_a_bad_drop_range_is_named(drop):
    with pytest.raises(InvalidRecipe, match="drop"):
        Recipe.of(base="m", drop=(drop,))


def test_a_backward_range_shows_the_right_way_round():
    with pytest.raises(InvalidRecipe, match="21-28"):
        Recipe.of(base="m", drop=("28-21",))


@given(st.sets(st.integers(0, 99), min_size=1))
def test_any_set_of_layers_survives_being_written_as_a_list(layers):
    assert Recipe.of(base="m", drop=(",".join(map(str, layers)),)).dropped() == tuple(sorted(layers))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ratio": 0.25, "keep_layers": 12}, ("ratio", "keep_layers")),
        ({"ratio": 0.25, "drop": ("3",)}, ("ratio", "drop")),
        ({"ratio": 0.0}, ("ratio", "between 0 and 1")),
        ({"ratio": 25.0}, ("ratio", "25")),
        ({"search": "nsga2", "ratio": 0.3}, ("nsga2", "ratio")),
        ({"sequences": 0}, ("sequences",)),
        ({"length": 4}, ("length", "8")),
        ({"rules": ("median",)}, ("median", "laco-released")),
        ({"method": "stitch"}, ("stitch", "--variant")),
        ({"variants": ("v",)}, ("variants", "--method stitch")),
        ({"method": "stitch", "variants": ("v",), "drop": ("3",)}, ("drop", "--drop-layers")),
        ({"method": "stitch", "variants": ("v",), "search_heal": "1k"}, ("search_heal", "--heal")),
        ({"tune": 3}, ("tune", "variants")),
        ({"method": "stitch", "variants": ("v",), "tune": 3, "search": "nsga2"}, ("tune", "nsga2")),
        ({"method": "stitch", "variants": ("v",), "tune": -1}, ("tune", "greater than or equal to 0")),
        ({"merges": ("average",)}, ("average", "task-arithmetic")),
        ({"objective": "tasks"}, ("tasks", "--search-tasks")),
        ({"drop_layers": 2, "ratio": 0.5}, ("drop_layers", "ratio")),
        ({"search": "annealing"}, ("search", "staged")),
        ({"ratoi": 0.25}, ("ratoi", "'ratio'")),
        ({"push-to": "a/b"}, ("push-to", "'push_to'")),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(fields, words):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.of(base="m", **fields)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_yaml_must_exist_parse_and_be_a_mapping(tmp_path):
    for text in ("- a\n", "a: [\n"):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(InvalidRecipe, match="r.yaml"):
            Recipe.load(tmp_path / "r.yaml")
    with pytest.raises(InvalidRecipe, match="missing.yaml"):
        Recipe.load(tmp_path / "missing.yaml")


def test_overrides_win_over_the_file(tmp_path):
    (tmp_path / "r.yaml").write_text("base: m\nseed: 1\nratio: 0.5\n")
    recipe = Recipe.load(tmp_path / "r.yaml", seed=2)
    assert (recipe.base, recipe.seed, recipe.ratio) == ("m", 2, 0.5)


words = st.text(min_size=1, max_size=20)
sizes = st.sampled_from([{}, {"ratio": 0.3}, {"keep_layers": 7}, {"drop": ("1-3", "8")}])
recipes = st.builds(
    lambda size, **fields: Recipe.of(**size, **fields),
    sizes,
    base=words,
    output=words,
    method=st.sampled_from([m for m in get_args(Method) if m != "stitch" and not m.startswith("width")]),
    search=st.sampled_from([s for s in get_args(Search) if s not in ("nsga2", "smac")]),
    objective=st.sampled_from([o for o in get_args(Objective) if o not in TASK_OBJECTIVES]),
    rules=st.lists(st.sampled_from(RULES), min_size=1).map(tuple),
    baselines=st.lists(st.sampled_from(get_args(Baseline))).map(tuple),
    data=st.lists(words, max_size=3).map(tuple),
    evaluations=st.none() | st.integers(1, 10**6),
    seed=st.integers(0, 2**32),
    length=st.integers(8, 4096),
    push_to=st.none() | words,
    public=st.booleans(),
)


@given(recipes)
def test_yaml_round_trip(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    back = Recipe.load(path)
    assert back == recipe and back.digest == recipe.digest


def test_yaml_holds_only_what_was_changed():
    assert yaml.safe_load(Recipe.of(base="m", ratio=0.3).to_yaml()) == {"base": "m", "ratio": 0.3}


def another(name, default):
    if name in CHANGED:
        return CHANGED[name]
    assert isinstance(default, bool | int) or default is None, f"give {name} another value in CHANGED"
    return not default if isinstance(default, bool) else (default or 0) + 1000


@pytest.mark.parametrize("name", list(Recipe.model_fields))
def test_the_digest_follows_exactly_the_fields_that_decide_the_result(name):
    plain = Recipe.of(base="m", **BESIDE.get(name, {}))
    other = Recipe.of(**{"base": "m", **BESIDE.get(name, {}), name: another(name, getattr(plain, name))})
    assert getattr(other, name) != getattr(plain, name)
    assert (other.digest == plain.digest) is (name in NOT_IDENTITY)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "examples" / "recipes").glob("*.yaml")), ids=lambda p: p.name
)
def test_the_example_recipes_are_valid(path):
    recipe = Recipe.load(path)
    assert (Path(__file__).parents[1] / recipe.base).is_dir()


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("drop: [3, 6]", "drop", ("3", "6")),
        ("drop: 21-28", "drop", ("21-28",)),
        ("drop: 4", "drop", ("4",)),
        ("data: my-texts", "data", ("my-texts",)),
        ("baselines: last", "baselines", ("last",)),
        ("baselines: []", "baselines", ()),
    ],
)
def test_yaml_lists_may_be_written_the_way_people_write_them(tmp_path, text, field, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"base: m\n{text}\n")
    assert getattr(Recipe.load(path), field) == value


@pytest.mark.parametrize(
    ("text", "tokens"), [("1M", 10**6), ("500k", 500_000), ("1.5M", 1_500_000), (2000, 2000), ("2_000", 2000), (0, 0)]
)
def test_tokens_are_counted_the_way_people_write_them(text, tokens):
    assert Recipe.of(base="m", heal=text).heal == tokens and Recipe.of(base="m", search_heal=text).search_heal == tokens


@pytest.mark.parametrize("text", ["1MB", "many", "-5", "", True, None])
def test_other_counts_of_tokens_are_refused(text):
    with pytest.raises(InvalidRecipe, match="1M, 500k or 250000"):
        Recipe.of(base="m", heal=text)


@pytest.mark.parametrize("name", list(Recipe.model_fields))
def test_a_journal_outlives_every_change_of_what_comes_after_the_search(name):
    plain = Recipe.of(base="m", **BESIDE.get(name, {}))
    other = Recipe.of(**{"base": "m", **BESIDE.get(name, {}), name: another(name, getattr(plain, name))})
    assert (other.search_digest == plain.search_digest) is (name in NOT_IDENTITY | AFTER_SEARCH)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heal": 1, "heal_kl": 0, "heal_ce": 0}, "something to learn"),
        ({"heal_ce": -1.0}, "must not be negative"),
        ({"heal_lr": -1.0}, "must not be negative"),
        ({"keep_adapter": True, "heal_method": "full"}, "no adapter to keep"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(InvalidRecipe, match=message):
        Recipe.of(base="m", **fields)


@pytest.mark.parametrize("name", ["evaluations", "population", "task_items", "repair_sequences", "heal_batch"])
def test_a_count_below_one_is_refused(name):
    with pytest.raises(InvalidRecipe, match=f"{name} must be at least 1"):
        Recipe.of(base="m", **{name: 0})


def test_a_field_is_spelled_with_dashes_and_a_variant_one_by_one():
    assert (spelled("heal_lr"), spelled("variants")) == ("--heal-lr", "--variant")
