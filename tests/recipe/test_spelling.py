"""Flat, in groups, or both: spellings of one recipe, and files that a stranger wrote."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.errors import InvalidRecipe
from hf_prune.recipe import OPTIONS, Recipe, flagged, flatten, nest, spelled
from hf_prune.recipe.fields import Heal, Size
from hf_prune.recipe.spelling import GROUPS
from tests.recipe.test_recipe import BESIDE, another

PACKAGE = Path(__file__).parents[2] / "hf_prune"


@pytest.mark.parametrize("name", OPTIONS)
def test_a_field_may_stand_flat_or_in_its_group_or_in_a_group_of_python(name):
    option, beside = OPTIONS[name], {"base": "m", **BESIDE.get(name, {})}
    value = another(name, option.of(Recipe.of(**beside)))
    flat = Recipe.of(**{**beside, name: value})
    if option.path == (name,):
        return
    group, inner = option.path
    assert option.of(flat) == value
    assert Recipe.of(**beside, **{group: {inner: value}}) == flat
    assert Recipe.of(**beside, **{group: GROUPS[group](**{inner: value})}) == flat
    assert Recipe(**beside, **{group: {inner: value}}) == Recipe(**{**beside, name: value}) == flat


@pytest.mark.parametrize(
    ("group", "value", "name"),
    [
        ("heal", "1M", "heal"),
        ("search", "greedy", "search"),
        ("repair", True, "repair"),
        ("data", ["a", "b"], "data"),
        ("tasks", "quiz.jsonl", "tasks"),
        ("size", 0.25, "ratio"),
        ("publish", "ns/small", "push_to"),
    ],
)
def test_a_value_for_a_group_is_its_main_field(tmp_path, group, value, name):
    (tmp_path / "r.yaml").write_text(f"base: m\n{group}: {value}\n")
    assert Recipe.load(tmp_path / "r.yaml") == Recipe.of(base="m", **{name: value})


def test_a_group_without_a_main_field_says_what_it_takes():
    with pytest.raises(InvalidRecipe, match="trust is a group and takes fields, not a value: pickle, remote_code"):
        Recipe.of(base="m", trust=True)


def test_both_forms_merge_within_a_file_and_with_flags(tmp_path):
    (tmp_path / "r.yaml").write_text("base: m\nheal_rank: 8\nheal:\n  tokens: 1M\n  kl: 0.5\nratio: 0.5\n")
    assert Recipe.load(tmp_path / "r.yaml", heal_rank=16, heal={"ce": 2}, ratio=None, keep_layers=4) == Recipe.of(
        base="m", heal="1M", heal_rank=16, heal_kl=0.5, heal_ce=2, keep_layers=4
    )


def test_one_field_with_two_values_is_one_sentence():
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.of(base="m", heal={"rank": 8}, heal_rank=16)
    assert str(caught.value) == (
        "Recipe: heal.rank and heal_rank are one field with two values; leave one of them out."
    )
    with pytest.raises(InvalidRecipe, match="one field with two values"):
        Recipe(base="m", size=0.3, ratio=0.4)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("search_heal", "1M", 10**6),
        ("search_tasks", "a", ["a"]),
        ("heal_alpha", 8, 8.0),
        ("merges", ("slerp",), "slerp"),
    ],
)
def test_one_value_in_two_spellings_is_no_contradiction(name, one, other):
    group, inner = OPTIONS[name].path
    assert Recipe.of(base="m", **{name: one, group: {inner: other}}) == Recipe.of(base="m", **{name: one})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"heal": {"rnak": 8}}, "unknown key 'rnak' in heal; did you mean 'rank'?"),
        ({"heal": {"heal_rank": 8}}, "unknown key 'heal_rank' in heal; did you mean 'rank'?"),
        ({"search": {"lenght": 8}}, "unknown key 'lenght' in search; did you mean 'length'? It is data.length."),
        ({"search": {"heal_rank": 8}}, "unknown key 'heal_rank' in search; it is heal.rank."),
        ({"size": {"seed": 8}}, "unknown key 'seed' in size; it stands outside of groups."),
        ({"objectiv": "kl"}, "unknown key 'objectiv'; did you mean 'objective'? It is search.objective."),
        ({"rank": 8}, "unknown key 'rank'; it is heal.rank."),
        ({"items": 8}, "unknown key 'items'; it is tasks.items or tune.items."),
        ({"seeed": 8}, "unknown key 'seeed'; did you mean 'seed'?"),
        ({"trust": {True: 1}}, "unknown key 'True' in trust;"),
        ({"xyzzy": 8}, "unknown key 'xyzzy'; known keys: base, variants,"),
        ({"x" * 10**6: 8}, "unknown key 'xxxx"),
    ],
)
def test_an_unknown_key_says_what_is_near_and_where_it_lives(fields, words):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.of(base="m", **fields)
    assert str(caught.value).startswith(f"Recipe: {words}") and len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@given(st.dictionaries(st.sampled_from(list(OPTIONS)), st.integers()))
def test_grouping_and_flattening_undo_each_other(flat):
    assert flatten(nest(flat)) == flat and nest(flatten(nest(flat))) == nest(flat)


def test_what_an_older_report_knew_stays_readable():
    assert nest({"heal_rank": 8, "ratoi": 0.3, "base": "m"}) == {"base": "m", "heal": {"rank": 8}, "ratoi": 0.3}


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "unknown key 'a'"),
        (BOMB.replace("a: &a", "data: &a") + "base: m\n", "unknown key 'b'"),
        ("base: m\ndata: &d {text: *d}\n", "data.text"),
        ("base: m\ndata: &d [*d]\n", "data.text.0"),
        ("base: m\nheal: &h [[*h]]\n", "not a list"),
        ("base: m\nheal: {tokens: {tokens: {tokens: 1}}}\n", "not a dict"),
        ("base: m\ndata: {text: {text: a}}\n", "data.text"),
        ("base: " + "[" * 10**5, "r.yaml"),
        ("base: " + "{a: " * 10**5, "r.yaml"),
        ("a: &a {base: m}\nb: {<<: [*a, *a]}\n", "'<<' is not read here"),
        ("base: m\nheal: 1M\nheal: {rank: 8}\n", "'heal' stands twice"),
        ("base: m\nheal: {rank: 8, rank: 16}\n", "'rank' stands twice"),
        ("base: 2024-99-99\n", "r.yaml"),
        ("base: !!python/object/apply:os.system [true]\n", "r.yaml"),
        ("base: !!timestamp m\n", "r.yaml"),
        ("seed: " + "9" * 5000, "r.yaml"),
        ("1: 2\n", "unknown key '1'"),
        ("drop: 0-999999999999\nbase: m\n", "drop takes layer numbers"),
        ("base: m\nmemory: .nan\n", "finite"),
        ("base: m\nseed: -1\n", "at least 0"),
    ],
)
def test_a_strangers_file_is_refused_in_one_sentence(tmp_path, text, words):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert words in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_aliases_are_read_where_they_make_sense(tmp_path):
    (tmp_path / "r.yaml").write_text("base: m\ntasks:\n  names: &quiz [a.jsonl]\n  search: *quiz\n")
    assert Recipe.load(tmp_path / "r.yaml") == Recipe.of(base="m", tasks="a.jsonl", search_tasks="a.jsonl")


def test_a_field_is_spelled_with_dashes_and_a_variant_one_by_one():
    assert (spelled("heal_lr"), spelled("variants"), spelled("push_to")) == ("--heal-lr", "--variant", "--push-to")
    assert flagged("variants", ["a", "b"]) == ["--variant", "a", "--variant", "b"]
    assert flagged("repair", True) == ["--repair"] and flagged("heal", 10) == ["--heal", "10"]


def test_flat_names_can_still_be_read_and_say_where_they_went():
    recipe = Recipe.of(base="m", ratio=0.3)
    with pytest.warns(DeprecationWarning, match=r"Recipe.ratio is Recipe.size.ratio now"):
        assert recipe.ratio == 0.3
    with pytest.raises(AttributeError, match="nothing"):
        recipe.nothing  # noqa: B018


def test_a_group_is_no_yes_or_no():
    with pytest.raises(TypeError, match="Heal is a group of fields and no yes or no; ask one of them: tokens, "):
        bool(Recipe.of(base="m").heal)
    assert Recipe.of(base="m").heal == Heal() and Recipe.of(base="m", ratio=0.3).size != Size()


def reads(path: Path) -> list[tuple[int, str, ast.AST, ast.AST | None]]:
    """Line, field, node and parent of everything that a file reads from something called recipe."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    return [
        (node.lineno, node.attr, node, above.get(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "recipe"
    ]


@pytest.mark.parametrize(
    "path", [p for p in sorted(PACKAGE.rglob("*.py")) if "recipe" in p.read_text()], ids=lambda p: p.name
)
def test_nobody_reads_flat_names_or_compares_groups(path):
    for line, name, node, parent in reads(path):
        if hasattr(dict, name):
            continue  # the recipe of a report, which is a mapping
        assert name in Recipe.model_fields or hasattr(Recipe, name), f"{path.name}:{line} reads recipe.{name}"
        if name not in GROUPS:
            continue
        assert isinstance(parent, ast.Attribute | ast.Call | ast.keyword | ast.Assign | ast.Tuple), (
            f"{path.name}:{line} asks the group recipe.{name} itself"
        )
        if isinstance(parent, ast.Attribute) and parent.value is node:
            group = GROUPS[name]
            assert parent.attr in group.model_fields or hasattr(group, parent.attr), (
                f"{path.name}:{line}: {parent.attr}"
            )
