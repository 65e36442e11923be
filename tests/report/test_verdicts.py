import math
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.report import comparisons, verdicts
from hf_prune.report.schema.model import removed_layers
from hf_prune.report.schema.report import Report
from tests.report.test_card import make_report


def tell(verdict, report):
    """What a verdict says of a report that is given as JSON."""
    return verdict(Report.from_dict(report))


@pytest.fixture
def report():
    return make_report()


@pytest.mark.parametrize(
    ("value", "text"),
    [(27.08, "27.1"), (5528.4, "5,530"), (0.0123456, "0.0123"), (9.999, "10.0"), (41, "41.0"), (0, "0"),
     (-0.0193, "−0.0193"), ("inf", "not finite"), (None, "–")],
)  # fmt: skip
def test_three_significant_digits(value, text):
    assert verdicts.significant(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(0.8489, 0.8052, "0.849 → 0.805"), (16.6393, 16.5963, "16.64 → 16.60"), (2.0, 2.0, "2.00 → 2.00"),
     (1.0, 1.0000001, "1.00 → 1.00")],
)  # fmt: skip
def test_a_change_is_told_by_as_many_digits_as_it_takes(before, after, text):
    assert verdicts.change(before, after) == text


@given(st.floats(1e-6, 1e9), st.integers(1, 5))
def test_significant_digits_keep_the_value(value, digits):
    assert float(verdicts.significant(value, digits).replace(",", "")) == pytest.approx(
        value, rel=0.51 * 10 ** (1 - digits)
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [(verdicts.amount(3413120), "3.41M"), (verdicts.amount(6.738e9), "6.74B"), (verdicts.amount(999), "999"),
     (verdicts.amount(6826240, "B"), "6.83 MB"), (verdicts.amount(512, "B"), "512 B"),
     (verdicts.percent(0.2307), "23.1 %"), (verdicts.percent(-0.25), "−25.0 %"),
     (verdicts.duration(43.2), "43 s"), (verdicts.duration(190), "3 min 10 s"),
     (verdicts.duration(7500), "2 h 5 min"), (verdicts.duration(None), "–"), (verdicts.decimals(-0.1234, 3), "−0.123")],
)  # fmt: skip
def test_units(call, text):
    assert call == text


def no_damage(report):
    report["text"]["all"]["pruned"]["perplexity"] = report["text"]["all"]["dense"]["perplexity"] * 1.05
    return report


def test_a_good_model_gets_no_warning(report):
    assert tell(verdicts.warnings, no_damage(report)) == []


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.4, "clearly worse"), (2.5, "2.50 times"), (2.5, "not a usable"), (math.inf, "broken")]
)
def test_lost_perplexity_is_said_plainly(report, ratio, words):
    text = report["text"]["all"]
    text["pruned"]["perplexity"] = text["dense"]["perplexity"] * ratio
    assert words in tell(verdicts.warnings, report)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["tasks"]["stories_cloze"]["pruned"].update(ci=[0.23, 0.38]), "cannot be told from guessing"),
        (lambda r: [r["tasks"]["stories_cloze"][k].update(ci=[0.2, 0.3]) for k in ("dense", "pruned")], "says nothing"),
        (lambda r: r["generation"]["pruned"].update(repetition=0.55), "55.0 % of its 4-grams repeat"),
        (lambda r: r["generation"]["pruned"].update(mean_length=9.0), "stops early"),
        (lambda r: r["certificate"].update(ok=False), "Do not use it"),
        (lambda r: r["speed"]["decode"].update(value=0.9, ci=[0.85, 0.95]), "decodes more slowly"),
    ],
)  # fmt: skip
def test_each_kind_of_damage_has_its_warning(report, change, words):
    change(no_damage(report))
    (warning,) = tell(verdicts.warnings, report)
    assert words in warning


