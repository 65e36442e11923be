"""Whatever a stranger may count is bounded: layers, experts, parts, pages, files."""

import json

import pytest

from hf_prune import hub
from hf_prune.app import results as pages
from hf_prune.blueprint import Blueprint
from hf_prune.errors import BrokenCheckpoint, HfPruneError, InvalidBlueprint, InvalidRecipe, InvalidReport
from hf_prune.hub.folders import LONGEST_FILE, read_card
from hf_prune.models.configs import config_of, skeleton
from hf_prune.models.headers import weigh
from hf_prune.recipe import Recipe
from hf_prune.report.schema.model import SourceCard
from hf_prune.report.schema.report import Report
from hf_prune.report.text import report_lines
from tests.fuzz.readers import BLUEPRINT, WHOLE, model
from tests.fuzz.test_readers import bounded
from tests.report.test_card import make_report


def folder(path, **changes):
    files = model()
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "config.json").write_text(json.dumps({**json.loads(files["config.json"]), **changes}))
    return str(path)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_local_experts", "text_config"])
def test_layers_and_experts_of_a_config_are_bounded(tmp_path, key):
    value = {"num_hidden_layers": 10**9} if key == "text_config" else 10**9
    with bounded(), pytest.raises(BrokenCheckpoint, match=f"config.json of .* says .*{key}.* 1000000000"):
        weigh(hub.peek(folder(tmp_path, **{key: value})))


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "max_position_embeddings", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, 10**9, 10**18, 10**400])
def test_other_numbers_of_a_config_are_a_value_or_a_sentence(tmp_path, key, value):
    with bounded():
        try:
            weigh(hub.peek(folder(tmp_path, **{key: value})))
        except HfPruneError as e:
            assert "\n" not in str(e) and len(str(e)) < 1000


def test_lists_of_a_config_are_bounded(tmp_path):
    with bounded(), pytest.raises(HfPruneError):
        weigh(hub.peek(folder(tmp_path, layer_types=["full_attention"] * 10**6, num_hidden_layers=4000)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": WHOLE["layers"] * 100_000}, "200000 layers"),
        ({"sources": WHOLE["sources"] * 65}, "65 sources"),
        ({"layers": [{**WHOLE["layers"][0], "parts": WHOLE["layers"][0]["parts"] * 300}]}, "layers.0.parts has 300"),
        ({"layers": [{"parts": [{"source": 0, "layer": 0, "weight": 10**400}]}]}, "layers.0 has a weight"),
        ({"layers": [{"parts": [{"source": 0, "layer": 0, "weight": True}]}]}, "layers.0 has a weight"),
        ({"layers": [WHOLE["layers"][0], {**WHOLE["layers"][0], "mlp_level": 0.5}]}, "layers.1.mlp_level"),
        ({"embed": 1}, "embed names a source"),
        ({"sources": [{"repo": 3, "revision": "a"}]}, "sources.0 must be"),
    ],
)
def test_a_blueprint_is_bounded_and_says_which_part_is_wrong(change, said):
    with bounded(), pytest.raises(InvalidBlueprint, match=said) as e:
        Blueprint.from_json(json.dumps({**WHOLE, **change}))
    assert len(str(e.value)) < 300


def test_a_blueprint_as_it_is_written_is_within_the_bounds():
    assert Blueprint.from_json(json.dumps(BLUEPRINT)).canonical()


@pytest.mark.parametrize("many", ["layers", "samples", "corpora", "a sentence"])
def test_a_page_of_a_report_is_bounded(many):
    raw = make_report()
    if many == "layers":
        raw["layers"] = raw["layers"] * 6000
    elif many == "samples":
        raw["generation"]["samples"] = raw["generation"]["samples"] * 30_000
    elif many == "corpora":
        raw["text"] = {f"corpus {n}": raw["text"]["all"] for n in range(20_000)}
    else:
        raw["method"] = "x" * 9_400_000
    with bounded():
        try:
            found = Report.from_json(json.dumps(raw), "report.json")
        except InvalidReport as e:
            assert "report.json" in str(e) and len(str(e)) < 300
        else:
            assert len(pages.html(found)) < 10**6 and sum(map(len, report_lines(found))) < 10**6


def test_a_report_is_refused_by_its_length_before_it_is_parsed(tmp_path):
    (tmp_path / "report.json").write_text("[" * (Report.longest + 1))
    with bounded(), pytest.raises(InvalidReport, match="report.json"):
        Report.load(tmp_path / "report.json")


def test_a_file_that_is_read_whole_is_refused_by_its_length(tmp_path):
    path = folder(tmp_path)
    with (tmp_path / "config.json").open("r+b") as file:
        file.truncate(LONGEST_FILE + 1)
    with bounded(), pytest.raises(BrokenCheckpoint, match="config.json of .* has .* bytes"):
        hub.peek(path)


@pytest.mark.parametrize(
    "wrong",
    [{"rules": "x" * 5000}, {"method": "x" * 5000}, {"x" * 5000: 1}, {"seed": 10**4000}, {"keep_layers": "9" * 6000},
     {"size": {"drop": "x" * 5000}}],
)  # fmt: skip
def test_what_is_said_of_a_recipe_is_short(wrong):
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.of(base="ns/tiny", **wrong)
    assert len(str(caught.value)) < 1500 and str(caught.value).endswith((".", "?"))


def test_aliases_of_a_card_do_not_grow():
    names = "abcdefghijklmnop"
    grown = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip(names, names[1:], strict=False))
    with bounded():
        found = read_card(
            f"---\na: &a [x, x, x, x, x, x, x, x, x]\n{grown}language: *p\nlicense: [*p]\ntags: *b\n---\n"
        )
        assert len(str(found)) < 1000 and SourceCard(repo="a", **found)


@pytest.mark.parametrize("key", ["model_type", "hidden_act", "dtype"])
def test_what_is_said_of_a_name_without_end_is_short(key):
    with pytest.raises(HfPruneError) as caught:
        skeleton(config_of({"model_type": "llama", key: "x" * 5000}, "ns/tiny"))
    assert len(str(caught.value)) < 1000 and str(caught.value).endswith(".")
