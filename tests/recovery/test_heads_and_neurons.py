"""Rows and columns that go with a head or a neuron, and the families whose layers have no such simple pieces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.models.families import CUT_BY_WIDTH
from hf_prune.recovery.heads_and_neurons import Widths, spread
from tests.families import tiny

UNKNOWN = ("olmo2", "gpt_neox", "gpt2", "opt", "mixtral", "olmoe", "cohere", "stablelm", "starcoder2")


@pytest.mark.parametrize("family", UNKNOWN)
def test_families_without_such_pieces_are_refused_by_name(family):
    with pytest.raises(
        UnsupportedArchitecture, match=f"^Width pruning knows llama, .*, not '{family}'; choose [^.]*\\.$"
    ):
        Widths.of(AutoConfig.for_model(family))


@pytest.mark.parametrize("family", CUT_BY_WIDTH)
def test_tensors_are_cut_to_the_shapes_of_a_narrower_layer(family):
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    model = tiny(family, **heads)
    widths, layer = Widths.of(model.config), model.model.layers[1]
    groups, neurons, whole = torch.tensor([0, 3]), torch.arange(5, 30), torch.arange(48)
    if widths.experts:
        neurons, whole = torch.stack([neurons + e for e in range(widths.experts)]), whole.expand(widths.experts, -1)
    narrow = tiny(family, **{**heads, "head_dim": widths.size, **widths.settings(2, 25)}).model.layers[1]
    expected = {n: t.shape for n, t in narrow.state_dict().items()}
    assert {n: widths.cut(n, t, groups, neurons).shape for n, t in layer.state_dict().items()} == expected
    everything = torch.arange(4), whole
    assert all(torch.equal(widths.cut(n, t, *everything), t) for n, t in layer.state_dict().items())


@given(st.lists(st.integers(0, 30), unique=True, min_size=1), st.integers(1, 9))
def test_units_spread_to_neighbours(units, size):
    rows = spread(torch.tensor(sorted(units)), size).tolist()
    assert rows == sorted(rows) and {r // size for r in rows} == set(units) and len(rows) == size * len(units)