def test_tasks_that_say_nothing_share_a_line(report):
    task = report["tasks"]["stories_cloze"]
    for side in ("dense", "pruned"):
        task[side]["ci"] = [0.2, 0.3]
    report["tasks"] = {name: task for name in ("a", "b", "c")}
    said = [w for w in tell(verdicts.warnings, report) if "nothing here" in w]
    assert said == ["a, b and c say nothing here: neither the dense nor the pruned model beats guessing."]


def test_perplexity_of_a_stitched_model_is_measured_by_the_best_parents(report):
    side = {"perplexity": 10.0, "ci": [9.0, 11.0]}
    row = {"best": "each", "pruned": side, "best_parent": side, "base": side, "log_ratio": math.log(1.5),
           "log_ratio_ci": [0.3, 0.5], "log_ratio_to_base": -0.2, "log_ratio_to_base_ci": [-0.3, -0.1]}  # fmt: skip
    report["beside_parents"] = {"all": row}
    assert tell(verdicts.warnings, report)[0].startswith(
        "Perplexity is 1.50 times that of the best parent of each corpus"
    )


def test_speed_is_told_only_where_it_was_measured(report):
    assert "medians of 9 rounds" in tell(verdicts.speed_verdict, report)
    for phase in ("prefill", "decode"):
        del report["speed"][phase]
    report["speed"] |= {"disturbed": 7, "repeats": 3}
    assert "other work disturbed 7 of 10 rounds" in tell(verdicts.speed_verdict, report)
    report["speed"] |= {"disturbed": 0, "repeats": 5}
    assert "no rounds of both models were compared" in tell(verdicts.speed_verdict, report)


def test_beating_the_best_baseline_needs_the_paired_interval(report):
    best = report["baselines"][0]
    said = tell(comparisons.baseline_verdict, report)
    assert said.startswith("This model beats the best other cut, SLEB (greedy)")
    best["log_ratio_ci_vs_ours"] = [-0.01, 0.03]
    assert "does not clearly beat" in tell(comparisons.baseline_verdict, report)
    best |= {"log_ratio_ci_vs_ours": [-0.04, -0.01], "perplexity": 26.4}
    assert "loses to the best other cut" in tell(comparisons.baseline_verdict, report)
    best["log_ratio_ci_vs_ours"] = None
    assert "proves little" in tell(comparisons.baseline_verdict, report)
    best["removed"] = [11, 7, 6, 3]
    said = tell(comparisons.baseline_verdict, report)
    assert said.startswith("The search did not beat SLEB (greedy), which removes the same layers.")


def test_the_verdict_says_whose_cut_was_built_and_goes_on_with_the_others(report):
    report["found_by"] = "SLEB (greedy)"
    said = tell(comparisons.baseline_verdict, report)
    assert said.startswith("This model is the cut of SLEB (greedy), the best on the selection split. This model beats")
    assert "the best other cut, ShortGPT" in said or "the best other cut, " in said
    assert "SLEB" not in said.split("other cut, ")[1]


def test_a_cut_that_only_the_report_finds_better_comes_with_its_command(report):
    assert tell(comparisons.better_command, report) is None
    best = report["baselines"][0]
    best |= {"log_ratio_ci_vs_ours": [-0.04, -0.01], "perplexity": 26.4}
    report["recipe"] |= {"repair": True, "evaluations": 100, "method": "halves", "strange": 1, "seed": 3}
    words = shlex.split(tell(comparisons.better_command, report))
    drop = ",".join(map(str, best["removed"]))
    assert words[:2] == ["hf-prune", "compress"] and words[words.index("--drop") + 1] == drop
    assert {"--repair", "--data", "--seed"} <= set(words)
    assert not {"--ratio", "--evaluations", "--method", "--strange"} & set(words)
    best["blueprint"] = "{}"
    assert tell(comparisons.better_command, report) == "hf-prune assemble other-cut.json --output other-cut"
    best["log_ratio_ci_vs_ours"] = [-0.04, 0.01]
    assert tell(comparisons.better_command, report) is None


def test_no_rival_no_verdict(report):
    report["baselines"] = [{"name": "hf_prune", "label": "this model", "perplexity": 27.08}]
    assert tell(comparisons.baseline_verdict, report) is None


