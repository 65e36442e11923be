"""Report: intervals, ratios and ranks are what the formulas say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.data.task_scores import TaskScores
from hf_prune.data.windows import Windows
from hf_prune.report import statistics

FLOATS = st.lists(st.floats(-50, 50), min_size=2, max_size=30)


def windows(corpora):
    return Windows(
        "report", torch.zeros(len(corpora), 5, dtype=torch.int64), tuple(corpora), dict.fromkeys(corpora, "x")
    )


def scores(kl, nll):
    return tuple(torch.tensor(x, dtype=torch.float32)[:, None].expand(-1, 4) for x in (kl, nll))


@given(FLOATS)
def test_the_interval_is_the_normal_one_over_windows(values):
    mean, (low, high) = statistics.interval(np.array(values))
    half = 1.959964 * np.std(values, ddof=1) / math.sqrt(len(values))
    assert mean == pytest.approx(np.mean(values)) and (low, high) == pytest.approx((mean - half, mean + half), abs=1e-5)


def test_one_window_or_an_infinite_one_has_no_spread():
    assert statistics.interval(np.array([3.0])) == (3.0, (3.0, 3.0))
    assert statistics.interval(np.array([3.0, math.inf]))[1] == (math.inf, math.inf)


@given(st.integers(1, 2000), st.floats(0, 1))
def test_wilson_bounds_solve_its_equation(n, share):
    k = round(share * n)
    low, high = statistics.wilson(k, n)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            assert (p - k / n) ** 2 == pytest.approx(statistics.Z95**2 * p * (1 - p) / n, rel=1e-6, abs=1e-12)


def test_difference_resamples_pairs():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(200) < 0.6, rng.random(200) < 0.4
    value, (low, high) = statistics.paired_difference(ours, theirs, np.random.default_rng(0))
    assert value == pytest.approx(ours.mean() - theirs.mean())
    picks = rng.integers(0, 200, (4000, 200))
    plain = np.quantile(ours[picks].mean(1) - theirs[picks].mean(1), [0.025, 0.975])
    np.testing.assert_allclose([low, high], plain, atol=0.012)
    assert statistics.paired_difference(ours, theirs, np.random.default_rng(0)) == (value, (low, high))
    assert statistics.paired_difference(ours, ours, np.random.default_rng(0)) == (0.0, (0.0, 0.0))


def test_both_accuracies_of_a_task_come_with_their_intervals_and_paired_differences():
    right = np.array([True] * 30 + [False] * 10)
    dense, pruned = (TaskScores("t", 0.25, np.zeros((40, 4)), *pair) for pair in ((right, ~right), (~right, ~right)))
    row = statistics.task_scores({"t": dense}, {"t": pruned}, np.random.default_rng(0))["t"]
    assert (row.dense.accuracy, row.dense.accuracy_norm) == (0.75, 0.25)
    assert row.dense.ci == statistics.wilson(30, 40) and row.pruned.ci_norm == statistics.wilson(10, 40)
    assert row.difference == -0.5 and row.difference_ci[0] < -0.5 < row.difference_ci[1] < 0
    assert row.difference_norm == 0.0 and row.difference_ci_norm == (0.0, 0.0)


def test_perplexity_ratio_and_divergence_per_corpus_and_over_all():
    dense, pruned = scores([0, 0, 0, 0], [1, 2, 3, 4]), scores([0.1, 0.2, 0.3, 0.4], [1.5, 2.5, 3.5, 5.5])
    found = statistics.text(dense, pruned, windows(["a", "b", "a", "b"]), np.array([8, 16, 24, 32]))
    assert set(found) == {"a", "b", "all"} and found["a"].tokens == 8 and found["all"].tokens == 16
    assert found["a"].dense.perplexity == pytest.approx(math.exp(2))
    assert found["b"].pruned.perplexity == pytest.approx(math.exp(4))
    assert found["b"].log_ratio == pytest.approx(1.0) and found["b"].kl == pytest.approx(0.3)
    # Four tokens of 1 and of 3 nats say 8 and 24 bytes, so there is half a nat for every byte.
    assert found["a"].bytes == 32 and found["a"].dense.bits_per_byte == pytest.approx(0.5 / math.log(2))
    assert found["a"].dense.bits_per_byte_ci == pytest.approx((0.5 / math.log(2),) * 2)
    assert found["b"].dense.bits_per_byte == pytest.approx(4 * (2 + 4) / 48 / math.log(2))
    # Paired: equal differences leave no spread, however far apart the windows are.
    assert found["a"].log_ratio_ci == pytest.approx((0.5, 0.5))
    low, high = found["a"].dense.ci
    assert low < math.exp(2) < high


@given(st.lists(st.tuples(st.floats(0.01, 9), st.integers(1, 99)), min_size=2, max_size=30), st.floats(0.5, 8))
def test_bits_per_byte_are_of_all_windows_together_whatever_unit_both_have(rows, unit):
    nll, said = (np.array(column, float) for column in zip(*rows, strict=True))
    value, (low, high) = statistics.per_byte(nll, said)
    assert value == pytest.approx(nll.sum() / math.log(2) / said.sum())
    assert (low + high) / 2 == pytest.approx(value)
    assert statistics.per_byte(nll / unit, said / unit)[1] == pytest.approx((low, high))


def test_the_interval_of_bits_per_byte_is_that_of_resampled_windows():
    rng = np.random.default_rng(0)
    said = rng.integers(200, 600, 400)
    nll = said * rng.normal(0.7, 0.1, 400)
    picks = rng.integers(0, 400, (4000, 400))
    plain = np.quantile(nll[picks].sum(1) / said[picks].sum(1) / math.log(2), [0.025, 0.975])
    np.testing.assert_allclose(statistics.per_byte(nll, said)[1], plain, atol=0.002)


def test_windows_that_say_nothing_have_no_bits_per_byte():
    assert math.isnan(statistics.perplexity(np.array([1.0, 2.0]), np.array([0, 0])).bits_per_byte)
    assert statistics.perplexity(np.array([math.inf, 2.0]), np.array([4, 5])).bits_per_byte == math.inf


def test_a_broken_model_has_infinite_perplexity():
    assert statistics.perplexity(np.array([math.inf, math.inf])).perplexity == math.inf
    assert statistics.perplexity(np.array([800.0])).perplexity == math.inf


def test_splits_count_windows_tokens_and_corpora():
    found = statistics.splits({"report": windows(["a", "b", "a"])})["report"]
    assert (found.windows, found.tokens, found.length) == (3, 15, 5)
    assert {name: (c.windows, c.origin) for name, c in found.corpora.items()} == {"a": (2, "x"), "b": (1, "x")}


def test_hardware_names_a_processor_and_no_accelerator_on_the_cpu():
    found = statistics.hardware(torch.device("cpu"))
    assert found.processor and found.cores >= 1 and found.accelerator is None
