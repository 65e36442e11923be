"""The capability table: every stage beside dense, paired, and nothing but what was seen."""

import math

import numpy as np
import pytest
import torch

from hf_prune.data.task_scores import TaskScores
from hf_prune.data.windows import Windows
from hf_prune.report import comparisons, stages, statistics, tables, verdicts
from hf_prune.report.lm_eval import HarnessScores
from hf_prune.report.schema.report import Report
from hf_prune.report.schema.section import STAGES
from hf_prune.report.stages import Observed
from tests.families import VOCABULARY, tiny
from tests.report.test_card import make_report

CORPORA = ("a", "b") * 15
WINDOWS = Windows("report", torch.arange(30 * 90).view(30, 90) % VOCABULARY, CORPORA, {"a": "x", "b": "y"})
SAID = np.full(30, 178)
"""Two bytes for every predicted token."""


class Speaker:
    """A tokenizer whose words are numbers."""

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(map(str, ids))


def seen(loss, correct, rouge=0.5, said=1):
    """A model that loses so much on every window (more on later ones) and answers so many of four questions."""
    nll = (2.0 + loss + 0.01 * loss * torch.arange(30.0))[:, None].expand(-1, 89)
    right = np.arange(4) < correct
    scores = TaskScores("cloze", 0.25, np.zeros((4, 2)), right, right)
    close = {"rouge1": np.full(stages.PROMPTS, rouge), "exact_match": np.zeros(stages.PROMPTS)}
    harness = {"arc": HarnessScores("arc", {"acc": correct / 4}, {"acc": True}, {"acc": right.astype(float)}, "0.4.13")}
    return Observed((0 * nll + loss, nll), {"cloze": scores}, ((said,) * 8,) * stages.PROMPTS, close, harness)


def four():
    return {
        "dense": seen(0.0, 4),
        "cut": seen(1.0, 1, 0.2),
        "repaired": seen(0.5, 2, 0.3),
        "healed": seen(0.25, 3, 0.4),
    }


def table():
    return stages.stages(four(), WINDOWS, SAID, np.random.default_rng(0))


def test_the_share_closed_is_that_of_the_gap_in_log_perplexity():
    found = table()
    assert found.names == STAGES and set(found.text) == {"a", "b", "all"}
    for corpus in found.text.values():
        shares = [corpus.of(s).closed for s in found.names]
        assert shares == pytest.approx([1.0, 0.0, 0.5, 0.75], abs=1e-5)
        assert corpus.dense.log_ratio_ci == (0.0, 0.0) and corpus.cut.kl == pytest.approx(1.0)
    assert math.isnan(stages.closed(1.0, 1.0, 0.5))


def test_differences_are_paired_with_dense():
    found = table()
    assert found.tasks["cloze"].cut.difference == -0.75 and found.tasks["cloze"].dense.difference == 0
    rouge = found.generation.healed.rouge1
    assert rouge.difference == pytest.approx(-0.1) and rouge.difference_ci == pytest.approx((-0.1, -0.1))
    acc = found.harness["arc"].repaired.metrics["acc"]
    assert acc.value == 0.5 and acc.difference == -0.5 and acc.items == 4


def test_the_worst_samples_are_those_of_the_windows_that_lost_most():
    shown = stages.spoken(four(), Speaker(), WINDOWS).to_dict()
    assert len(shown["samples"]) == 6 and len(shown["worst"]) == 3
    first = [int(s["prompt"].split()[0]) for s in shown["worst"]]
    assert first == [int(WINDOWS.tokens[row, 0]) for row in (15, 14, 13)]
    assert shown["pruned"] == shown["healed"] and set(shown["samples"][0]) == {
        "prompt", "dense", "cut", "repaired", "healed", "pruned"}  # fmt: skip


def report(names, **more):
    four_of = four()
    kept = {n: four_of[n] for n in names}
    made = stages.stages(kept, WINDOWS, SAID, np.random.default_rng(0))
    text = statistics.text(kept["dense"].text, kept[names[-1]].text, WINDOWS, SAID)
    return Report.from_dict({**make_report(), "baselines": [], "merging": None, "stages": made, "text": text, **more})


