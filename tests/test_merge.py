import pytest
import torch

from hf_prune.errors import IncompatibleSources
from hf_prune.merge import MERGES

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensors(dtype: torch.dtype, count: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(count, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_tensor_of_weight_one_is_untouched(name, dtype):
    (tensor,) = tensors(dtype, 1)
    assert MERGES[name]([tensor], [1.0]) is tensor


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_stay_and_dtype_and_shape_follow_the_first(name, dtype):
    given = tensors(dtype, 2)
    before = [t.clone() for t in given]
    result = MERGES[name](given, [0.25, 0.75])
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


def test_mixed_dtypes_add_up_in_the_first():
    result = MERGES["linear"]([torch.ones(2, dtype=torch.bfloat16), torch.ones(2)], [0.5, 0.5])
    assert result.dtype == torch.bfloat16 and result.tolist() == [1, 1]


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(IncompatibleSources, match=r"\[4, 5\].*\[5\]"):
        MERGES["linear"]([torch.ones(4, 5), torch.ones(5)], [0.5, 0.5])


@pytest.mark.parametrize("weights", [[], [1.0], [0.5, 0.25, 0.25]])
def test_one_weight_per_tensor(weights):
    with pytest.raises(ValueError, match="one weight per tensor"):
        MERGES["linear"]([torch.ones(2)] * 2, weights)
