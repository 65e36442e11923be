"""Streamed normal equations are weighted ridge regression, whatever the pieces."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.evaluation.ridge import Normal

CPU = torch.device("cpu")


def samples(seed, rows, inputs=5, outputs=3):
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, inputs, generator=draw),
        torch.randn(rows, outputs, generator=draw),
        torch.rand(rows, generator=draw) + 0.1,
    )


def normal(*pieces):
    made = Normal(pieces[0][0].shape[1], pieces[0][1].shape[1], CPU)
    for piece in pieces:
        made.add(*piece)
    return made


def brute(features, residual, weights, ridge, through=None):
    """By the stacked system of square roots, in float64 numpy."""
    f, r, w = (t.double().numpy() for t in (features, residual, weights))
    base = f if through is None else f @ through.numpy()
    root = np.sqrt(w)[:, None]
    strength = np.sqrt(ridge * np.mean(np.diag((base * root).T @ (base * root))))
    rows = np.vstack([base * root, strength * np.eye(base.shape[1])])
    wanted = np.vstack([r * root, np.zeros((base.shape[1], r.shape[1]))])
    found = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return found if through is None else through.numpy() @ found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 30), cut=st.integers(0, 30), ridge=st.sampled_from([1e-3, 0.1, 10])
)
def test_the_correction_is_that_of_weighted_ridge_regression(seed, rows, cut, ridge):
    features, residual, weights = samples(seed, rows)
    whole = normal((features, residual, weights))
    torch.testing.assert_close(
        whole.solve(ridge), torch.tensor(brute(features, residual, weights, ridge)), rtol=1e-3, atol=1e-3
    )
    parts = normal((features[:cut], residual[:cut], weights[:cut]), (features[cut:], residual[cut:], weights[cut:]))
    torch.testing.assert_close(parts.gram, whole.gram, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.cross, whole.cross, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), ridge=st.sampled_from([1e-2, 1.0]))
def test_through_a_matrix_only_its_multiples_are_found(seed, ridge):
    features, residual, weights = samples(seed, 20)
    through = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    found = normal((features, residual, weights)).solve(ridge, through)
    wanted = torch.tensor(brute(features, residual, weights, ridge, through))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert torch.linalg.matrix_rank(torch.cat([through, found], 1), rtol=1e-8) == 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_error_is_what_is_left(seed):
    features, residual, weights = samples(seed, 25)
    columns = torch.tensor([1.0, 0.5, 4.0], dtype=torch.float64)
    correction = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    left = (features.double() @ correction - residual.double()).square() * columns * weights.double()[:, None]
    assert abs(normal((features, residual, weights)).error(correction, columns) - float(left.sum())) < 1e-3


def test_a_larger_ridge_changes_less_and_sums_add_up():
    pieces = samples(0, 10), samples(1, 10)
    both = normal(pieces[0]) + normal(pieces[1])
    torch.testing.assert_close(both.gram, normal(*pieces).gram)
    norms = [float(both.solve(ridge).norm()) for ridge in (1e-4, 1e-2, 1.0, 100.0)]
    assert norms == sorted(norms, reverse=True) and norms[-1] < 0.05 * norms[0]


def test_dead_inputs_are_left_alone():
    features, residual, weights = samples(0, 10)
    features[:, 2] = 0
    found = normal((features, residual, weights)).solve(1e-3)
    assert torch.isfinite(found).all() and float(found[2].abs().max()) == 0
    assert torch.isfinite(normal((0 * features, residual, weights)).solve(0.1)).all()