def test_merging_is_judged_only_where_something_was_merged(report):
    assert "Nothing is merged" in tell(verdicts.merging_verdict, report)
    report["layers"][5]["fate"] = "norms_only"
    assert (
        "did not help" in tell(verdicts.merging_verdict, report)
        and removed_layers(Report.from_dict(report).layers) is None
    )
    report["layers"][5]["fate"] = "merged"
    assert "did not help" in tell(verdicts.merging_verdict, report)
    report["merging"] = {"ours": 0.29, "deletion": 0.31, "helps": True}
    assert "Merging helped" in tell(verdicts.merging_verdict, report)
    assert "0.290 against 0.310" in tell(verdicts.merging_verdict, report)
    report["merging"] = None
    assert tell(verdicts.merging_verdict, report) is None


def test_the_missed_target_is_stated(report):
    assert "23.1 % are gone, 1.9 percentage points less" in tell(verdicts.size_miss, report)
    report["size"]["asked_ratio"] = 0.2307
    assert tell(verdicts.size_miss, report) is None
    report["size"]["asked_ratio"] = None
    assert tell(verdicts.size_miss, report) is None
    predicted = {"request": 0.598, "prefill": 0.571, "decode": 0.62}
    measured = {"request": 0.641, "prefill": 0.5, "decode": 0.7}
    report["latency"] = {"asked": 0.6, "predicted": predicted, "measured": measured, "prompt_tokens": 256,
                         "answer_tokens": 32}  # fmt: skip
    said = (
        "60.0 % of the dense model's time for a request (256 tokens in, 32 out); the table of levels predicts 59.8 % "
        "(prefill 57.1 %, decoding 62.0 %), the finished model takes 64.1 % (prefill 50.0 %, decoding 70.0 %)."
    )
    assert said in tell(verdicts.size_miss, report)
    report["latency"]["measured"] = dict.fromkeys(measured)
    assert "the finished model could not be timed" in tell(verdicts.size_miss, report)


def kept(name, label, accuracy, lead):
    """A row of the retention section, the same for both accuracies."""
    row = {"mean_accuracy": accuracy, "difference_ci": lead}
    return {"name": name, "label": label, **row, **{f"{k}_norm": v for k, v in row.items()}}


@pytest.mark.parametrize(
    ("lead", "words"),
    [([-0.02, -0.01], "this model keeps more"), ([0.01, 0.02], "that one keeps more"),
     ([-0.01, 0.02], "a tie within the noise")],
)  # fmt: skip
def test_who_keeps_most_of_the_tasks_is_said_for_both_accuracies(report, lead, words):
    rows = [kept("parent", "base", 0.5, [0.1, 0.2]), kept("hf_prune", "hf_prune", 0.3, [0, 0]),
            kept("greedy", "cut by SLEB", 0.31, lead), kept("last", "last layers", 0.28, [0.1, 0.2])]  # fmt: skip
    report["retention"] = {"reference": "base", "reference_norm": "base", "rows": rows}
    said = tell(comparisons.retention_verdict, report)
    assert [s.partition(" over")[0] for s in said] == ["Mean accuracy", "Mean acc_norm"]
    assert all(f"this model 30.0 %, the best of the other cuts, cut by SLEB, 31.0 %; {words}" in s for s in said)
    report["retention"]["rows"].append(kept("repaired", "hf_prune, repaired", 0.32, [0, 0]))
    assert all("this model, repaired, 32.0 %" in s for s in tell(comparisons.retention_verdict, report))


def test_without_rivals_nothing_is_said_of_retention(report):
    assert tell(comparisons.retention_verdict, report) == []
    report["retention"] = {"reference": "base", "rows": [kept("hf_prune", "hf_prune", 0.3, [0, 0])]}
    assert tell(comparisons.retention_verdict, report) == []


