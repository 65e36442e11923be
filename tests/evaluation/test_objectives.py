"""Objectives are pure functions of measures; what broke is infinite, what is not asked for does no harm."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.data.task_scores import TaskScores
from hf_prune.evaluation.objectives import OBJECTIVES, Measures, values
from hf_prune.recipe import TASK_OBJECTIVES

NUMBERS = st.floats(0, 20)
COSINES = st.floats(-1, 1)


@given(NUMBERS, NUMBERS, COSINES, COSINES)
def test_every_objective_is_its_formula(kl, nll, updates, gelaco):
    scores = TaskScores("t", 0.5, np.log([[0.25, 0.5]]), np.array([False]), np.array([True]), np.array([1.5]))
    measures = Measures(kl, nll, updates, gelaco, 7, texts=(nll, nll + 1), tasks=(scores,))
    found = dict(zip(OBJECTIVES, values(measures, tuple(OBJECTIVES)), strict=True))
    assert found == pytest.approx(
        {
            "kl": kl,
            "perplexity": math.exp(nll),
            "similarity": 1 - updates,
            "kl_similarity": kl + 1 - updates,
            "gelaco_v1": 1 - gelaco,
            "text": nll + 0.5,
            "tasks": 1.0,
            "tasks_norm": 0.0,
            "doubt": 1.5,
            "abilities": nll + 0.5 + 10 * 1.5,
            "params": 7.0,
        }
    )


def test_what_broke_is_infinite_except_its_size():
    found = values(Measures(math.inf, math.inf, -1.0, -1.0, 7, finite=False), tuple(OBJECTIVES))
    assert found[:-1] == (math.inf,) * 10 and found[-1] == 7.0


def test_what_was_not_measured_is_infinite_rather_than_nan():
    assert values(Measures(1.0, 2.0, 0.5, math.nan, 7), ("gelaco_v1", "kl")) == (math.inf, 1.0)


def test_a_hopeless_perplexity_is_large_but_a_number():
    assert math.isfinite(values(Measures(1.0, 1e4, 0.0, 0.0, 7), ("perplexity",))[0])


def test_only_gelaco_needs_modules_and_only_size_no_forward():
    assert [n for n, o in OBJECTIVES.items() if o.needs_modules] == ["gelaco_v1"]
    assert [n for n, o in OBJECTIVES.items() if not o.needs_forward] == ["params"]


def test_a_recipe_knows_which_of_them_need_tasks():
    without = values(Measures(1.0, 2.0, 0.5, 0.5, 7), tuple(OBJECTIVES))
    assert [n for n, v in zip(OBJECTIVES, without, strict=True) if math.isinf(v)] == list(TASK_OBJECTIVES)


def test_a_column_per_task_is_its_share_of_wrong_answers():
    right = TaskScores("sums", 0.5, np.zeros((4, 2)), np.array([True, True, True, False]), np.ones(4, bool))
    measures = Measures(1.0, 2.0, 0.5, 0.5, 7, tasks=(right,))
    assert values(measures, ("task:sums", "task:other")) == (0.25, math.inf)
