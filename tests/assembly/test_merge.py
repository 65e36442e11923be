import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.assembly.merge import MERGES, check_merge, dare, linear, merged, slerp, ties
from hf_prune.errors import IncompatibleSources, InvalidBlueprint

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensors(dtype: torch.dtype, count: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(count, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("name", ["linear", "passthrough"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_tensor_of_weight_one_is_untouched(name, dtype):
    (tensor,) = tensors(dtype, 1)
    assert MERGES[name]([tensor], [1.0]) is tensor


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_stay_and_dtype_and_shape_follow_the_first(name, dtype):
    given = tensors(dtype, 1 if name == "passthrough" else 2)
    before = [t.clone() for t in given]
    result = MERGES[name](given, [0.25, 0.75][-len(given) :])
    assert (result.dtype, result.shape) == (dtype, given[0].shape)
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_the_weighted_sum_rounded_once(dtype):
    given, weights = tensors(dtype), [-1.0, 0.5, 1.5]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = sum(t.to(wide) * w for t, w in zip(given, weights, strict=True)).to(dtype)
    torch.testing.assert_close(MERGES["linear"](given, weights), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_linear_does_not_round_on_the_way():
    one, tiny = torch.tensor([256.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16)
    # In bfloat16 256 + 1 is 256 again, so a sum rounded at every step would never leave 256.
    assert MERGES["linear"]([one, tiny, tiny], [1.0, 1.0, 1.0]).item() == 258


def test_a_single_tensor_of_another_weight_is_scaled():
    assert MERGES["linear"]([torch.ones(2)], [0.5]).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.float16, torch.float16), torch.float16),
    ],
)
def test_mixed_dtypes_add_up_in_the_widest(name, dtypes, widest):
    for order in (dtypes, dtypes[::-1]):
        taken = order[:1] if name == "passthrough" else order
        result = MERGES[name]([torch.ones(2, dtype=d) for d in taken], [0.5] * len(taken))
        assert result.dtype == (taken[0] if len(taken) == 1 else widest)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(IncompatibleSources, match=r"\[4, 5\].*\[5\]"):
        MERGES["linear"]([torch.ones(4, 5), torch.ones(5)], [0.5, 0.5])


@pytest.mark.parametrize("weights", [[], [1.0], [0.5, 0.25, 0.25]])
def test_one_weight_per_tensor(weights):
    with pytest.raises(ValueError, match="one weight per tensor"):
        MERGES["linear"]([torch.ones(2)] * 2, weights)


# Merges by name ----------------------------------------------------------------------------------------------------


def drawn(seed, count=3):
    return list(torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@given(st.integers(0, 999), st.floats(0, 1))
def test_slerp_stays_on_the_arc_and_meets_both_ends(seed, share):
    a, b = (t / t.norm() for t in drawn(seed, 2))
    between = slerp([a, b], [1 - share, share])
    assert float(between.norm()) == pytest.approx(1, abs=1e-9)
    angle, whole = (math.acos(float((a * x).sum().clamp(-1, 1))) for x in (between, b))
    assert angle == pytest.approx(share * whole, abs=1e-6)
    torch.testing.assert_close(slerp([a, b], [1.0, 0.0]), a)
    torch.testing.assert_close(slerp([a, b], [0.0, 3.0]), b)


def test_slerp_of_parallel_tensors_is_their_mean():
    a = drawn(0, 1)[0]
    torch.testing.assert_close(slerp([a, 3 * a], [0.5, 0.5]), 2 * a)


@given(st.integers(0, 999), st.floats(0.1, 2))
def test_ties_of_one_whole_delta_is_that_variant(seed, weight):
    base, one = drawn(seed, 2)
    torch.testing.assert_close(ties([base, one], [9.0, weight], 1.0), one)


@given(st.integers(0, 999), st.floats(0.1, 1))
def test_ties_keeps_the_largest_entries_of_a_delta(seed, density):
    base, one = drawn(seed, 2)
    delta, kept = one - base, ties([base, one], [1.0, 1.0], density) - base
    count = int(density * delta.numel())
    assert int((kept.abs() > 1e-12).sum()) == count
    threshold = delta.abs().flatten().sort(descending=True).values[max(count - 1, 0)]
    torch.testing.assert_close(kept, delta * (delta.abs() >= threshold) * bool(count))


@given(st.integers(0, 999))
def test_ties_is_the_mean_of_those_that_agree_entry_by_entry(seed):
    base, *others = drawn(seed, 4)
    found, weights = ties([base, *others], [1.0, 0.5, 1.0, 2.0]), (0.5, 1.0, 2.0)
    for place in [(0, 0), (3, 2), (5, 4)]:
        deltas = [float(w * (o - base)[place]) for w, o in zip(weights, others, strict=True)]
        sign = 1 if sum(deltas) >= 0 else -1
        agree = [(d, w) for d, w in zip(deltas, weights, strict=True) if d * sign > 0]
        wanted = sum(d for d, _ in agree) / sum(w for _, w in agree)
        assert float((found - base)[place]) == pytest.approx(wanted)


@given(st.integers(0, 999), st.floats(0.2, 0.9), st.booleans())
def test_dare_keeps_an_entry_rescaled_or_not_at_all(seed, density, consensus):
    base, one = drawn(seed, 2)
    kept = dare([base, one], [1.0, 1.0], density, [torch.Generator().manual_seed(seed)], consensus) - base
    share = kept / (one - base)
    assert ((share.abs() < 1e-9) | ((share - 1 / density).abs() < 1e-6)).all()


def test_dare_is_the_same_delta_on_average():
    base, one = drawn(1, 2)
    many = torch.stack([merged(f"dare:0.5:{seed}", [base, one], [1.0, 1.0], "w") for seed in range(2000)])
    assert float((many.mean(0) - one).abs().max()) < 0.35


def test_a_mask_depends_on_seed_tensor_and_part_and_on_nothing_else():
    base, one, two = drawn(2)
    first = merged("dare:0.5:3", [base, one, two], [1.0, 0.5, 0.5], "4.q_proj")
    torch.manual_seed(99)
    assert torch.equal(first, merged("dare:0.5:3", [base, one, two], [1.0, 0.5, 0.5], "4.q_proj"))
    others = [("dare:0.5:4", "4.q_proj"), ("dare:0.5:3", "5.q_proj")]
    assert not any(torch.equal(first, merged(name, [base, one, two], [1.0, 0.5, 0.5], where)) for name, where in others)


@given(st.integers(0, 999), st.sampled_from(["ties:0.4", "dare:1", "dare-ties:1"]))
def test_the_order_of_the_variants_does_not_matter(seed, name):
    base, one, two = drawn(seed)
    ours, theirs = (
        merged(name, x, w) for x, w in (([base, one, two], [1, 0.3, 0.7]), ([base, two, one], [1, 0.7, 0.3]))
    )
    torch.testing.assert_close(ours, theirs)


@settings(max_examples=20)
@given(st.integers(0, 999), st.sampled_from(["linear", "slerp", "ties:0.5", "dare:0.5:1", "dare-ties:0.5"]))
def test_merges_scale_with_what_they_are_given(seed, name):
    a, b = drawn(seed, 2)
    torch.testing.assert_close(merged(name, [2 * a, 2 * b], [0.4, 0.6]), 2 * merged(name, [a, b], [0.4, 0.6]))


def test_dares_without_dropping_and_weights_that_add_up_are_linear():
    base, one, two = drawn(3)
    torch.testing.assert_close(merged("dare:1", [base, one, two], [1.0, 0.3, 0.7]), linear([one, two], [0.3, 0.7]))


@pytest.mark.parametrize(
    ("name", "parts", "said"),
    [
        ("average", 2, "merges by 'average'"),
        ("linear:0.5", 2, "merges by"),
        ("ties:half", 2, "merges by"),
        ("ties:0.5:1", 2, "merges by"),
        ("ties:0", 2, "above 0"),
        ("dare:1.5", 2, "above 0"),
        ("slerp", 3, "2 to 2"),
        ("passthrough", 2, "1 to 1"),
        ("ties:0.5", 1, "2 to 99"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_sentence(name, parts, said):
    with pytest.raises(InvalidBlueprint, match=said) as caught:
        check_merge(name, parts)
    assert "\n" not in str(caught.value)
