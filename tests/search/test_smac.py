"""SMAC3 behind our protocol: it repeats itself bit for bit, keeps to the budget and leaves nothing behind."""

import sys
from collections import Counter

import numpy as np
import pytest

from hf_prune.blueprint import Fidelity
from hf_prune.errors import InvalidRecipe
from hf_prune.methods.collapse import CollapseSpace
from hf_prune.methods.stitch import StitchSpace
from hf_prune.search import SEARCHERS, Schedule
from tests.search.toy import play

SPACE = StitchSpace(6, 2, 3, ("linear",), steps=4)
FULL = Fidelity(9)
STAGES = (Fidelity(1), Fidelity(3), FULL)


def value(trial):
    """Best: the last two layers gone and everything of the third parent."""
    genes = SPACE.genes(trial.genome)
    far = sum(abs(i - 4.5) for i, g in enumerate(genes) if not g.kept)
    return (far + sum(g.mixes[0][1] + g.mixes[0][2] for g in genes if g.kept) / 4,)


def searched(name, evaluations, seed=0, stages=(FULL,), worth=value, seeds=()):
    schedule = Schedule(stages, evaluations, offspring=8, seeds=seeds)
    batches = SEARCHERS[name].propose(SPACE, schedule, np.random.default_rng(seed))
    return play(batches, lambda trials: [worth(t) for t in trials])


@pytest.mark.parametrize("stages", [(FULL,), STAGES], ids=["blackbox", "hyperband"])
def test_the_same_seed_asks_the_same_whatever_the_time(stages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = np.random.get_state()[1].copy()
    told, batches = searched("smac", 16, stages=stages)
    assert searched("smac", 16, stages=stages) == (told, batches)
    assert not list(tmp_path.iterdir()) and (np.random.get_state()[1] == before).all()


def test_it_keeps_to_the_cap_the_space_and_the_stages():
    seeds = (SPACE.from_removed((0, 1)), SPACE.from_removed((2, 3)))
    told, batches = searched("smac", 30, stages=STAGES, seeds=seeds)
    asked = [t for batch in batches for t in batch]
    assert len(asked) == 30 and tuple(t.genome for t in asked[:2]) == seeds
    assert all(SPACE.removed(t.genome) == 2 for t in asked)
    counts = Counter(t.fidelity for t in asked)
    assert len(counts) > 1 and set(counts) <= set(STAGES)
    assert {o.trial.fidelity for o in told} == {FULL}
    assert [o.values for o in told] == sorted(o.values for o in told)


def test_broken_candidates_are_told_and_do_not_win():
    def worth(trial):
        return (float("inf"),) if not SPACE.genes(trial.genome)[0].kept else value(trial)

    told, _ = searched("smac", 20, worth=worth)
    assert np.isfinite(told[0].values[0])


def test_several_values_end_as_a_front():
    def worth(trial):
        return (*value(trial), float(sum(g.mixes[0][3] for g in SPACE.genes(trial.genome) if g.kept)))

    told, _ = searched("smac", 24, worth=worth)
    pairs = [o.values for o in told]
    assert (
        len(pairs) > 1 and pairs == sorted(pairs) and all(a[1] > b[1] for a, b in zip(pairs, pairs[1:], strict=False))
    )


def test_a_space_without_genes_and_a_missing_package_are_named(monkeypatch):
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidRecipe, match="--method stitch only"):
        next(SEARCHERS["smac"].propose(CollapseSpace(6, 2), Schedule((FULL,), 9), rng))
    monkeypatch.setitem(sys.modules, "smac", None)
    with pytest.raises(InvalidRecipe, match=r"hf-prune\[smac\]"):
        searched("smac", 20)
