"""The best on windows that the search has not seen is built, whoever found it."""

import json

import pytest

from hf_prune import run
from hf_prune.blueprint import Outcome, Trial
from hf_prune.events import exhaust
from hf_prune.session.baselines import Baseline
from hf_prune.session.journal import Journal
from hf_prune.session.selection import best_unseen, chosen
from hf_prune.session.session import open_session
from tests.runs import base, recipe, text


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("selection")
    base(home / "base")
    text(home / "text.txt")
    return home


def opened(home, **changes):
    """A session, and all its cuts from the best to the worst on the selection windows, as (genome, model, KL)."""
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "drop_layers": 2}
    session = open_session(recipe(home, **given, **changes))
    genomes = list(session.deletions(2).space.enumerate())
    blueprints = [session.deletions(2).blueprint(g) for g in genomes]
    worth = [m.kl for m in session.evaluator.evaluate(blueprints, session.evidence.selection)]
    order = sorted(range(len(genomes)), key=lambda i: worth[i])
    own = session.scorer.space
    return session, [(own.from_removed(session.inputs.removed(b)), b, w) for b, w in
                     ((blueprints[i], worth[i]) for i in order)]  # fmt: skip


def finalists(session, *genomes):
    return tuple(Outcome(Trial(g, session.evidence.full), (0.0,) * len(session.columns)) for g in genomes)


def baseline(session, name, blueprint):
    return Baseline(name, blueprint, session.inputs.removed(blueprint), (), f"cut of {name}")


def test_a_better_cut_of_a_baseline_is_the_result(home):
    session, cuts = opened(home)
    ours, baselines = finalists(session, cuts[9][0], cuts[3][0]), [baseline(session, n, cuts[n][1]) for n in (5, 1, 14)]
    choice = exhaust(best_unseen(session, Journal.memory(), ours, baselines))
    assert choice.cut.digest == cuts[1][1].digest and choice.found_by == "cut of 1"
    assert choice.beaten.digest == cuts[3][1].digest
    winner = chosen(session, choice, ours, tuple(baselines), 7)
    assert winner.baselines[-1].blueprint == choice.beaten and winner.baselines[-1].name == "search"
    assert winner.found_by == "cut of 1" and winner.layer_tokens == 7


def test_what_the_search_found_as_well_has_beaten_nobody(home):
    session, cuts = opened(home)
    baselines = (baseline(session, "a", cuts[2][1]), baseline(session, "b", cuts[8][1]))
    choice = exhaust(best_unseen(session, Journal.memory(), finalists(session, cuts[2][0], cuts[4][0]), baselines))
    assert choice.cut.digest == cuts[2][1].digest and choice.found_by == "cut of a" and choice.beaten is None
    choice = exhaust(best_unseen(session, Journal.memory(), finalists(session, cuts[0][0]), baselines))
    assert choice.cut.digest == cuts[0][1].digest and choice.found_by is None


def test_a_resumed_choice_measures_nothing_again(home, monkeypatch, tmp_path):
    session, cuts = opened(home)
    ours, others = finalists(session, cuts[9][0]), (baseline(session, "a", cuts[1][1]),)
    with Journal.open(tmp_path / "journal.jsonl", {}) as journal:
        first = exhaust(best_unseen(session, journal, ours, others))
        told = list(journal.rows())
    monkeypatch.setattr(session.evaluator, "evaluate", lambda *a: pytest.fail("it is in the journal"))
    with Journal.open(tmp_path / "journal.jsonl", {}) as journal:
        assert list(journal.rows()) == told
        assert exhaust(best_unseen(session, journal, ours, others)) == first


def test_cuts_of_baselines_are_repaired_before_the_choice_like_finalists(home):
    session, cuts = opened(home, repair=True, repair_sequences=8, repair_finalists=3)
    baselines = tuple(baseline(session, n, cuts[n][1]) for n in (1, 13))
    choice = exhaust(best_unseen(session, Journal.memory(), finalists(session, cuts[0][0], cuts[14][0]), baselines))
    asked = [tuple(row["removed"]) for row in choice.summary["finalists"]]
    assert asked == [session.inputs.removed(cuts[n][1]) for n in (0, 1, 13)]
    best = min(choice.summary["finalists"], key=lambda row: row["after"])
    assert session.inputs.removed(choice.cut) == tuple(best["removed"]) and choice.summary["by"] == "kl"


def test_a_whole_run_says_whose_cut_it_built(home):
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "drop_layers": 2}
    # A search of one trial, which its own start uses up, is a poor one.
    poor = {"search": "random", "evaluations": 1, "rules": ("mean",), "baselines": ("greedy", "shortgpt")}
    done = run(recipe(home, **given, **poor, output=str(home / "poor")))
    found = done.report["found_by"]
    card, rows = (done.folder / "README.md").read_text(), done.report["baselines"]
    assert found in {row["label"] for row in rows} and f"This model is the cut of {found}".split(" (")[0] in card
    cut = json.loads((done.folder / "blueprint.json").read_text())
    assert all(len(layer["parts"]) == 1 for layer in cut["layers"]), "only a baseline deletes and merges nothing"


@pytest.mark.parametrize(("objective", "by"), [("kl", "doubt"), ("tasks_norm", "tasks_norm")])
def test_trained_finalists_are_ranked_by_their_answers_where_there_are_tasks(home, tmp_path, objective, by):
    items = [{"context": f"the {a} sat", "choices": [" on", " dog", " had been"], "answer": n % 3}
             for n, a in enumerate(("cat", "dog", "mat", "noon") * 4)]  # fmt: skip
    for side, some in (("search", items[:12]), ("report", items[12:])):
        rows = [{**row, "context": f"{side} {row['context']}"} for row in some]
        (tmp_path / f"sits.{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = {"search_tasks": (str(tmp_path / "sits.search.jsonl"),), "tasks": (str(tmp_path / "sits.report.jsonl"),)}
    session, cuts = opened(home, **asked, search_items=6, selection_items=6, search_heal="500", objective=objective)
    journal = Journal.memory()
    choice = exhaust(best_unseen(session, journal, finalists(session, *(g for g, _, _ in cuts[:3]))))
    assert choice.summary["by"] == by
    column = session.columns.index(by)
    last = max(row.fidelity.heal_tokens for row in journal.rows())
    best = min((row for row in journal.rows() if row.fidelity.heal_tokens == last), key=lambda r: r.values[column])
    assert best.digest == choice.cut.digest
    assert all(row.values[column] < float("inf") for row in journal.rows() if row.fidelity.heal_tokens)
