"""Candidates judged after a training: it starts from the candidate, helps it, and may be split into increments."""

import pytest
import torch

from hf_prune.assemble import assemble
from hf_prune.bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity
from hf_prune.evaluate import Evaluator
from hf_prune.training_aware import BATCH, Candidate, Lesson, TrainingAware
from tests.families import DEPTH, blueprint, mean
from tests.oracle import LENGTH, opened, tokens

ROWS = slice(2, 6)
CUTS = {"early": blueprint(1, 2, 4, 5), "late": blueprint(0, 1, 2, 3), "merged": blueprint(0, mean(1, 2), 4, 5)}


@pytest.fixture
def evaluator():
    parent = opened("llama")
    bank = LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])
    return Evaluator(bank, tokens(6, seed=1))


def of(evaluator, cut):
    return Blueprint((evaluator.bank.parents[0].source,), CUTS[cut].layers).canonical()


def aware(evaluator, home, seed=0):
    return TrainingAware(evaluator, Lesson.of(evaluator.dense, tokens(16, seed=2)), home, seed)


@pytest.mark.parametrize("cut", CUTS)
def test_before_the_first_step_a_candidate_is_what_the_sweep_scored(evaluator, cut):
    measured = evaluator.evaluate([of(evaluator, cut)], Fidelity(4, 2))[0]
    candidate = Candidate(evaluator.dense, evaluator.bank, of(evaluator, cut), 0)
    with candidate:
        assert candidate.measured(evaluator, ROWS) == pytest.approx((measured.kl, measured.nll), rel=1e-4)


@pytest.mark.parametrize("cut", CUTS)
def test_training_lowers_the_loss_on_what_it_was_taught(evaluator, tmp_path, cut):
    taught = TrainingAware(evaluator, Lesson.of(evaluator.dense, tokens(6, seed=1)), tmp_path)
    first, last = (taught.scores(of(evaluator, cut), BATCH * LENGTH * n, slice(0, 6))[0] for n in (1, 40))
    assert last < 0.9 * first


def test_two_increments_are_one_training(evaluator, tmp_path):
    cut, step = of(evaluator, "early"), BATCH * LENGTH
    once = aware(evaluator, tmp_path / "once").scores(cut, 6 * step, ROWS)
    split = aware(evaluator, tmp_path / "split")
    split.scores(cut, 3 * step, ROWS)
    assert split.scores(cut, 6 * step, ROWS) == once and split.trained_tokens == 6 * step
    # A new process finds the increments on disk and trains nothing.
    again = aware(evaluator, tmp_path / "split")
    assert again.scores(cut, 6 * step, ROWS) == once and again.trained_tokens == 0
    assert aware(evaluator, tmp_path / "other", seed=1).scores(cut, 6 * step, ROWS) != once


def test_the_shared_layers_are_left_as_they_were(evaluator, tmp_path):
    state = {n: t.clone() for n, t in evaluator.bank.model.state_dict().items()}
    before = evaluator.evaluate([of(evaluator, "merged")], Fidelity(6))[0].kl
    aware(evaluator, tmp_path).scores(of(evaluator, "merged"), 8 * BATCH * LENGTH, ROWS)
    assert all(torch.equal(t, state[n]) for n, t in evaluator.bank.model.state_dict().items())
    assert evaluator.evaluate([of(evaluator, "merged")], Fidelity(6))[0].kl == before
    assert not any(m._forward_hooks for m in evaluator.bank.model.modules())
    assert all(p.grad is None for p in evaluator.bank.model.parameters())
