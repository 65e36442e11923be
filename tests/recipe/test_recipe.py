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
    OPTIONS,
    RULES,
    TASK_OBJECTIVES,
    Baseline,
    Method,
    Objective,
    Recipe,
    Searcher,
)
from hf_prune.recipe.recipe import ORDER

ROOT = Path(__file__).parents[2]

CHANGED = {
    "base": "other",
    "method": "halves",
    "vocabulary": "50k",
    "ratio": 0.5,
    "keep_layers": 3,
    "drop": ("1",),
    "rules": ("mean",),
    "norms": "follow",
    "objective": "perplexity",
    "search": "greedy",
    "dtype": "bfloat16",
    "workers": "2",
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
    "gguf": ("q8_0",),
    "track": "trackio",
}
STITCH = {"method": "stitch", "variants": ("one",)}
BESIDE = {"latency": {"method": "width"}, "variants": STITCH, "tune": STITCH,
          "gguf_apart": {"gguf": "q8_0", "push_to": "me/small"}}  # fmt: skip
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
    assert Recipe.of(base="m", drop=drop).size.dropped() == layers


@pytest.mark.parametrize("drop", ["28-21", "a", "-3", "1.5", "3;4"])
def test_a_bad_drop_range_is_named(drop):
    with pytest.raises(InvalidRecipe, match="drop"):
        Recipe.of(base="m", drop=(drop,))


def test_a_backward_range_shows_the_right_way_round():
    with pytest.raises(InvalidRecipe, match="21-28"):
        Recipe.of(base="m", drop=("28-21",))


@given(st.sets(st.integers(0, 99), min_size=1))
def test_any_set_of_layers_survives_being_written_as_a_list(layers):
    assert Recipe.of(base="m", drop=(",".join(map(str, layers)),)).size.dropped() == tuple(sorted(layers))


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
        ({"method": "stitch", "variants": ("v",), "tune": -1}, ("tune", "at least 0")),
        ({"merges": ("average",)}, ("average", "task-arithmetic")),
        ({"objective": "tasks"}, ("tasks", "--search-tasks")),
        ({"drop_layers": 2, "ratio": 0.5}, ("drop_layers", "ratio")),
        ({"search": "annealing"}, ("search", "staged")),
        ({"ratoi": 0.25}, ("ratoi", "'ratio'")),
        ({"push-to": "a/b"}, ("push-to", "'push_to'")),
        ({"device": "gpu"}, ("device", "cuda:1")),
        ({"device": "cuda:٣"}, ("device", "cuda:1")),
        ({"seed": 10**400}, ("seed", "less than")),
        ({"drop": ("0-300000000",)}, ("drop", "4096")),
        ({"drop": ("0-4000",) * 1001}, ("drop", "1000")),
        ({"method": "stitch", "variants": ("v",) * 250}, ("variants", "250", "32")),
        ({"data": ("a\ud800",)}, ("data", "text")),
        ({"output": "a\0b"}, ("output", "text")),
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
    assert (recipe.base, recipe.seed, recipe.size.ratio) == ("m", 2, 0.5)


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
sizes = st.sampled_from([{}, {"ratio": 0.3}, {"keep_layers": 7}, {"drop": ("1-3", "8")}])
apart = ("stitch", "experts", "width", "width+depth")
recipes = st.builds(
    lambda size, **fields: Recipe.of(**size, **fields),
    sizes,
    base=words,
    output=words,
    method=st.sampled_from([m for m in get_args(Method) if m not in apart]),
    search=st.sampled_from([s for s in get_args(Searcher) if s not in ("nsga2", "smac")]),
    objective=st.sampled_from([o for o in get_args(Objective) if o not in TASK_OBJECTIVES]),
    rules=st.lists(st.sampled_from(RULES), min_size=1).map(tuple),
    baselines=st.lists(st.sampled_from(get_args(Baseline))).map(tuple),
    data=st.lists(words, max_size=3).map(tuple),
    evaluations=st.none() | st.integers(1, 10**6),
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(8, 4096),
    heal=st.integers(0, 10**12) | st.sampled_from(["1M", "1.5k"]),
    heal_rank=st.integers(1, 512),
    heal_lr=st.none() | st.floats(1e-12, 1e12),
    repair=st.booleans(),
    damping=st.floats(1e-300, 1e300),
    allow_pickle=st.booleans(),
    device=st.sampled_from(["auto", "cpu", "cuda:1", "mps"]),
    search_tasks=st.lists(words, max_size=2),
    push_to=st.none() | words,
    public=st.booleans(),
)