def test_what_the_search_found_is_no_baseline_of_what_tuning_made_of_it(report):
    said = tell(comparisons.baseline_verdict, report)
    report["baselines"].append({"name": "searched", "label": "hf_prune, as searched", "perplexity": 1.0})
    assert tell(comparisons.baseline_verdict, report) == said
    rows = [kept("hf_prune", "hf_prune", 0.3, [0, 0]), kept("searched", "as searched", 0.9, [0.1, 0.2])]
    report["retention"] = {"reference": "base", "rows": rows}
    assert tell(comparisons.retention_verdict, report) == []


@pytest.mark.parametrize(
    ("kept", "words"), [(True, "the model as searched is among"), (False, "did not help, so they stay")]
)
def test_what_tuning_brought_is_said(report, kept, words):
    assert tell(verdicts.tuning_verdict, report) is None
    report["tuning"] = {"steps": 20, "windows": 48, "objective": "kl", "before": 0.8489, "after": 0.8052, "kept": kept}
    said = tell(verdicts.tuning_verdict, report)
    assert "20 steps on 48 search windows, kl 0.849 → 0.805 on the selection split" in said and words in said
    report["tuning"]["strength"] = 0.5
    assert "48 search windows, taken 50 % of the way, kl" in tell(verdicts.tuning_verdict, report)
    report["tuning"]["items"] = 96
    assert "48 search windows and 96 items of every search task, taken 50" in tell(verdicts.tuning_verdict, report)


def test_how_far_a_repair_was_taken_is_said_where_it_is_not_all(report):
    repair = {"kept": True, "windows": 4, "kl_before": 0.8, "kl_after": 0.5, "strength": 0.75}
    report["repair"], report["stages"] = repair, {"text": {"wiki": {"repaired": {"closed": 0.5}}}}
    (said,) = tell(verdicts.recovery_verdict, report)
    assert "Repair (closed form, taken 75 % of the way, 4 windows, KL" in said
    report["repair"] = {**repair, "strength": 1.0}
    assert "of the way" not in tell(verdicts.recovery_verdict, report)[0]


@pytest.mark.parametrize(
    ("kept", "words"),
    [(True, "on the selection split): from −8 % to 92 %."), (False, "did not help, so all")],
)
def test_how_far_each_half_of_a_repair_goes_is_said(report, kept, words):
    learning = {"steps": 20, "windows": 48, "items": 96, "objective": "abilities", "before": 16.42, "after": 16.39,
                "kept": kept, "shares": [None, [0.5, -0.08], [0.92, 0.25]]}  # fmt: skip
    report["repair"] = {"kept": True, "windows": 4, "kl_before": 0.8, "kl_after": 0.5, "strength": 0.5,
                        "learning": learning}  # fmt: skip
    report["stages"] = {"text": {"wiki": {"repaired": {"closed": 0.5}}}}
    closed, shares = tell(verdicts.recovery_verdict, report)
    assert ("taken 50 % of the way" in closed) != kept
    assert "48 search windows and 96 items of every search task, abilities 16.42 → 16.39" in shares and words in shares


@pytest.mark.parametrize("stage", ["repaired", "healed"])
def test_where_the_cut_cost_nothing_no_share_of_the_cost_came_back(report, stage):
    repair = {"kept": True, "windows": 4, "kl_before": 0.8, "kl_after": 0.5}
    healing = {"kept": True, "method": "lora", "tokens": 1000, "before": 1.5, "after": 1.25}
    report |= {"repair": repair} if stage == "repaired" else {"healing": healing}
    corpus = {stage: {"closed": 0.5}}
    report["stages"] = {"text": {"stories": corpus, "wiki": corpus}}
    (said,) = tell(verdicts.recovery_verdict, report)
    assert "50 % of the gap" in said and "of the way" not in said
    report["stages"]["text"]["wiki"] = {stage: {"closed": None}}
    (said,) = tell(verdicts.recovery_verdict, report)
    assert said.endswith("the cut opened no gap in log-perplexity to close in at least one corpus.") and "–" not in said
