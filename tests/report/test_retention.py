"""Mean accuracy over tasks, compared on the same items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.data.task_scores import TaskScores
from hf_prune.evaluation.objectives import Measures
from hf_prune.report.retention import difference

HITS = st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), min_size=1, max_size=4)


def measured(tasks: list[list[bool]]) -> Measures:
    scores = tuple(
        TaskScores(f"t{k}", 0.25, np.zeros((len(hits), 2)), np.array(hits), ~np.array(hits), 1.5 - np.array(hits))
        for k, hits in enumerate(tasks)
    )
    return Measures(kl=0.0, nll=0.0, update_cosine=1.0, gelaco=1.0, parameters=1, tasks=scores)


@given(HITS)
def test_the_difference_is_that_of_the_means_over_tasks(tasks) -> None:
    ours, theirs = (measured([[pair[side] for pair in task] for task in tasks]) for side in (0, 1))
    middle, (low, high) = difference(theirs, ours, "correct")
    means = [np.mean([np.mean([p[side] for p in task]) for task in tasks]) for side in (0, 1)]
    assert middle == pytest.approx(means[1] - means[0])
    assert low <= middle <= high
    turned, (lowest, highest) = difference(ours, theirs, "correct")
    assert (turned, lowest, highest) == pytest.approx((-middle, -high, -low))
    assert difference(theirs, ours, "correct_norm")[0] == pytest.approx(-middle)
    found, interval = difference(theirs, ours, "doubts")
    assert (found, *interval) == pytest.approx((-middle, -high, -low))


def test_the_interval_is_that_of_resampled_items() -> None:
    rng = np.random.default_rng(0)
    tasks = [rng.random((count, 2)) < share for count, share in ((150, 0.3), (400, (0.5, 0.4)), (400, 0.25))]
    ours, theirs = (measured([list(task[:, side]) for task in tasks]) for side in (0, 1))
    _, interval = difference(theirs, ours, "correct")
    draws = []
    for _ in range(4000):
        picked = [task[rng.integers(0, len(task), len(task))] for task in tasks]
        draws.append(np.mean([p[:, 1].mean() - p[:, 0].mean() for p in picked]))
    assert interval == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.004)


def test_a_model_is_not_ahead_of_itself() -> None:
    same = measured([[True, False, True]])
    assert difference(same, same, "correct") == (0.0, (0.0, 0.0))