@given(recipes)
def test_yaml_round_trip(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    back = Recipe.load(path)
    assert back == recipe and back.digest == recipe.digest
    assert Recipe.of(**recipe.changed()) == Recipe.of(**recipe.flat()) == recipe


def test_yaml_holds_only_what_was_changed():
    assert yaml.safe_load(Recipe.of(base="m", ratio=0.3).to_yaml()) == {"base": "m", "size": {"ratio": 0.3}}


def another(name, default):
    if name in CHANGED:
        return CHANGED[name]
    assert isinstance(default, bool | int) or default is None, f"give {name} another value in CHANGED"
    return not default if isinstance(default, bool) else (default or 0) + 1000


@pytest.mark.parametrize("name", OPTIONS)
def test_the_digest_follows_exactly_the_fields_that_decide_the_result(name):
    plain = Recipe.of(base="m", **BESIDE.get(name, {}))
    other = Recipe.of(**{"base": "m", **BESIDE.get(name, {}), name: another(name, OPTIONS[name].of(plain))})
    assert OPTIONS[name].of(other) != OPTIONS[name].of(plain)
    assert (other.digest == plain.digest) is (name in NOT_IDENTITY)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_the_example_recipes_are_valid(path):
    recipe = Recipe.load(path)
    assert (ROOT / recipe.base).is_dir()


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
    assert Recipe.load(path).flat()[field] == value


@pytest.mark.parametrize(
    ("text", "tokens"), [("1M", 10**6), ("500k", 500_000), ("1.5M", 1_500_000), (2000, 2000), ("2_000", 2000), (0, 0)]
)
def test_tokens_are_counted_the_way_people_write_them(text, tokens):
    assert (
        Recipe.of(base="m", heal=text).heal.tokens == tokens
        and Recipe.of(base="m", search_heal=text).heal.finalist_tokens == tokens
    )


@pytest.mark.parametrize("text", ["1MB", "many", "-5", "", True, None])
def test_other_counts_of_tokens_are_refused(text):
    with pytest.raises(InvalidRecipe, match="1M, 500k or 250000"):
        Recipe.of(base="m", heal=text)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_journal_outlives_every_change_of_what_comes_after_the_search(name):
    plain = Recipe.of(base="m", **BESIDE.get(name, {}))
    other = Recipe.of(**{"base": "m", **BESIDE.get(name, {}), name: another(name, OPTIONS[name].of(plain))})
    assert (other.search_digest == plain.search_digest) is (name in NOT_IDENTITY | AFTER_SEARCH)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heal": 1, "heal_kl": 0, "heal_ce": 0}, "something to learn"),
        ({"heal_ce": -1.0}, "must be at least 0, not -1"),
        ({"heal_lr": -1.0}, "must be above 0, not -1"),
        ({"keep_adapter": True, "heal_method": "full"}, "no adapter to keep"),
    ],
)
def test_a_training_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(InvalidRecipe, match=message):
        Recipe.of(base="m", **fields)


@pytest.mark.parametrize("name", ["evaluations", "population", "task_items", "repair_sequences", "heal_batch"])
def test_a_count_below_one_is_refused(name):
    with pytest.raises(InvalidRecipe, match=f"{'.'.join(OPTIONS[name].path)}: must be at least 1"):
        Recipe.of(base="m", **{name: 0})


