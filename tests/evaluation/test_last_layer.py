"""The last layer gives what it gives, at the places that are asked for, and computes no others to the end."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.evaluation.dense import Batch, Dense
from hf_prune.evaluation.last_layer import answering
from hf_prune.models.attention_masks import BlockMask
from hf_prune.models.families import FAMILIES
from hf_prune.models.inference import family_of
from hf_prune.models.modeling_pruned import Skipped
from tests.families import VOCABULARY, tiny


def recorded(name, rows, length):
    """A random model of the family, its last layer's call for rows of tokens, and what enters that layer."""
    model = tiny(name)
    dense = Dense(model, family_of(model.config))
    tokens = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    sees = torch.ones(rows, length, length, dtype=torch.bool).tril()
    given = {"attention_mask": BlockMask.of(sees, torch.float32), "position_ids": torch.arange(length).expand(rows, -1)}
    with torch.inference_mode():
        return dense, dense.record(tokens, **given)[1][-1], dense.embed(tokens, **given)


@torch.inference_mode()
def outputs(dense, call, state, at):
    """Of the last layer, flattened: whole, and at these places."""
    batches = [Batch(state, call, whole=True, asked=asked) for asked in (None, at)]
    return [out.flatten(0, 1) for out, _ in dense.apply_each(dense.layers[-1], batches)]


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.halved and not f.opaque])
def test_every_family_gives_its_own_outputs_at_the_places(name):
    found, at = recorded(name, 3, 40), torch.tensor([35, 39, 79, 118])
    layer, seen = found[0].layers[-1], []
    hooks = [
        layer.get_submodule(path).register_forward_pre_hook(lambda _, a: seen.append(a[0][..., 0].numel()))
        for path in (found[0].family.attention_out, found[0].family.mlp)
        if path
    ]
    whole, some = outputs(*found, at)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(some[at], whole[at], rtol=1e-4, atol=1e-4)
    assert some.isfinite().all()
    assert sorted(seen) == [len(at)] * len(hooks) + [120] * len(hooks)


@given(st.sets(st.integers(0, 3 * 40 - 1), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_any_places_will_do(places):
    at = torch.tensor(sorted(places))
    whole, some = outputs(*recorded("llama", 3, 40), at)
    torch.testing.assert_close(some[at], whole[at], rtol=1e-4, atol=1e-4)


def test_the_layer_itself_stays_as_it_was():
    layer = tiny("llama").model.layers[0]
    before = [(name, id(m)) for name, m in layer.named_modules()]
    found = answering(layer, family_of(tiny("llama").config), torch.tensor([1]))
    assert [(name, id(m)) for name, m in layer.named_modules()] == before
    assert {id(p) for p in found.parameters()} == {id(p) for p in layer.parameters()}


def test_a_removed_half_has_nothing_to_spare():
    model = tiny("llama")
    layer, family = model.model.layers[0], family_of(model.config)
    layer.self_attn = Skipped("attention")
    found = answering(layer, family, torch.tensor([1]))
    assert found.self_attn is layer.self_attn and found.mlp is not layer.mlp


def test_the_layers_of_an_opaque_family_stay_whole():
    model = tiny("llama")
    family = dataclasses.replace(family_of(model.config), opaque=True)
    assert answering(model.model.layers[0], family, torch.tensor([1])) is model.model.layers[0]