REPAIR = {"kept": True, "kl_before": 1.0, "kl_after": 0.5, "windows": 192}
HEALING = {"kept": True, "before": 1.5, "after": 1.2, "tokens": 1_000_000, "method": "lora"}


def test_the_card_has_a_column_per_stage_and_drops_rows_of_zeros():
    for count in (2, 3, 4):
        header, rows = tables.stage_table(report(STAGES[:count]))
        assert header == ["", *STAGES[:count]] and all(len(r) == count + 1 for r in rows)
    labels = [r[0] for r in rows]
    assert "cloze accuracy" in labels and "lm_eval arc, acc" in labels and not any("Exact" in x for x in labels)
    assert tables.stage_table(report(("dense", "cut"), stages=None)) == ([""], [])


def test_what_came_back_is_said_and_what_did_not_help_too():
    names = STAGES
    both = verdicts.recovery_verdict(report(names, repair=REPAIR, healing=HEALING))
    assert "closes 50 % of the gap" in both[0] and "together 75 % of that gap" in both[1]
    alone = verdicts.recovery_verdict(report(("dense", "cut", "healed"), healing=HEALING))
    assert alone == [both[1].split(":")[0] + ": it closes 75 % of the gap that the cut opened."]
    hurt = report(names[:2], repair={**REPAIR, "kept": False}, healing={**HEALING, "kept": False})
    assert all("did not help" in s for s in verdicts.recovery_verdict(hurt)) and comparisons.is_bare(hurt)
    chosen = {"means": ["repaired"], "changed": True, "finalists": [{}] * 4, "spearman": 0.4}
    said = verdicts.recovery_verdict(report(names[:2], selection=chosen))
    assert said == ["4 finalists were repaired before the choice: another one was chosen than the best bare cut "
                    "(rank correlation of before and after 0.40)."]  # fmt: skip
    assert verdicts.recovery_verdict(report(names[:2])) == []


def test_baselines_are_compared_with_the_bare_cut():
    rival = {"name": "last", "label": "last layers", "perplexity": 1e9, "log_ratio_ci_vs_ours": [1.0, 2.0]}
    made = report(STAGES, repair=REPAIR, healing=HEALING, layers=[{"source": 0, "fate": "merged"}], baselines=[rival])
    cut = made.stages.text["all"].cut.perplexity
    assert comparisons.bare(made).perplexity == cut
    said = comparisons.baseline_verdict(made)
    assert f"this model's bare cut {verdicts.significant(cut)}" in said


def test_a_live_model_is_observed_as_it_is():
    model = tiny("llama", max_position_embeddings=128)
    text = (torch.zeros(30, 89), torch.zeros(30, 89))
    found = stages.observe(model, text, Speaker(), WINDOWS, {}, {})
    assert len(found.said) == stages.PROMPTS and all(len(s) <= 64 for s in found.said)
    assert set(found.closeness) == {"exact_match", "rouge1", "rouge2", "rougeL"}
    assert all(len(v) == stages.PROMPTS and (0 <= v).all() and (v <= 1).all() for v in found.closeness.values())


class Writer:
    """A tokenizer of bytes."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("latin-1")


def test_prompts_begin_at_a_sentence_where_there_is_room_for_one():
    texts = (
        "t was late. once upon a time",
        "no end here at all and no beginning",
        '"no!" she said. 3 of them. but who',
    )
    rows = torch.tensor([list(t.ljust(160).encode("latin-1")) for t in texts])
    begun = stages.prompts(Writer(), Windows("report", rows, ("a",) * 3, {"a": "x"}))
    assert [bytes(r.tolist()).decode("latin-1").strip() for r in begun] == [
        "once upon a time",
        texts[1],
        "she said. 3 of them. but who",
    ]
    short = Windows("report", rows[:, : stages.PROMPT_TOKENS + stages.NEW_TOKENS + 1], ("a",) * 3, {"a": "x"})
    assert [len(r) for r in stages.prompts(Writer(), short)] == [short.tokens.shape[1]] * 3