BEFORE_GROUPS = [
    ({"base": "m"}, "93a32a9a7262cf16", "ffec27dc807d4e70"),
    (
        {
            "base": "ns/model@main+ns/lora",
            "ratio": 0.3,
            "output": "elsewhere",
            "device": "cuda:1",
            "push_to": "me/x",
            "public": True,
            "create_pr": True,
            "commit_message": "m",
            "overwrite": True,
        },
        "b20f708d95b1ab6f",
        "9af36b8d73b179fb",
    ),
    (
        {"base": "m", "keep_layers": 12, "method": "halves", "search": "greedy", "objective": "perplexity", "seed": 7},
        "eab12414f13a7266",
        "59b7375b25bafa51",
    ),
    (
        {"base": "m", "drop": ["3,6", "21-28"], "baselines": ["last", "window"], "data": "folder"},
        "f0e08ab78137f19f",
        "60b1252d908fe514",
    ),
    (
        {"base": "m", "drop_layers": 4, "method": "intervals", "rules": "mean", "norms": "follow", "dtype": "bfloat16"},
        "ae2bb0ab63345533",
        "b29ef4da1e30c2a7",
    ),
    (
        {"base": "m", "search": "nsga2", "population": 24, "offspring": 24, "evaluations": 600},
        "2318abc1bc053286",
        "1ece58ce1ed3793f",
    ),
    (
        {
            "base": "m",
            "method": "stitch",
            "variants": ["ns/a", "ns/b+ns/lora@v1"],
            "merges": ["slerp", "ties:0.5"],
            "mix_halves": True,
            "tune": 16,
            "tune_items": 9,
            "memory": 2.5,
        },
        "f89c94e149c12f0a",
        "99f2b8829d7d313f",
    ),
    (
        {
            "base": "m",
            "method": "stitch",
            "variants": ["ns/a", "ns/b+ns/lora@v1"],
            "drop_layers": 2,
            "search": "smac",
            "search_tasks": "ns/quiz:all",
            "objective": "doubt",
            "search_items": 6,
            "selection_items": 7,
        },
        "5d238e5cc4805e40",
        "87b8adc53aca5395",
    ),
    (
        {
            "base": "m",
            "method": "width",
            "latency": 0.6,
            "levels": 8,
            "multiple_of": 16,
            "damping": 0.02,
            "library_sequences": 64,
            "library": "levels",
        },
        "7a581a245ee31efb",
        "36af3681534bcb47",
    ),
    (
        {"base": "m", "method": "width+depth", "ratio": 0.4, "search": "evopress", "heal": "250k"},
        "1ce1ba122b0fb61e",
        "5a97bc8f3f86e3d5",
    ),
    (
        {
            "base": "m",
            "repair": True,
            "reach": "gap",
            "repair_sequences": 96,
            "repair_finalists": 2,
            "search_heal": "1.5M",
        },
        "b27f6d0e6a1d47ad",
        "58590cec563cd51d",
    ),
    (
        {
            "base": "m",
            "heal": "1M",
            "heal_method": "dora",
            "heal_rank": 8,
            "heal_alpha": 16,
            "heal_kl": 0,
            "heal_ce": 1,
            "heal_top_k": 64,
            "heal_lr": 0.0001,
            "heal_batch": 4,
            "heal_checks": 3,
            "heal_patience": 2,
            "gradient_checkpointing": True,
            "keep_adapter": True,
        },
        "19cf312ca63a7525",
        "ffec27dc807d4e70",
    ),
    (
        {"base": "m", "heal": 2000, "heal_method": "full", "heal_lr": 5e-06, "heal_alpha": 1e16},
        "b596a5fcd59b97bf",
        "ffec27dc807d4e70",
    ),
    (
        {
            "base": "m",
            "tasks": ["quiz.jsonl", "arc_easy"],
            "task_items": 12,
            "lm_eval": "arc_easy",
            "lm_eval_limit": 50,
            "report_sequences": 24,
        },
        "9848d0b00d6df169",
        "ffec27dc807d4e70",
    ),
    (
        {
            "base": "m",
            "sequences": 24,
            "selection_sequences": 18,
            "length": 512,
            "data": ["ns/text:config:column", "a.txt"],
            "allow_pickle": True,
            "trust_remote_code": True,
            "force_test_split": True,
        },
        "db1c2a6fe8d9c44f",
        "424557b95b80d186",
    ),
    (
        {
            "base": "modèle/日本",
            "ratio": 0.3333333333333333,
            "heal_kl": 1e-07,
            "rules": ["keep", "difference:0.5"],
            "commit_message": '"quoted"\n',
        },
        "159b047ae28ffb8d",
        "e910655b162b8f47",
    ),
]
"""Fields, digest and search digest of recipes as they were when all fields lay flat, taken from that code."""


@pytest.mark.parametrize(("fields", "digest", "search_digest"), BEFORE_GROUPS)
def test_results_and_journals_of_before_are_known_again(fields, digest, search_digest):
    recipe = Recipe.of(**fields)
    assert (recipe.digest, recipe.search_digest) == (digest, search_digest)


def test_a_field_that_is_newer_than_the_digests_counts_where_it_is_used(monkeypatch):
    plain, used = Recipe.of(base="m"), Recipe.of(base="m", norms="follow")
    assert set(ORDER) <= set(OPTIONS) and len(set(ORDER)) == len(ORDER)
    monkeypatch.setattr("hf_prune.recipe.recipe.ORDER", tuple(name for name in ORDER if name != "norms"))
    assert list(used.flat()).index("norms") >= len(ORDER) - 1 and len(used.flat()) == len(OPTIONS)
    without = used.digest, plain.digest
    monkeypatch.setattr("hf_prune.recipe.recipe.NOT_IDENTITY", NOT_IDENTITY | {"norms"})
    assert used.digest == plain.digest == without[1] != without[0]


def test_a_report_keeps_what_was_changed_by_flat_names():
    recipe = Recipe.of(base="m", heal={"rank": 8, "tokens": "1M"}, size=0.3, drop=[], data="folder")
    assert recipe.changed() == {"base": "m", "ratio": 0.3, "data": ["folder"], "heal": 10**6, "heal_rank": 8}
    assert list(recipe.changed()) == ["base", "ratio", "data", "heal", "heal_rank"]


def test_a_recipe_with_other_values():
    recipe = Recipe.of(base="m", ratio=0.3, heal_rank=8)
    other = recipe.replace(output="there", heal={"tokens": 5}, size={"ratio": None, "keep_layers": 3})
    assert other == Recipe.of(base="m", output="there", heal=5, heal_rank=8, keep_layers=3)
    assert recipe.size.ratio == 0.3
    with pytest.raises(InvalidRecipe, match="heal.rank: must be at least 1"):
        recipe.replace(heal_rank=0)
