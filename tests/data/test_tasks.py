import json

import numpy as np
import pytest

from hf_prune.data.task_sources import load_tasks
from hf_prune.data.tasks import Item, Task, bundled_tasks, order
from hf_prune.errors import InvalidData


def test_bundled_tasks_are_three_of_150_items():
    assert [p.name.split("_")[0] for p in bundled_tasks()] == ["math", "stories", "wiki"]
    assert [(t.name, len(t.items), t.chance) for t in load_tasks(bundled_tasks())] == [
        (f"{n}_cloze", 150, 0.25) for n in ("math", "stories", "wiki")
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a"', r"Line 2 of .*t\.report\.jsonl is not"),
        ('{"context": "a", "choices": ["b", "c"]}', "is not"),
        ('{"context": 1, "choices": ["b", "c"], "answer": 0}', "needs a context string"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "at least two options"),
        ('{"context": "a", "choices": ["b", " "], "answer": 0}', "not empty"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "answer 2, not one of 0 to 1"),
        ('{"context": "a", "choices": ["b", "c"], "answer": true}', "answer True"),
    ],
)
def test_malformed_items_are_named(tmp_path, line, message):
    good = json.dumps({"context": "a", "choices": ["b", "c"], "answer": 0})
    (tmp_path / "t.report.jsonl").write_text(good + "\n" + line + "\n")
    with pytest.raises(InvalidData, match=message):
        load_tasks([tmp_path / "t.report.jsonl"])


def test_missing_empty_and_repeated_files_are_named(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(InvalidData, match="is empty"):
        load_tasks([tmp_path / "none.jsonl"])
    with pytest.raises(InvalidData, match="Cannot read the task file"):
        load_tasks([tmp_path / "absent.jsonl"])
    with pytest.raises(InvalidData, match="Two tasks are called 'math_cloze'"):
        load_tasks([bundled_tasks()[0]] * 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_prefix_of_the_order_holds_all_answers_alike(seed):
    items = tuple(Item("q", ("a", "b", "c", "d"), 0 if i < 50 else 1 + i % 3) for i in range(100))
    task = Task("t", items)
    places = order(task, seed)
    assert task.spread(seed=seed).items == tuple(items[i] for i in places) and len(task.spread(7).items) == 7
    assert sorted(places) == list(range(100)) and places == order(task, seed) != order(task, seed + 7)
    for count in (20, 50, 80):
        share = np.mean([items[i].answer == 0 for i in places[:count]])
        assert abs(share - 0.5) < 0.06
