"""Optimal brain surgeon against brute force: every removal tried, every weight solved for, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.recovery import obs
from hf_prune.recovery.obs import compensated, damped, increments, inverse, removal_order
from tests.oracle import closed_form

seeds = st.integers(0, 2**32 - 1)


def drawn(seed, outputs, inputs, samples=None):
    """A map and a damped Hessian of correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw, dtype=torch.float64)
    x = torch.randn(samples or 4 * inputs, inputs, generator=draw, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=draw, dtype=torch.float64), damped(x.T @ x / len(x))


def loss(weight, hessian, kept):
    """tr((W - W*) H (W - W*)^T) of the best weights on `kept`."""
    whole = torch.zeros_like(weight)
    if len(kept):
        whole[:, kept] = torch.linalg.lstsq(hessian[kept][:, kept], (weight @ hessian[:, kept]).T).solution.T
    change = weight - whole
    return float((change @ hessian * change).sum())


def greedy(weight, hessian, unit):
    """Try every group, take the cheapest, start again."""
    left, order, losses = list(range(weight.shape[1] // unit)), [], []
    while left:
        tried = {}
        for g in left:
            kept = [c for h in left if h != g for c in range(h * unit, (h + 1) * unit)]
            tried[g] = loss(weight, hessian, torch.tensor(kept, dtype=torch.long))
        best = min(tried, key=tried.get)
        left.remove(best)
        order.append(best)
        losses.append(tried[best])
    return order, torch.tensor(losses, dtype=torch.float64)


@settings(max_examples=25)
@given(seeds, st.sampled_from([(7, 1), (12, 1), (8, 2), (12, 3), (6, 6)]), st.integers(1, 9))
def test_order_and_losses_are_those_of_brute_force(seed, shape, outputs):
    inputs, unit = shape
    weight, hessian = drawn(seed, outputs, inputs)
    found = removal_order(weight, hessian, unit)
    order, losses = greedy(weight, hessian, unit)
    assert found.groups.tolist() == order
    torch.testing.assert_close(found.losses, losses, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_of_any_size_give_the_same_order(block, monkeypatch):
    weight, hessian = drawn(3, 24, 100)
    expected = removal_order(weight, hessian)
    monkeypatch.setattr(obs, "BLOCK", block)
    found = removal_order(weight, hessian)
    assert found.groups.tolist() == expected.groups.tolist()
    torch.testing.assert_close(found.losses, expected.losses)


@settings(max_examples=25)
@given(seeds, st.lists(st.integers(1, 11), min_size=1, max_size=5, unique=True))
def test_levels_are_nested_and_equal_to_the_closed_form(seed, kept):
    weight, hessian = drawn(seed, 5, 12)
    kept = sorted(kept, reverse=True)
    columns = removal_order(weight, hessian).columns(1)
    steps = increments(hessian, columns, kept)
    for level, count in enumerate(kept):
        stay = columns[12 - count :]
        found = compensated(weight, columns, steps[: level + 1])
        torch.testing.assert_close(found, closed_form(weight, hessian, stay), rtol=1e-7, atol=1e-9)
        change = weight.clone()
        change[:, stay] -= found
        expected = removal_order(weight, hessian).losses[12 - count - 1]
        assert float((change @ hessian * change).sum()) == pytest.approx(float(expected), rel=1e-6)


def test_inputs_that_never_occur_go_first_and_change_nothing():
    weight, hessian = drawn(1, 4, 8)
    raw = hessian.clone()
    raw[[2, 5]], raw[:, [2, 5]] = 0, 0
    found = removal_order(weight, damped(raw))
    assert set(found.groups[:2].tolist()) == {2, 5} and found.losses[1] == 0
    assert torch.isfinite(inverse(damped(raw))).all()


def test_single_precision_finds_the_same_order_where_scores_do_not_tie():
    weight, hessian = drawn(5, 16, 64)
    exact, fast = removal_order(weight, hessian), removal_order(weight.float(), hessian.float())
    assert (exact.groups == fast.groups).float().mean() > 0.9
    torch.testing.assert_close(exact.losses, fast.losses, rtol=1e-3, atol=1e-3)
