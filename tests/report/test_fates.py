"""Every source layer has exactly one fate."""

from hf_prune.blueprint import GONE, LayerSpec, Part
from hf_prune.report.fates import fates

SPECS = (
    LayerSpec((Part(0, 0),)),
    LayerSpec((Part(0, 2),), norms=Part(0, 1)),
    LayerSpec((Part(0, 3, 0.25), Part(0, 4, 0.75)), norms=Part(0, 4)),
    LayerSpec((Part(0, 6),), attn_level=GONE),
    LayerSpec((Part(0, 7),), mlp_level=GONE),
)


def test_every_source_layer_has_one_fate():
    found = fates(SPECS, 8)
    names = ["kept", "norms_only", "kept", "merged", "merged", "removed", "attn_removed", "mlp_removed"]
    assert [x.source for x in found] == list(range(8)) and [x.fate for x in found] == names
    assert [x.output for x in found] == [0, 1, 1, 2, 2, None, 3, 4]
    assert [found[i].weight for i in (3, 4, 5)] == [0.25, 0.75, 0.0]


def test_a_layer_without_any_half_is_gone_and_takes_no_place():
    silent = LayerSpec((Part(0, 1),), attn_level=GONE, mlp_level=GONE)
    found = fates((LayerSpec((Part(0, 0),)), silent, LayerSpec((Part(0, 2),), mlp_level=2)), 3)
    assert [(x.fate, x.output) for x in found] == [("kept", 0), ("removed", None), ("narrowed", 1)]
