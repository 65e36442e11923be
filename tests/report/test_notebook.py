"""What a notebook shows of plans, reports, results and runs."""

import io
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

import hf_prune
from hf_prune import Recipe, plan
from hf_prune.blueprint import Fidelity, Outcome, Trial
from hf_prune.errors import InvalidRecipe
from hf_prune.events import Advanced, Finished, Scored, Stage
from hf_prune.pipeline import Result
from hf_prune.planning import Plan
from hf_prune.recipe.fields import Fields, Group
from hf_prune.report.notebook import Bars
from hf_prune.report.schema.report import Report
from tests.runs import base, recipe

SIZES = {"parameters": 4_000_000, "bytes": 8_000_000, "layers": 4, "kv_bytes_per_token": 4}
RAW = {
    "size": {"dense": SIZES, "pruned": {**SIZES, "parameters": 3_000_000, "layers": 3}},
    "text": {
        "<b>x": {"dense": {"perplexity": 5.0, "ci": [4, 6]}, "pruned": {"perplexity": 9.0, "ci": [8, 10]}, "kl": 1}
    },
    "layers": [{"source": i, "fate": "removed" if i == 2 else "kept"} for i in range(4)],
}


def test_a_report_is_a_page_with_its_figure_and_nothing_of_it_is_markup():
    page = Report.from_dict(RAW, "x")._repr_html_()
    assert "&lt;b&gt;x" in page and "<b>x" not in page and "4.0M" in page and "3.0M" in page
    assert re.search(r"src='data:image/png;base64,iVBOR\w", page)


def test_a_result_shows_the_figures_of_its_folder(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/layers.png").write_bytes(b"\x89PNG\r\n")
    page = Result(tmp_path, RAW)._repr_html_()
    assert "iVBORw0K" in page and str(tmp_path) in page and "9" in page


def test_a_plan_is_made_of_a_recipe_alone_and_is_a_page(tmp_path):
    found = plan(recipe(tmp_path, drop_layers=2))
    assert isinstance(found, Plan) and found.result_layers == 4 and found.fits and found.seconds
    page = replace(found, base="<i>m", left_out=("much",))._repr_html_()
    assert "&lt;i&gt;m" in page and "<i>m" not in page and "it fits here" in page and "much" in page


def test_a_bar_moves_on_from_stage_to_stage():
    out = io.StringIO()
    trial = Outcome(Trial((0,), Fidelity(4)), (2.5,))
    with Bars(partial(tqdm, file=out, mininterval=0)) as bars:
        for event in (
            Stage("search", "of <all>"),
            Scored((trial,), 3, 9, 2.5),
            Stage("heal"),
            Advanced("heal", 1, 2, 0.5),
            Finished("small", {}),
        ):
            bars.show(event)
    said = out.getvalue()
    assert "search: of <all>" in said and "3/9" in said and "best 2.5" in said and "1/2" in said and "loss 0.5" in said
    assert "finished: small" in said


def test_every_public_name_is_there_and_told():
    for name in hf_prune.PUBLIC:
        value = getattr(hf_prune, name)
        assert callable(value) and name in hf_prune.__doc__ and value.__doc__
    assert set(hf_prune.PUBLIC) < set(dir(hf_prune)) and (Path(hf_prune.__file__).parent / "py.typed").is_file()


def test_a_recipe_says_what_its_fields_are():
    for name, field in Fields.model_fields.items():
        assert f"{name}: {Recipe.model_fields[name].description.splitlines()[0]}" in Recipe.__doc__
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            for inner, one in field.annotation.model_fields.items():
                assert f"{inner}: {one.description}" in field.annotation.__doc__


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rato": 0.25}, "did you mean 'ratio'"),
        ({"ratio": 7}, "between 0 and 1"),
        ({"heal": {"rank": 0}}, "at least 1"),
    ],
)
def test_python_is_told_in_the_same_words(asked, said):
    with pytest.raises(InvalidRecipe, match=said) as caught:
        Recipe(base="m", **asked)
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


def test_push_refuses_what_is_no_model(tmp_path):
    with pytest.raises(InvalidRecipe, match="no config.json"):
        hf_prune.push(base(tmp_path / "x").parent, "ns/x")
