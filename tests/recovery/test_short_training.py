"""Candidates judged after a training: it starts from the candidate, helps it, and may be split into increments."""

import math
from dataclasses import replace

import pytest
import torch

from hf_prune.assembly.assemble import assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, Fidelity, LayerSpec, Part
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.recovery.repair import repair
from hf_prune.recovery.short_training import BATCH, Candidate, Lesson, TrainingAware
from tests.families import DEPTH, EVERY, blueprint, mean
from tests.oracle import LENGTH, opened, tokens

ROWS, STEP = slice(2, 6), BATCH * LENGTH
HALF = LayerSpec((Part(0, 2),), attn_level=GONE)
CUTS = {
    "early": blueprint(1, 2, 4, 5),
    "late": blueprint(0, 1, 2, 3),
    "merged": blueprint(0, mean(1, 2), 4, 5),
    "halved": blueprint(0, 1, HALF, 3, LayerSpec((Part(0, 4),), mlp_level=GONE), 5),
    "copied": blueprint(0, 2, 2, 5),
}


def evaluator_of(family):
    parent = opened(family)
    bank = LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])
    return Evaluator(bank, tokens(6, seed=1))


@pytest.fixture
def evaluator():
    return evaluator_of("llama")


def of(evaluator, cut):
    return Blueprint((evaluator.bank.parents[0].source,), CUTS[cut].layers).canonical()


def aware(evaluator, home, seed=0, windows=16):
    return TrainingAware(evaluator, Lesson.of(evaluator.dense, tokens(windows, seed=2)), home, seed)


def untrained(evaluator, cut):
    with Candidate(evaluator.dense, evaluator.bank, cut, 0) as candidate:
        return candidate.measured(evaluator, ROWS)


@pytest.mark.parametrize("cut", CUTS)
def test_before_the_first_step_a_candidate_is_what_the_sweep_scored(evaluator, cut):
    measured = evaluator.evaluate([of(evaluator, cut)], Fidelity(4, 2))[0]
    assert measured.kl > 0.1
    assert untrained(evaluator, of(evaluator, cut)) == pytest.approx((measured.kl, measured.nll), rel=1e-4)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_starts_where_the_sweep_was_and_learns(family, tmp_path):
    evaluator = evaluator_of(family)
    cut = of(evaluator, "early")
    measured = evaluator.evaluate([cut], Fidelity(6))[0]
    with Candidate(evaluator.dense, evaluator.bank, cut, 0) as candidate:
        assert candidate.measured(evaluator, slice(0, 6)) == pytest.approx((measured.kl, measured.nll), rel=1e-3)
    taught = TrainingAware(evaluator, Lesson.of(evaluator.dense, tokens(6, seed=1)), tmp_path)
    assert taught.scores(cut, 20 * STEP, slice(0, 6))[0] < 0.95 * measured.kl


def test_a_repaired_candidate_starts_from_its_repair(evaluator):
    done = repair(evaluator.bank, of(evaluator, "early"), tokens(24, seed=1), tokens(24, seed=1)).blueprint
    measured = evaluator.evaluate([done], Fidelity(4, 2))[0]
    assert untrained(evaluator, done) == pytest.approx((measured.kl, measured.nll), rel=1e-4)
    assert untrained(evaluator, of(evaluator, "early"))[0] != pytest.approx(measured.kl, rel=1e-2)


@pytest.mark.parametrize("cut", CUTS)
def test_training_lowers_the_loss_on_what_it_was_taught(evaluator, tmp_path, cut):
    taught = TrainingAware(evaluator, Lesson.of(evaluator.dense, tokens(6, seed=1)), tmp_path)
    first, last = (taught.scores(of(evaluator, cut), STEP * n, slice(0, 6))[0] for n in (1, 40))
    assert last < 0.9 * first


def test_where_nothing_is_cut_there_is_nothing_to_learn(evaluator, tmp_path):
    whole = Blueprint.identity(evaluator.bank.parents[0].source, DEPTH)
    assert aware(evaluator, tmp_path).scores(whole, 4 * STEP, ROWS)[0] < 1e-3


