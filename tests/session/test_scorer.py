"""Right answers of every candidate, a line each; a torn line spoils no other."""

import json

import numpy as np

from hf_prune.blueprint import Fidelity
from hf_prune.data.task_scores import TaskScores
from hf_prune.evaluation.objectives import Measures
from hf_prune.session.scorer import keep_items


def measured(*right):
    scores = TaskScores("quiz", 0.5, np.zeros((len(right), 2)), np.array(right, bool), np.array(right, bool))
    return Measures(0.0, 0.0, 0.0, 0.0, 1, tasks=(scores,))


def test_lines_say_which_items_were_right(tmp_path):
    path = tmp_path / "items.jsonl"
    keep_items(path, ["a", "b"], Fidelity(4, items=3, first_item=2), [measured(1, 0, 1), measured(0, 0, 0)])
    with path.open("a") as file:
        file.write('\n{"digest": "torn')
    keep_items(path, ["c"], Fidelity(4, items=3), [measured(1, 1, 1)])
    lines = [line for line in path.read_text().split("\n") if line.endswith("}")]
    rows = {r["digest"]: r for r in map(json.loads, lines)}
    assert rows["a"] == {"digest": "a", "fidelity": [3, 2], "right": {"quiz": "101"}} and rows["c"]["fidelity"] == [
        3,
        0,
    ]
    assert set(rows) == {"a", "b", "c"}


def test_text_alone_leaves_no_file(tmp_path):
    keep_items(tmp_path / "items.jsonl", ["a"], Fidelity(4), [Measures(0.0, 0.0, 0.0, 0.0, 1)])
    assert not list(tmp_path.iterdir())
