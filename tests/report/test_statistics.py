"""Report: intervals, ratios and ranks are what the formulas say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.data.tasks import TaskScores, wilson
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


def test_both_accuracies_of_a_task_come_with_their_intervals_and_paired_differences():
    right = np.array([True] * 30 + [False] * 10)
    dense, pruned = (TaskScores("t", 0.25, np.zeros((40, 4)), *pair) for pair in ((right, ~right), (~right, ~right)))
    row = statistics.task_scores({"t": dense}, {"t": pruned}, np.random.default_rng(0))["t"]
    assert (row.dense.accuracy, row.dense.accuracy_norm) == (0.75, 0.25)
    assert row.dense.ci == wilson(30, 40) and row.pruned.ci_norm == wilson(10, 40)
    assert row.difference == -0.5 and row.difference_ci[0] < -0.5 < row.difference_ci[1] < 0
    assert row.difference_norm == 0.0 and row.difference_ci_norm == (0.0, 0.0)


def test_perplexity_ratio_and_divergence_per_corpus_and_over_all():
    dense, pruned = scores([0, 0, 0, 0], [1, 2, 3, 4]), scores([0.1, 0.2, 0.3, 0.4], [1.5, 2.5, 3.5, 5.5])
    found = statistics.text(dense, pruned, windows(["a", "b", "a", "b"]))
    assert set(found) == {"a", "b", "all"} and found["a"].tokens == 8 and found["all"].tokens == 16
    assert found["a"].dense.perplexity == pytest.approx(math.exp(2))
    assert found["b"].pruned.perplexity == pytest.approx(math.exp(4))
    assert found["b"].log_ratio == pytest.approx(1.0) and found["b"].kl == pytest.approx(0.3)
    # Paired: equal differences leave no spread, however far apart the windows are.
    assert found["a"].log_ratio_ci == pytest.approx((0.5, 0.5))
    low, high = found["a"].dense.ci
    assert low < math.exp(2) < high


def test_a_broken_model_has_infinite_perplexity():
    assert statistics.perplexity(np.array([math.inf, math.inf])).perplexity == math.inf
    assert statistics.perplexity(np.array([800.0])).perplexity == math.inf


@given(st.permutations(range(8)))
def test_rank_correlation_is_that_of_the_ranks(order):
    distance = sum((i - x) ** 2 for i, x in enumerate(order))
    expected = 1 - 6 * distance / (8 * 63)
    assert statistics.spearman([math.exp(i) for i in range(8)], list(order)) == pytest.approx(expected)


def test_ties_share_their_rank_and_too_little_says_nothing():
    assert statistics.spearman([1, 1, 2, 3], [1, 1, 2, 3]) == pytest.approx(1)
    assert math.isnan(statistics.spearman([1, 2], [1, 2])) and math.isnan(statistics.spearman([1, 1, 1], [1, 2, 3]))


def test_splits_count_windows_tokens_and_corpora():
    found = statistics.splits({"report": windows(["a", "b", "a"])})["report"]
    assert (found.windows, found.tokens, found.length) == (3, 15, 5)
    assert {name: (c.windows, c.origin) for name, c in found.corpora.items()} == {"a": (2, "x"), "b": (1, "x")}


def test_hardware_names_a_processor_and_no_accelerator_on_the_cpu():
    found = statistics.hardware(torch.device("cpu"))
    assert found.processor and found.cores >= 1 and found.accelerator is None