@pytest.mark.parametrize("cut", ["early", "merged", "halved"])
def test_increments_are_one_training(evaluator, tmp_path, cut):
    cut = of(evaluator, cut)
    once = aware(evaluator, tmp_path / "once").scores(cut, 12 * STEP, ROWS)
    split = aware(evaluator, tmp_path / "split")
    scores = [split.scores(cut, n * STEP, ROWS) for n in (3, 6, 12)]
    assert scores[-1] == once and len(set(scores)) == 3 and split.trained_tokens == 12 * STEP


def test_a_new_process_finds_the_increments_on_disk(evaluator, tmp_path):
    cut = of(evaluator, "merged")
    whole = aware(evaluator, tmp_path)
    scores = [whole.scores(cut, n * STEP, ROWS) for n in (3, 6)]
    again = aware(evaluator_of("llama"), tmp_path)
    assert [again.scores(cut, n * STEP, ROWS) for n in (3, 6)] == scores and again.trained_tokens == 0
    # The later one was never finished: trained again from the earlier.
    (late,) = tmp_path.glob("*-6.safetensors")
    late.unlink()
    after = aware(evaluator_of("llama"), tmp_path)
    assert after.scores(cut, 6 * STEP, ROWS) == scores[1] and after.trained_tokens == 3 * STEP
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".safetensors"] * 2


def test_increments_of_another_seed_or_text_are_not_taken_up(evaluator, tmp_path):
    cut = of(evaluator, "early")
    ways = [{}, {"seed": 1}, {"windows": 8}]
    alone = [aware(evaluator, tmp_path / str(n), **way).scores(cut, 4 * STEP, ROWS) for n, way in enumerate(ways)]
    together = [aware(evaluator, tmp_path / "one", **way).scores(cut, 4 * STEP, ROWS) for way in ways]
    assert together == alone and len(set(alone)) == 3


def test_candidates_do_not_share_what_they_learned(evaluator, tmp_path):
    alone = {c: aware(evaluator, tmp_path / c).scores(of(evaluator, c), 4 * STEP, ROWS) for c in ("early", "copied")}
    both = aware(evaluator, tmp_path / "both")
    assert {c: both.scores(of(evaluator, c), 4 * STEP, ROWS) for c in reversed(alone)} == alone


def test_the_seed_decides_and_nothing_else(evaluator, tmp_path):
    cut, found = of(evaluator, "early"), []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        found.append(aware(evaluator, tmp_path / str(number), seed).scores(cut, 6 * STEP, ROWS))
    assert found[0] == found[1] != found[2]


def test_windows_are_read_again_when_the_budget_is_larger(evaluator, tmp_path):
    few = aware(evaluator, tmp_path / "few", windows=3)
    assert math.isfinite(few.scores(of(evaluator, "early"), 8 * STEP, ROWS)[0]) and few.trained_tokens == 8 * STEP


def test_a_candidate_that_breaks_scores_infinity(evaluator, tmp_path):
    cut = of(evaluator, "early")
    broken = replace(cut, layers=(LayerSpec((Part(0, 0, 1e30),)), *cut.layers[1:]))
    assert aware(evaluator, tmp_path).scores(broken, STEP, ROWS) == (math.inf, math.inf, ())


@pytest.mark.parametrize("cut", CUTS)
def test_the_shared_layers_are_left_as_they_were(evaluator, tmp_path, cut):
    cut, bank = of(evaluator, cut), evaluator.bank
    before = evaluator.evaluate([cut], Fidelity(6))[0]
    layers = [bank.model, *(bank.module(s) for s in cut.layers)]
    state = [{n: t.clone() for n, t in layer.state_dict().items()} for layer in layers]
    aware(evaluator, tmp_path).scores(cut, 8 * STEP, ROWS)
    for layer, kept in zip(layers, state, strict=True):
        assert all(torch.equal(t, kept[n]) for n, t in layer.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
        assert all(p.grad is None for p in layer.parameters())
    assert [bank.module(s) for s in cut.layers] == layers[1:]
    assert evaluator.evaluate([cut], Fidelity(6))[0].kl == before.kl


def test_an_error_on_the_way_leaves_no_hooks(evaluator):
    candidate = Candidate(evaluator.dense, evaluator.bank, of(evaluator, "early"), 0)
    with pytest.raises(KeyError):
        with candidate:
            assert any(m._forward_hooks for layer in candidate.layers for m in layer.modules())
            raise KeyError
    assert not any(m._forward_hooks for layer in candidate.layers for m in layer.modules())
