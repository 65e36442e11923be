"""What a layer's last maps add to the stream is known exactly, in every family."""

import pytest
import torch

from hf_prune.assembly.assemble import layer_tensors
from hf_prune.assembly.layer_bank import sharing
from hf_prune.blueprint import LayerSpec, Part
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.residual_maps import Tap, between_halves, site_of
from tests.families import EVERY
from tests.oracle import opened, row, saved, stock, tokens

SPEC = LayerSpec((Part(0, 1),))
POST_NORM = ("gemma2", "gemma3_text", "glm4", "olmo2")
STACKED = ("qwen3_moe",)
"""Families whose MLP ends in a stack of experts, which no linear map refits."""


def at_layer_one(family):
    """Dense model, layer 1, the state before it, its call, and its tensors."""
    dense = Dense(stock(saved(family), dtype=torch.float32), row(family))
    windows = tokens()
    with torch.no_grad():
        _, calls = dense.record(windows[:1])
        state = dense.apply(dense.layers[0], [dense.embed(windows)], calls[0])[0][0]
    return dense, dense.layers[1], state, calls[1], lambda: layer_tensors(SPEC, [opened(family)])


def site(subject, half):
    dense, layer, state, call, stored = subject
    rows = dense.family
    paths = {"mlp": (rows.mlp_out, rows.mlp_norm), "attention": (rows.attention_out, rows.attention_norm)}
    return site_of(layer, rows, stored(), state[:1], call, *paths[half])


@pytest.mark.parametrize("family", EVERY)
def test_factor_norm_and_bias_are_found(family):
    for half in ("mlp", "attention") if family not in STACKED else ("attention",):
        found = site(at_layer_one(family), half)
        assert (found.norm is not None) is (family in POST_NORM)
        assert found.factor == pytest.approx(0.7 if family == "granite" else 1.0, rel=1e-3)
        weight = found.module.weight.double()
        weight = weight if family == "gpt2" else weight.T
        assert torch.equal(found.weight[: len(weight)], weight.cpu())
        assert len(found.weight) - len(weight) == int(found.module.bias is not None) == int(found.biased)


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in EVERY if f not in STACKED])
def test_a_correction_moves_the_stream_by_what_the_equations_say(family):
    subject = at_layer_one(family)
    _, layer, state, call, _ = subject
    found = site(subject, "mlp")
    draw = torch.Generator().manual_seed(0)
    size = 1e-3 if found.norm is None else 1e-4
    correction = size * torch.randn(found.weight.shape, generator=draw, dtype=torch.float64)
    with Tap(layer, [found.module]) as tap:
        before, ((inputs, output),) = tap.run(state, call)
    changed = sharing(layer)
    changed.load_state_dict(found.tensors(correction), strict=False, assign=True)
    with Tap(changed, []) as tap:
        moved = (tap.run(state, call)[0] - before).flatten(0, 1)
    said = found.features(inputs, output) @ correction.float() * found.columns
    if found.norm is None:
        torch.testing.assert_close(moved, said, rtol=1e-3, atol=2e-5)
    else:
        # The norm's divisor is held fixed, so only the direction that leaves it alone is exact.
        assert torch.nn.functional.cosine_similarity(moved.flatten(), said.flatten(), dim=0) > 0.9


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_the_state_between_the_halves_is_the_layer_without_its_mlp(family):
    dense, layer, state, call, _ = at_layer_one(family)
    silent = layer.get_submodule(dense.family.mlp if family in STACKED else dense.family.mlp_out)
    with Tap(layer, [], silent=silent) as tap:
        wanted = tap.run(state, call)[0]
    torch.testing.assert_close(between_halves(layer, dense, state, call), wanted, rtol=1e-4, atol=1e-5)


def test_what_is_no_matrix_is_no_site():
    dense, layer, state, call, stored = at_layer_one("llama")
    assert site_of(layer, dense.family, stored(), state[:1], call, "input_layernorm", None) is None
    assert site_of(layer, dense.family, stored(), state[:1], call, "mlp.experts", None) is None
    assert all(site(at_layer_one(family), "mlp") is None for family in STACKED)
