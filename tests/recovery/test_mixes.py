"""Mixes and repairs learned by gradient: a blueprint says what was learned, and it is better than before."""

import pytest
import torch

from hf_prune.blueprint import Fidelity, LayerSpec, Part
from hf_prune.evaluation.objectives import DOUBT_WEIGHT
from hf_prune.recovery.mixes import midway, tunable, tune, tune_repair
from hf_prune.recovery.repair import evenly, repair, weaken
from tests.families import EVERY, mean
from tests.recovery.test_descent import ASKED, ROWS, STEPS, asking, evaluator_of, mixed


def tuned(evaluator, blueprint, steps=STEPS, **told):
    return tune(evaluator, blueprint, Fidelity(ROWS), steps, **told)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_learns_its_mixes(family):
    evaluator = evaluator_of(family)
    before = mixed(evaluator, 0, mean(1, 2), 3, mean(4, 5))
    weights = {n: p.clone() for n, p in evaluator.bank.model.named_parameters()}
    told = []
    done = tuned(evaluator, before, progress=lambda *now: told.append(now))
    assert [t[:2] for t in told] == [(i + 1, STEPS) for i in range(STEPS)]
    assert tuple(t[2] for t in told) == done.losses
    kl = [m.kl for m in evaluator.evaluate([before, done.blueprint], Fidelity(ROWS))]
    assert kl[0] == pytest.approx(done.losses[0], rel=1e-3) and kl[1] < kl[0]
    for spec in done.blueprint.layers:
        for parts in (spec.parts, spec.mlp.parts if spec.mlp else spec.parts):
            assert sum(p.weight for p in parts) == pytest.approx(1.0)
    for name, parameter in evaluator.bank.model.named_parameters():
        assert torch.equal(parameter, weights[name]) and not parameter.requires_grad, name


def test_in_sixteen_bits_it_learns_as_well():
    evaluator = evaluator_of("llama", torch.bfloat16)
    before = mixed(evaluator, 0, mean(1, 2), mean(3, 4), 5)
    after = tuned(evaluator, before).blueprint
    kl = [m.kl for m in evaluator.evaluate([before, after], Fidelity(ROWS))]
    assert kl[1] < kl[0] and evaluator.bank.model.dtype == torch.bfloat16


def test_it_is_the_same_every_time_whoever_asked_before():
    evaluator = evaluator_of("llama")
    before = mixed(evaluator, 0, mean(1, 2), 3, 5)
    assert tuned(evaluator, before) == tuned(evaluator, before)
    assert tuned(evaluator, before, steps=0).blueprint == before


def test_only_sums_of_layers_are_learned():
    evaluator = evaluator_of("llama")
    arc = LayerSpec((Part(0, 1, 0.5), Part(0, 2, 0.5)), merge="slerp")
    silent = LayerSpec((Part(0, 3),), norms=Part(0, 4))
    assert not tunable(arc) and not tunable(silent) and tunable(mean(1, 2))
    done = tuned(evaluator, mixed(evaluator, 0, arc, silent, mean(4, 5)))
    assert done.blueprint.layers[1:3] == (arc, silent) and done.blueprint.layers[3] != mean(4, 5)
    fixed = mixed(evaluator, arc, silent)
    assert tuned(evaluator, fixed).blueprint == fixed and tuned(evaluator, fixed).losses == ()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_midway_every_weight_is_between_what_was_searched_and_what_was_learned(share):
    evaluator = evaluator_of("llama")
    arc = LayerSpec((Part(0, 1, 0.5), Part(0, 2, 0.5)), merge="slerp")
    before = mixed(evaluator, 0, arc, mean(4, 5))
    after = tuned(evaluator, before).blueprint
    between = midway(before, after, share)
    assert midway(before, after, 0.0) == before and midway(before, after, 1.0) == after
    assert between.layers[1] == arc
    tensors = [evaluator.bank.module(b.layers[2]).state_dict() for b in (before, after, between)]
    for name, first in tensors[0].items():
        torch.testing.assert_close(tensors[2][name], torch.lerp(first, tensors[1][name], share))
    assert any(not torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tasks_are_learned_beside_the_text(dtype):
    evaluator = asking(dtype)
    before = mixed(evaluator, 0, mean(1, 2), mean(5, 6), 15)
    done = tune(evaluator, before, ASKED, STEPS)
    losses = [m.kl + DOUBT_WEIGHT * m.doubt for m in evaluator.evaluate([before, done.blueprint], ASKED)]
    assert losses[0] == pytest.approx(done.losses[0], rel=1e-3 if dtype == torch.float32 else 2e-2)
    assert losses[1] < losses[0] and done.blueprint != tune(evaluator, before, Fidelity(ROWS, 1), STEPS).blueprint
    assert evaluator.bank.model.dtype == dtype


@pytest.mark.parametrize("family", EVERY)
def test_every_family_learns_how_far_its_repair_goes(family):
    evaluator = evaluator_of(family)
    bank, windows = evaluator.bank, evaluator.reference.tokens
    cut = mixed(evaluator, 0, mean(1, 2), 3, 5)
    whole = repair(bank, cut, windows, windows).blueprint
    begun, told = weaken(bank, whole, evenly(whole, 0.5)), []
    shares = tune_repair(evaluator, whole, 0.5, Fidelity(ROWS), STEPS, lambda *now: told.append(now[2]))
    kl = [m.kl for m in evaluator.evaluate([begun, weaken(bank, whole, shares)], Fidelity(ROWS))]
    assert told[0] == pytest.approx(kl[0], rel=1e-3) and kl[1] < kl[0]
    refitted = [spec.repair is not None for spec in whole.layers]
    assert any(refitted) and [pair != (1.0, 1.0) for pair in shares] == refitted


def test_where_a_repair_changed_nothing_there_is_nothing_to_learn():
    evaluator = evaluator_of("llama")
    assert tune_repair(evaluator, mixed(evaluator, 0, 2, 5), 0.5, Fidelity(ROWS), STEPS) == ((1.0, 1.0),) * 3
