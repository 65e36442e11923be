"""A mask that knows its blocks gives torch's attention, and keys that a block does not see are never read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from hf_prune.models.attention_masks import BLOCK, LONG, BlockMask


def inputs(length, seed, dtype=torch.float32, share=0.5):
    drawn = torch.Generator().manual_seed(seed)
    states = [torch.randn(2, 3, length, 8, generator=drawn).to(dtype) for _ in range(3)]
    sees = (torch.rand(2, length, length, generator=drawn) < share).tril() | torch.eye(length, dtype=torch.bool)
    return states, BlockMask.of(sees, dtype)


@given(
    st.integers(1, 3 * BLOCK), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16]), st.floats(0, 0.5)
)
@settings(max_examples=20, deadline=None)
def test_it_is_attention_under_that_mask(length, seed, dtype, share):
    states, mask = inputs(length, seed, dtype, share)
    ours = scaled_dot_product_attention(*states, attn_mask=mask, scale=0.3)
    theirs = scaled_dot_product_attention(*states, attn_mask=mask.as_subclass(torch.Tensor), scale=0.3)
    assert type(ours) is torch.Tensor
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_gradients_are_those_of_attention_under_that_mask_whose_copy_in_float32_is_one_too(share):
    states, mask = inputs(2 * BLOCK + 3, 0, torch.bfloat16, share)
    wide = mask.float()
    assert wide.dtype == torch.float32 and all(m.dtype == torch.float32 for _, _, m in wide.blocks)
    found = []
    for way in (wide, mask.as_subclass(torch.Tensor).float()):
        leaves = [s.float().requires_grad_() for s in states]
        out = scaled_dot_product_attention(*leaves, attn_mask=way)
        out.square().sum().backward()
        found.append([out, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_long_rows_are_cut_into_longer_blocks():
    states, mask = inputs(LONG + 1, 0, share=0.01)
    theirs = scaled_dot_product_attention(*states, attn_mask=mask.as_subclass(torch.Tensor))
    torch.testing.assert_close(scaled_dot_product_attention(*states, attn_mask=mask), theirs)
    assert len(mask.blocks) == LONG // (2 * BLOCK) + 1 and any(isinstance(k, torch.Tensor) for _, k, _ in mask.blocks)


def test_what_comes_later_is_not_computed():
    (query, key, value), mask = inputs(BLOCK + 1, 0)
    value[:, :, -1] = torch.nan
    found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert found[:, :, :BLOCK].isfinite().all() and found[:, :, BLOCK].isnan().all()
    assert scaled_dot_product_attention(query, key, value, attn_mask=mask.as_subclass(torch.Tensor)).isnan().all()


def test_what_a_block_does_not_see_is_not_computed():
    (query, key, value), _ = inputs(4 * BLOCK, 0)
    sees = torch.ones(2, 4 * BLOCK, 4 * BLOCK, dtype=torch.bool).tril()
    sees[:, 3 * BLOCK :, 5 : 2 * BLOCK] = False
    value[:, :, BLOCK] = torch.nan
    found = scaled_dot_product_attention(query, key, value, attn_mask=BlockMask.of(sees, torch.float32))
    assert found[:, :, 3 * BLOCK :].isfinite().all() and found[:, :, 2 * BLOCK].isnan().all()


@given(st.integers(1, 2 * BLOCK + 5), st.data())
@settings(max_examples=20, deadline=None)
def test_queries_in_blocks_before_the_first_that_is_asked_for_are_zero(length, data):
    states, mask = inputs(length, 1)
    first = data.draw(st.integers(0, length - 1))
    whole, some = (scaled_dot_product_attention(*states, attn_mask=m) for m in (mask, mask.starting(first)))
    torch.testing.assert_close(some[:, :, first:], whole[:, :, first:])
    assert not some[:, :, : first // BLOCK * BLOCK].any() and mask.first == 0


@pytest.mark.parametrize("change", [lambda m: m + 1, lambda m: m[..., :2], lambda m: m.double()])
def test_anything_else_makes_it_a_plain_tensor(change):
    mask = inputs(4, 0)[1]
    changed = change(mask)
    assert type(changed) is torch.Tensor and torch.equal(changed, change(mask.as_subclass(torch.Tensor)))
