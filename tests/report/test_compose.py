"""The files beside the weights agree with the run: recipe, report, journal, figures; JSON as the standard has it."""

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.pipeline import run
from hf_prune.recipe import Recipe
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.section import jsonable
from tests.report.test_schema import sections
from tests.runs import recipe

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUES)
def test_whatever_is_measured_becomes_strict_json(value):
    json.loads(json.dumps(jsonable(value), allow_nan=False))


def test_infinities_stay_readable_and_numpy_numbers_are_numbers():
    found = jsonable({"a": math.inf, "b": -math.inf, "c": math.nan, "d": np.float32(0.5), "e": np.int64(3), 4: (1, 2)})
    assert found == {"a": "inf", "b": "-inf", "c": None, "d": 0.5, "e": 3, "4": [1, 2]}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return home, run(recipe(home, ratio=0.3, seed=5))


def test_the_recipe_beside_the_weights_is_what_was_asked_without_paths(done):
    _, result = done
    stored = yaml.safe_load((result.folder / "recipe.yaml").read_text())
    assert (
        stored["size"] == {"ratio": 0.3} and stored["seed"] == 5 and stored["base"] == "base" and "output" not in stored
    )
    assert Recipe.of(**stored).search.evaluations == 24
    assert result.report["recipe"] == Recipe.of(**stored).changed(), "a report keeps flat names"


def test_the_report_names_its_command_seed_and_dense_reference(done):
    _, result = done
    report = result.report
    assert report["command"].startswith("hf-prune compress base") and "--ratio 0.3" in report["command"]
    assert report["seed"] == 5 and report["sources"][0]["revision"].startswith("sha256-")
    assert report["text"]["all"]["dense"]["perplexity"] > 1 and report["hardware"]["cores"] >= 1
    assert {"pull", "check", "calibrate", "baselines", "search", "select", "assemble", "report", "total"} == set(
        report["seconds"]
    )


def test_a_run_writes_every_field_and_no_other(done):
    _, result = done
    written = Report.load(result.folder / "report.json")
    assert written.to_dict() == result.report
    of_several_parents = {"parents", "dense_parent", "teachers", "origins", "ends", "beside_parents"}
    of_fewer_tokens = {"token_cost"}
    assert set(result.report) == set(Report.model_fields) - of_several_parents - of_fewer_tokens
    assert not [section for section in sections(written) if section.model_extra]


def test_the_summary_of_the_search_is_that_of_its_journal(done):
    _, result = done
    trials = [t for line in (result.folder / "journal.jsonl").read_text().splitlines()[1:]
              for t in json.loads(line)["trials"]]  # fmt: skip
    summary = result.report["search_summary"]
    full = [t["values"][0] for t in trials if t["fidelity"] == [4, 0, 0, 0]]
    assert summary["evaluations"] <= len(trials) and summary["best"] >= min(full)
    best = [v for _, v in summary["history"]]
    assert best == sorted(best, reverse=True) and best[-1] == summary["best"]
    assert -1 <= summary["rank_correlation"]["kl"]["spearman"] <= 1
