"""What is measured on a whole official split lies beside the model as the Hub wants it, and nothing else does."""

import io

import numpy as np
import pyarrow
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.data.bundled import bundled_folder
from hf_prune.hub import benchmark_task
from hf_prune.report.benchmarks import FOLDER, write_benchmarks
from hf_prune.report.lm_eval import HarnessScores, scores

DATASET = "openai/gsm8k"
TASKS = {"name": "GSM8K", "tasks": [{"id": "socratic", "config": "socratic", "split": "test"},
                                    {"id": "gsm8k", "config": "main", "split": "test"}]}  # fmt: skip


def seeded(server, registration):
    """A benchmark of three questions."""
    head, files = "---\nconfigs:\n- config_name: main\n  data_files:\n", {}
    for split in ("train", "test"):
        head += f"  - split: {split}\n    path: main/{split}-*\n"
        rows = {"question": [f"{split} {i} and {i}?" for i in range(6)][: 3 if split == "test" else 6]}
        rows["answer"] = [f"#### {2 * i}" for i in range(len(rows["question"]))]
        out = io.BytesIO()
        parquet.write_table(pyarrow.table(rows), out)
        files[f"main/{split}-00000-of-00001.parquet"] = out.getvalue()
    said = {} if registration is None else {"eval.yaml": registration.encode()}
    server.seed(DATASET, {**files, **said, "README.md": f"{head}---\n".encode()}, kind="dataset")


def measured(**changes):
    made = HarnessScores("gsm8k", {"exact_match,strict-match": 0.25, "bleu": 3.0},
                         {"exact_match,strict-match": True, "bleu": True}, {"x": np.zeros(1)}, "lm_eval 1, task 3",
                         (DATASET, "main", "test", 5))  # fmt: skip
    return {"gsm8k": HarnessScores(**{**{n: getattr(made, n) for n in made.__dataclass_fields__}, **changes})}


def test_a_benchmark_says_which_task_a_split_is(hub_server):
    seeded(hub_server, yaml.safe_dump(TASKS))
    assert benchmark_task(DATASET, "main", "test") == "gsm8k"
    assert benchmark_task(DATASET, "main", "train") is benchmark_task("ns/other", "main", "test") is None


@pytest.mark.parametrize("said", [None, "", "a: [", "tasks: 3", "tasks: [3, {}]", "- x", "tasks: [{id: ../x, config: "
                                  "main, split: test}]", "tasks: [{id: 3, config: main, split: test}]"])  # fmt: skip
def test_what_says_nothing_sensible_is_no_benchmark(hub_server, said):
    seeded(hub_server, said)
    assert benchmark_task(DATASET, "main", "test") is None


def test_the_first_share_of_right_answers_is_written_in_percent(tmp_path, hub_server):
    seeded(hub_server, yaml.safe_dump(TASKS))
    write_benchmarks(tmp_path, measured())
    (file,) = (tmp_path / FOLDER).iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == (DATASET, "gsm8k", 25.0)
    assert entry.notes == "lm_eval 1, task 3: gsm8k, 5-shot, exact_match,strict-match"
    for nothing in ({"split": None}, {"split": (DATASET, "main", "train", 5)}, {"metrics": {"bleu": 3.0}}):
        write_benchmarks(tmp_path, measured(**nothing))
        assert not (tmp_path / FOLDER).exists()


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 2])
def test_only_a_whole_split_of_a_task_of_lm_eval_counts(tmp_path, hub_server, limit):
    pytest.importorskip("lm_eval")
    seeded(hub_server, yaml.safe_dump(TASKS))
    source = bundled_folder("examples/demo") / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    for _ in range(2):
        found = scores(model, tokenizer, ["gsm8k"], digest="d", limit=limit, cache=tmp_path / "cache")
        assert found["gsm8k"].split == (None if limit else (DATASET, "main", "test", 5))
    write_benchmarks(tmp_path, found)
    assert (tmp_path / FOLDER).is_dir() is (limit is None)
