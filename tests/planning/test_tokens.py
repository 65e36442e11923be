"""What a plan says of tokens is what a run then keeps; text of a language alone decides where that is asked for."""

import json

import pytest

from hf_prune import hub
from hf_prune.errors import InvalidData, InvalidRecipe, UnsupportedArchitecture
from hf_prune.planning import plan, plans
from hf_prune.report.text import plan_rows
from hf_prune.session.inputs import open_inputs
from tests import runs
from tests.models.vocabulary.prose import PROSE
from tests.session.test_vocabulary import ROWS, with_tokenizer

HALF = len(PROSE) // 2


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base whose tokenizer is made of merges, and text named by two languages."""
    home = tmp_path_factory.mktemp("tokens")
    with_tokenizer(home / "base")
    for name, lines in {"text.en": PROSE[:HALF], "de": PROSE[HALF:], "sums": ["1 + 2 = 3"] * 3}.items():
        rows = [json.dumps({"text": f"{line} {number}"}) for number, line in enumerate(lines * 4)]
        (home / f"{name}.jsonl").write_text("\n".join(rows))
    return home


def asked(home, *names, **changes):
    data = tuple(str(home / f"{name}.jsonl") for name in names)
    fields = {"base": str(home / "base"), "drop": ("2",), "baselines": (), "data": data, **changes}
    return runs.recipe(home, **fields)


def planned(recipe):
    return plan(recipe, hub.peek(recipe.base))


@pytest.mark.parametrize("vocabulary", ["auto", "languages:de"])
@pytest.mark.parametrize("size", [{}, {"drop": (), "ratio": 0.15}])
def test_a_plan_foretells_what_a_run_keeps(home, vocabulary, size):
    recipe = asked(home, "text.en", "de", vocabulary=vocabulary, **size)
    found, inputs = planned(recipe), open_inputs(recipe, (), lambda: recipe.data.text)
    cut = inputs.vocabulary
    assert found.kept_tokens == cut["kept"] < found.tokens == ROWS
    assert found.trim.growth == pytest.approx(cut["bytes_per_token_dense"] / cut["bytes_per_token"] - 1)
    assert found.target.remove == inputs.target.remove
    said = plan_rows(found)["vocabulary"]
    assert f"{cut['kept']} are kept by your text" in said


def test_a_large_vocabulary_is_proposed_to_be_trimmed_with_what_that_saves(home, monkeypatch):
    words = {"drop": (), "ratio": 0.4}
    assert planned(asked(home, "sums", **words)).trim is None
    monkeypatch.setattr(plans, "LARGE", 0.1)
    found, trimmed = (planned(asked(home, "sums", vocabulary=v, **words)) for v in ("none", "auto"))
    assert found.kept_tokens == ROWS and found.trim == trimmed.trim and found.trim.kept < 400
    assert found.trimmed_layers == trimmed.result_layers > found.result_layers
    said = plan_rows(found)["vocabulary"]
    assert f"--vocabulary auto would keep {found.trim.kept} by your text" in said
    assert f"{found.trimmed_layers} of {runs.DEPTH} layers would stay" in said


def test_text_that_is_not_here_is_counted_later(home):
    found = planned(asked(home, data=("self",), vocabulary="auto", drop=(), ratio=0.3))
    assert found.trim is None and "once the text has been read" in plan_rows(found)["vocabulary"]


def test_only_text_whose_name_says_the_language_decides(home):
    kept = {}
    for vocabulary in ("auto", "languages:de", "languages:de,en"):
        recipe = asked(home, "text.en", "de", "sums", vocabulary=vocabulary)
        kept[vocabulary] = {*open_inputs(recipe, (), lambda r=recipe: r.data.text).base.kept}
    alone = asked(home, "de", vocabulary="auto")
    assert kept["languages:de"] == {*open_inputs(alone, (), lambda: alone.data.text).base.kept}
    assert kept["languages:de"] != kept["languages:de,en"]


def test_a_language_without_text_and_a_word_that_is_no_code_are_told(home):
    recipe = asked(home, "text.en", "sums", vocabulary="languages:en,fr")
    for begun in (lambda: planned(recipe), lambda: open_inputs(recipe, (), lambda: recipe.data.text)):
        with pytest.raises(InvalidData, match=r"says by its name that it is fr; name some with --data"):
            begun()
    for wrong in ("languages:", "languages:english", "languages:en,,de"):
        with pytest.raises(InvalidRecipe, match="by their codes"):
            asked(home, vocabulary=wrong)
    assert asked(home, vocabulary="languages: de,en,de").vocabulary == "languages:de,en"


def test_a_tokenizer_that_cannot_be_cut_stops_a_plan_that_asks_for_it_alone(home, tmp_path):
    with_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    recipe = asked(home, "text.en", base=str(tmp_path / "base"))
    assert planned(recipe).trim is None
    with pytest.raises(UnsupportedArchitecture, match="cannot be read"):
        planned(recipe.replace(vocabulary="auto"))
