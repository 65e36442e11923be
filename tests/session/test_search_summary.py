"""What a search was worth, against what its journal holds."""

from itertools import product

import numpy as np
import pytest

from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part, Trial
from hf_prune.session import search_summary
from hf_prune.session.journal import Journal
from hf_prune.session.search_summary import compare_merging
from hf_prune.session.selection import Winner, score
from hf_prune.session.session import open_session
from tests.runs import recipe


def test_merging_compares_a_merged_model_with_its_own_deletions(tmp_path):
    session = open_session(recipe(tmp_path, keep_layers=4, rules=("mean",)))
    journal = Journal.memory()
    plain_cut = Blueprint((session.inputs.base.source,), tuple(LayerSpec((Part(0, i),)) for i in (0, 1, 2, 3)))
    assert compare_merging(session, journal, Winner(plain_cut, plain_cut)) is None
    rng = np.random.default_rng(0)
    genomes = {session.scorer.space.random(rng) for _ in range(6)}
    told = score(session.scorer, journal, [Trial(g, Fidelity(4)) for g in genomes])
    merged = [session.scorer.blueprint(o.trial.genome) for o in told]
    winner = next(b for b in merged if any(len(s.parts) > 1 for s in b.layers))
    found = compare_merging(session, journal, Winner(winner, winner))
    assert found["won"] and found["helps"] == (found["ours"] < found["deletion"])
    measured = session.evaluator.evaluate([winner], session.evidence.selection)[0]
    assert found["ours"] == pytest.approx(measured.kl, rel=1e-4)


def test_the_best_of_many_deletions_is_found_layer_by_layer(tmp_path, monkeypatch):
    session = open_session(recipe(tmp_path, keep_layers=3))
    halves = tuple(LayerSpec((Part(0, i, 0.5), Part(0, i + 1, 0.5))) for i in (0, 2, 4))
    merged, asked = Blueprint((session.inputs.base.source,), halves), []
    whole = session.evaluator.evaluate
    monkeypatch.setattr(session.evaluator, "evaluate", lambda b, *a: asked.append(len(b)) or whole(b, *a))
    every = search_summary._merged_and_deleted(session, merged)
    monkeypatch.setattr(search_summary, "DELETIONS", 7)
    steps = search_summary._merged_and_deleted(session, merged)
    assert asked == [9, 2, 2, 2, 2]
    assert steps[0] == pytest.approx(every[0], rel=1e-5) and steps[1] >= every[1] - 1e-6
    kept = [whole([Blueprint(merged.sources, tuple(LayerSpec((Part(0, i),)) for i in cut))], session.evidence.selection)
            for cut in product((0, 1), (2, 3), (4, 5))]  # fmt: skip
    assert min(abs(m.kl - steps[1]) for (m,) in kept) < 1e-5


def test_rank_correlations_cost_a_small_share_of_the_search(tmp_path, monkeypatch):
    session = open_session(recipe(tmp_path, drop_layers=2))
    journal = Journal.memory()
    genomes = list(session.scorer.space.enumerate())
    score(session.scorer, journal, [Trial(g, session.evidence.full) for g in genomes])
    found = search_summary._correlations(session, journal)
    assert {row["n"] for row in found.values()} == {8}
    monkeypatch.setattr(search_summary, "SHARE", 10 / len(genomes))
    assert {row["n"] for row in search_summary._correlations(session, journal).values()} == {10}
