"""What a search was worth, against what its journal holds."""

import numpy as np
import pytest

from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part, Trial
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
