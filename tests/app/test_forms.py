from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.app.forms import DEMO, SPECIALISTS, TITLES, Form, examples, in_words_of_the_page, recipe_of
from hf_prune.errors import HfPruneError, InvalidRecipe
from hf_prune.methods import METHODS
from hf_prune.recipe import Recipe
from hf_prune.recipe.fields import Heal, Publish, Trust

NAMES = list(TITLES)
LAYERS, STITCHED, NARROW = (METHODS[name].title for name in ("collapse", "stitch", "width"))
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=60), st.lists(st.integers())
)


def test_a_form_is_the_recipe_it_says():
    made = recipe_of(Form("ns/model", method=NARROW, size=40, heal="1M", evaluations=99, seed=3), strangers=True)
    assert made == Recipe.of(base="ns/model", method="width", ratio=0.4, heal="1M", evaluations=99, seed=3)
    assert recipe_of(Form("ns/model"), strangers=True) == Recipe.of(base="ns/model", ratio=0.25, repair=True)


def test_every_size_at_once_is_a_front():
    made = recipe_of(Form("ns/model", front=True), strangers=True)
    assert (made.search.searcher, made.size.ratio) == ("nsga2", None)


def test_variants_are_lines_of_repos_and_belong_to_stitching():
    made = recipe_of(Form("ns/model", "ns/a\n ns/b@main \n\n", STITCHED), strangers=True)
    assert made.variants == ("ns/a", "ns/b@main") and made.tune.steps
    assert not recipe_of(Form("ns/model", "ns/a", STITCHED, tune=False), strangers=True).tune.steps
    assert not recipe_of(Form("ns/model", "ns/a", STITCHED, front=True), strangers=True).tune.steps
    with pytest.raises(InvalidRecipe, match="Variants are for stitching"):
        recipe_of(Form("ns/model", "ns/a", LAYERS), strangers=True)


@pytest.mark.parametrize("form", examples().values(), ids=list(examples()))
def test_every_example_is_a_recipe_of_the_bundled_family(form):
    made = recipe_of(form, strangers=True)
    assert Path(made.base, "config.json").is_file() and made.data.text
    assert len(made.variants) == (len(SPECIALISTS) if form.variants else 0)


def test_what_is_judged_by_and_in_how_much_memory_is_the_visitors():
    asked = {"data": "self\nns/text:en", "tasks": "ns/quiz:easy", "objective": "perplexity", "time": "30m"}
    made = recipe_of(Form("ns/model", **asked, dtype="bfloat16", length="128", windows="8"), strangers=True)
    assert (made.data.text, made.tasks.names) == (("self", "ns/text:en"), ("ns/quiz:easy",))
    assert (made.search.objective, made.machine.time, made.machine.dtype) == ("perplexity", 1800, "bfloat16")
    assert (made.data.length, made.data.sequences, made.data.selection_sequences) == (128, 8, 8)
    own = recipe_of(Form(DEMO, data="ns/text"), strangers=True)
    assert own.data.text == ("ns/text",) and own.tasks.names, "text of one's own, the tasks of the demo"


@pytest.mark.parametrize(
    "entry", ["/etc/passwd", "texts.jsonl", "self:/etc/passwd", "../x/y", "file:///a/b", "a/b:c:d:e"]
)
def test_strangers_name_data_sets_of_the_hub_and_nothing_else(entry, tmp_path):
    for field in ("data", "tasks"):
        with pytest.raises(InvalidRecipe, match="no data set of the Hub"):
            recipe_of(Form("ns/model", **{field: entry}), strangers=True)
        here = tmp_path / "mine.jsonl"
        assert str(here) in str(recipe_of(Form("ns/model", **{field: str(here)}), strangers=False))


@pytest.mark.parametrize("field", ["objective", "dtype", "length", "windows"])
def test_what_is_chosen_is_one_of_the_choices(field):
    for value in ("999", None, 7, ["kl"]):
        with pytest.raises(InvalidRecipe, match="is one of"):
            recipe_of(Form("ns/model", **{field: value}), strangers=True)


def test_options_are_fields_of_the_page_where_it_has_them():
    said = in_words_of_the_page(
        "Leave out --repair, or --no-repair; --heal 1M takes --dtype bfloat16 and --keep-adapter."
    )
    assert said == (
        "Leave out “Repair”, or no “Repair”; “Train on so many tokens afterwards” 1M takes “Precision” bfloat16 and "
        "--keep-adapter."
    )


@pytest.mark.parametrize(
    "name", ["/etc", "..", "../x", "~/models", "file:///etc", "a/b/c", "ns/model; rm", "", " ", "\0", "x" * 5000]
)
def test_strangers_name_repos_and_nothing_else(name):
    with pytest.raises(InvalidRecipe):
        recipe_of(Form(name), strangers=True)


def test_a_folder_of_the_server_is_no_repo_for_strangers(tmp_path, monkeypatch):
    (tmp_path / "ns" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRecipe, match="no name of a repo"):
        recipe_of(Form("ns/model"), strangers=True)
    assert recipe_of(Form("ns/model"), strangers=False).base == "ns/model"


@given(st.lists(ANYTHING, min_size=10, max_size=10), st.sets(st.integers(0, 9)))
def test_no_input_of_any_field_breaks_anything_but_a_sentence(values, sound):
    good = [DEMO, "", LAYERS, 25, False, True, True, "0", 0, 0]
    values = [good[i] if i in sound else v for i, v in enumerate(values)]
    try:
        made = recipe_of(Form(*values), strangers=True)
    except HfPruneError as e:
        assert 10 < len(str(e)) < 700
    else:
        assert made.trust == Trust() and made.publish == Publish()
        assert made.heal == Heal(tokens=made.heal.tokens)


@given(st.sampled_from(NAMES), st.floats(1, 90), st.booleans(), st.sampled_from(["0", "250k", "1M"]))
def test_what_the_page_offers_is_always_a_recipe(method, size, front, heal):
    variants = "\n".join(SPECIALISTS) if METHODS[TITLES[method]].several else ""
    made = recipe_of(Form(DEMO, variants, method, size, front, heal=heal), strangers=True)
    assert made.method == TITLES[method]
