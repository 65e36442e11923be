"""Reports of strangers: whatever is in them, they are shown as text or refused in a sentence."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_prune.app import results
from hf_prune.blueprint import Blueprint, LayerSpec, Part, Source
from hf_prune.errors import InvalidRecipe
from hf_prune.report.schema.model import Member
from hf_prune.report.schema.report import Report

EVIL = "<script>alert(1)</script>"
REPORT = {
    "layers": [{"source": 0, "fate": "kept"}, {"source": 1, "fate": "removed"}],
    "size": {
        "dense": {"parameters": 100, "layers": 2, "bytes": 200, "kv_bytes_per_token": 8},
        "pruned": {"parameters": 60, "layers": 1, "bytes": 120, "kv_bytes_per_token": 4},
    },
    "text": {"all": {"dense": {"perplexity": 2.0, "ci": [1, 3]}, "pruned": {"perplexity": 3.0, "ci": [2, 4]}}},
    "objective": "kl",
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(EVIL),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def shown(folder, report):
    (folder / "report.json").write_text(json.dumps(report))
    try:
        return results.earlier(str(folder), strangers=False)
    except InvalidRecipe as e:
        assert "holds no report of hf_prune" in str(e)
        return ""


def test_a_report_cannot_bring_markup_along(tmp_path):
    assert "layer 0: kept" in shown(tmp_path, REPORT)
    report = copy.deepcopy(REPORT)
    report["text"][EVIL] = report["text"]["all"]
    report["text"]["other"] = report["text"]["all"]
    found = shown(tmp_path, report)
    assert "<script" not in found and "&lt;script&gt;" in found
    report["layers"][0]["source"] = EVIL
    assert shown(tmp_path, report) == "", "a layer has a number"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(["layers", "size", "text", "objective"]), ANYTHING)
def test_any_value_anywhere_is_shown_as_text_or_refused(tmp_path, key, value):
    assert "<script" not in shown(tmp_path, {**REPORT, key: value})


def test_a_stranger_names_repos_only(tmp_path, monkeypatch):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/report.json").write_text(json.dumps(REPORT))
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "runs/mine"), "runs/mine"):
        with pytest.raises(InvalidRecipe, match="Name a repo"):
            results.earlier(name, strangers=True)


def test_a_member_is_one_of_the_front():
    made = json.loads(Blueprint((Source("m", "r"),), (LayerSpec((Part(0, 0),)),)).to_json())
    front, report = (
        (Member(removed_ratio=0.5, layers=1, parameters=50, kl=0.3, blueprint=made),),
        Report.from_dict(REPORT),
    )
    found = results.member(report, front, 0)
    assert "50.0 %" in found and found.count("<b class='kept'") == found.count("<b class='removed'") == 1
    for number in (-1, 1, "0", None, 0.0):
        with pytest.raises(InvalidRecipe, match="no such model"):
            results.member(report, front, number)
