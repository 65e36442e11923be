"""The numbers of a report in rows: dense beside pruned."""

import pytest

from hf_prune.report import tables
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.scores import total
from tests.report.test_card import make_report


def table(report):
    return tables.table(Report.from_dict(report))


@pytest.fixture
def report():
    return make_report()


def test_the_table_puts_dense_beside_pruned(report):
    rows = {row[0]: row[1:] for row in table(report)}
    assert rows["Perplexity, all text"] == ("18.9 (18.2 to 19.7)", "27.1 (25.7 to 28.4)", "× 1.43 (1.39 to 1.47)")
    assert rows["stories_cloze accuracy (150 items, chance 25 %)"][2] == "−6.6 points (−11.8 to −1.4)"
    assert rows["Parameters"] == ("3.41M", "2.63M", "−23.1 %")
    assert "Parameters in use (not zeroed)" not in rows


def test_a_speed_that_may_be_no_gain_is_called_so(report):
    rows = {row[0]: row[1:] for row in table(report)}
    assert rows["Decode, tokens per second"] == ("143", "188", "× 1.29 (1.22 to 1.36)")
    report["speed"]["decode"]["ci"] = [0.97, 1.4]
    report["speed"].pop("prefill")
    rows = {row[0]: row[1:] for row in table(report)}
    assert rows["Decode, tokens per second"][2] == "no clear difference (× 0.970 to 1.40)"
    assert "Prefill, tokens per second" not in rows


def test_one_corpus_is_not_shown_twice(report):
    del report["text"]["wiki"]
    assert [r[0] for r in table(report) if r[0].startswith("Perplexity")] == ["Perplexity, stories"]
    assert total(Report.from_dict(report).text).to_dict() == report["text"]["all"]


def test_acc_norm_has_a_row_of_its_own_where_there_are_options(report):
    task = report["tasks"]["stories_cloze"]
    for entry in (task["dense"], task["pruned"]):
        entry |= {"accuracy_norm": entry["accuracy"] + 0.1, "ci_norm": [0.4, 0.9]}
    task |= {"difference_norm": 0.02, "difference_ci_norm": [-0.01, 0.05]}
    rows = {row[0]: row[1:] for row in table(report)}
    assert rows["stories_cloze acc_norm (150 items, chance 25 %)"] == (
        "71.3 % (40.0 % to 90.0 %)", "64.7 % (40.0 % to 90.0 %)", "+2.0 points (−1.0 to +5.0)"
    )  # fmt: skip
    task["chance"] = 0.0
    assert not [row for row in table(report) if "acc_norm" in row[0]]
