"""Doubt is the least over all scales, and its gradient that of autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hf_prune.data.doubt import LARGEST_SCALE, doubt_slopes, doubts

VALUES = arrays(float, st.tuples(st.integers(1, 12), st.just(4)), elements=st.floats(-5, 0))


@given(VALUES, st.randoms(use_true_random=False))
def test_doubts_are_least_over_the_scale(values, random):
    answers = np.array([random.randrange(4) for _ in values])

    def mean(scale):
        return float(torch.nn.functional.cross_entropy(torch.tensor(scale * values), torch.tensor(answers)))

    found = doubts(values, answers)
    assert found.shape == (len(values),) and found.mean() <= min(map(mean, np.linspace(0, LARGEST_SCALE, 400))) + 1e-6
    # Guessing is one of the scales.
    assert found.mean() <= np.log(4) + 1e-12


@given(VALUES, st.floats(0.5, 4), st.floats(-3, 3))
def test_doubts_do_not_depend_on_how_sure_a_model_sounds(values, scale, shift):
    answers = np.arange(len(values)) % 4
    # One wrong answer, so that there is a least doubt, far from the largest scale.
    values[0, answers[0]] = values[0].min() - 1.0
    found = doubts(values, answers).mean()
    assert doubts(scale * values + shift, answers).mean() == pytest.approx(found, abs=1e-6)


def test_what_is_always_right_leaves_no_doubt():
    sure = np.array([[-1.0, -2.0], [-9.0, -3.0]])
    assert doubts(sure, np.array([0, 1])).max() < 1e-12
    np.testing.assert_allclose(doubts(sure, np.array([1, 0])), np.log(2))


@given(VALUES, st.integers(0, 3))
def test_slopes_are_what_the_doubt_does_when_values_change(values, missing):
    answers = np.arange(len(values)) % 3
    # One wrong and one right answer: the best scale is inside of its range.
    values[0, 0] = values[0].min() - 1.0
    values = np.concatenate([values, [[-4.0, -1.0, -4.0, -4.0]]])
    answers = np.concatenate([answers, [1]])
    values[:missing, 3] = -np.inf
    found = doubt_slopes(values, answers)
    assert (found[np.isinf(values)] == 0).all()
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-9)
    for place in zip(*np.isfinite(values).nonzero(), strict=True):
        step = np.zeros_like(values)
        step[place] = 1e-4
        rise = doubts(values + step, answers).mean() - doubts(values - step, answers).mean()
        assert found[place] == pytest.approx(rise / 2e-4, abs=1e-4 * max(1.0, np.abs(found).max()))


@pytest.mark.parametrize("answers", [[1, 0], [1, 1]])
def test_where_guessing_is_best_there_is_no_slope(answers):
    values, answers = np.array([[-1.0, -2.0], [-2.0, -1.0]]), np.array(answers)
    assert doubts(values, answers).mean() == pytest.approx(np.log(2))
    np.testing.assert_allclose(doubt_slopes(values, answers), 0, atol=1e-9)
