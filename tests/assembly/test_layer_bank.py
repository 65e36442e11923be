"""Layers by spec: the dense model's own, made ones, and repaired ones that share all they did not change."""

from dataclasses import replace

import pytest
import torch

from hf_prune.assembly.assemble import assemble, layer_tensors
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.assembly.patches import digest_patch
from hf_prune.blueprint import GONE, Blueprint, LayerSpec, Part
from tests.families import DEPTH, EVERY, mean
from tests.oracle import opened


@pytest.fixture
def bank():
    return bank_of("llama")


def bank_of(family, **how):
    parent = opened(family)
    return LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent], **how)


def patch(bank, layer):
    weight = bank.model.model.layers[layer].mlp.down_proj.weight
    return {"mlp.down_proj.weight": weight.detach() + 1}


@pytest.mark.parametrize("family", EVERY)
def test_a_plain_layer_is_the_dense_one_and_a_made_one_has_the_tensors_of_its_spec(family):
    bank = bank_of(family)
    layers = bank.model.get_submodule(bank.parents[0].family.layers)
    assert bank.module(LayerSpec((Part(0, 3),))) is layers[3]
    for spec in (mean(1, 2), LayerSpec((Part(0, 3),), norms=Part(0, 4))):
        state = bank.module(spec).state_dict()
        wanted = {n: read() for n, read in layer_tensors(spec, bank.parents)}
        assert state.keys() == wanted.keys() and all(torch.equal(state[n], t) for n, t in wanted.items())


@pytest.mark.parametrize("spec", [LayerSpec((Part(0, 2),)), mean(1, 2), LayerSpec((Part(0, 2),), attn_level=GONE)])
def test_a_repaired_layer_shares_every_tensor_that_it_does_not_replace(bank, spec):
    new = bank.repaired(spec, patch(bank, 2))
    assert new.repair == digest_patch(patch(bank, 2)) and not new.plain
    before, after = bank.module(spec).state_dict(), bank.module(new).state_dict()
    changed = {n for n in after if after[n].data_ptr() != before[n].data_ptr()}
    assert changed == {"mlp.down_proj.weight"} and torch.equal(
        after["mlp.down_proj.weight"], patch(bank, 2)[min(changed)]
    )
    assert not any(p.requires_grad for p in bank.module(new).parameters())


def test_patches_are_named_for_a_blueprint_and_forgotten(bank):
    plain = LayerSpec((Part(0, 1),))
    one, two = bank.repaired(plain, patch(bank, 1)), bank.repaired(LayerSpec((Part(0, 2),)), patch(bank, 2))
    blueprint = Blueprint((bank.parents[0].source,), (plain, one, two))
    assert set(bank.named(blueprint)) == {one.repair, two.repair}
    bank.module(one)
    bank.forget(one)
    bank.forget(plain)
    assert set(bank.patches) == {two.repair}
    with pytest.raises(KeyError):
        bank.module(one)


def test_what_is_made_in_inference_mode_can_be_trained(bank):
    with torch.inference_mode():
        made = bank.module(mean(1, 2))
        repaired = bank.module(bank.repaired(mean(1, 2), patch(bank, 2)))
    for layer in (made, repaired):
        assert not any(p.is_inference() for p in layer.parameters())


def test_only_so_many_made_layers_are_kept():
    bank = bank_of("llama", capacity=2)
    specs = [mean(0, 1), mean(1, 2), mean(2, 3)]
    first, second = bank.module(specs[0]), bank.module(specs[1])
    assert bank.module(specs[0]) is first
    bank.module(specs[2])
    assert bank.module(specs[0]) is first and bank.module(specs[1]) is not second
    assert bank.module(replace(specs[2])) is bank.module(specs[2])
