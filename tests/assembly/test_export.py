"""What mergekit can say is said, and the rest is refused by name."""

import pytest
import yaml

from hf_prune.assembly.assemble import write
from hf_prune.assembly.mergekit import export_mergekit, mergekit_config
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Mix, Part, Source
from hf_prune.errors import InvalidBlueprint
from tests.oracle import row, variants

SOURCES = (
    Source("ns/base", "a" * 40),
    Source("ns/tuned", "b" * 40),
    Source("ns/base", "a" * 40, "ns/lora@" + "c" * 40),
)


def config(*layers, embed=0, head=0):
    return mergekit_config(Blueprint(SOURCES, tuple(layers), embed, head), row("llama"), ["b", "t", "l"], "float32")


def test_every_layer_is_a_slice_and_every_part_a_source():
    raw = config(LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 2, 0.5), Part(1, 2, 0.5))), LayerSpec((Part(1, 4),)))
    assert raw["merge_method"] == "linear" and raw["parameters"] == {"normalize": False}
    assert [s["sources"][0]["layer_range"] for s in raw["slices"]] == [[0, 1], [2, 3], [4, 5]]
    assert [[(x["model"], x["parameters"]["weight"]) for x in s["sources"]] for s in raw["slices"][1:2]] == [
        [("b", 0.5), ("t", 0.5)]
    ]


def test_what_is_outside_of_the_layers_comes_from_its_parent_alone():
    raw = config(LayerSpec((Part(1, 0),)), LayerSpec((Part(1, 1),)), head=2)
    first, last = (s["sources"] for s in raw["slices"])
    assert [x["model"] for x in first] == ["t", "b"] and [x["model"] for x in last] == ["t", "l"]
    assert first[0]["parameters"]["weight"][0] == {"filter": "embed", "value": 0.0}
    assert first[1]["parameters"]["weight"][0] == {"filter": "embed", "value": 1.0}
    assert last[1]["parameters"]["weight"] == [
        {"filter": "model.norm.", "value": 1.0}, {"filter": "lm_head", "value": 1.0}, {"value": 0.0}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (LayerSpec((Part(0, 0),), repair="ab"), "repaired"),
        (LayerSpec((Part(0, 0),), mlp_level=GONE), "lost a half"),
        (LayerSpec((Part(0, 0),), norms=Part(0, 1)), "norms from one parent"),
        (LayerSpec((Part(0, 0), Part(1, 0)), "slerp"), "merged by slerp"),
        (LayerSpec((Part(0, 0, 0.5), Part(0, 1, 0.5))), "blends two layers of one parent"),
        (LayerSpec((Part(0, 0),), mlp=Mix((Part(0, 0), Part(1, 0)), "ties:0.5")), "merged by ties:0.5"),
    ],
)
def test_what_mergekit_cannot_say_is_refused_in_one_sentence(spec, why):
    with pytest.raises(InvalidBlueprint, match=f"layer 0: it .*{why}.*; publish blueprint.json"):
        config(spec)


def test_a_folder_becomes_yaml_with_pinned_names(tmp_path):
    parents = variants("llama")
    blueprint = Blueprint(tuple(p.source for p in parents), (LayerSpec((Part(0, 0, 0.5), Part(2, 0, 0.5))),))
    write(blueprint, parents, tmp_path)
    text = export_mergekit(tmp_path)
    assert text.startswith(f"# Blueprint {blueprint.digest}.")
    raw = yaml.safe_load(text)
    assert raw["dtype"] == "float32" and raw["slices"][0]["sources"][1]["model"].endswith("@tiny")
    with pytest.raises(InvalidBlueprint, match="3 sources, but 1 names"):
        export_mergekit(tmp_path, ["a"])
    with pytest.raises(InvalidBlueprint, match="no blueprint.json"):
        export_mergekit(tmp_path / "none")
