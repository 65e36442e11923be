"""Mixes learned by gradient: the gradient is that of autograd, and a blueprint says what was learned."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer

from hf_prune.assemble import Parent, assemble
from hf_prune.bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Mix, Part, Source
from hf_prune.bundled import demo_folder
from hf_prune.evaluate import Evaluator
from hf_prune.exam import Exam
from hf_prune.objectives import DOUBT_WEIGHT
from hf_prune.reference import after
from hf_prune.tuning import _Layer, _Stack, _Tasks, midway, tunable, tune
from tests.families import DEPTH, EVERY, mean
from tests.oracle import opened, tokens
from tests.test_exam import EXACT, FEW_SHOT
from tests.test_tasks import MIXED

ROWS, STEPS = 4, 6
ASKED = Fidelity(ROWS, start=1, items=3, first_item=0)


def evaluator_of(family, dtype=torch.float32):
    parent = opened(family, dtype)
    bank = LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])
    return Evaluator(bank, tokens(6, seed=1))


def asking(dtype=torch.float32, packed=True):
    """The demo model, which knows words."""
    folder = demo_folder() / "storymath-16l"
    parent = Parent.open(Source("demo", "demo"), folder)
    bank = LayerBank(assemble(Blueprint.identity(parent.source, 16), [parent], dtype=dtype), [parent])
    exam = partial(Exam, tasks=[MIXED, EXACT, FEW_SHOT], packed=packed, tokenizer=AutoTokenizer.from_pretrained(folder))
    return Evaluator(bank, tokens(6, seed=1), exam=exam)


def mixed(evaluator, *layers):
    specs = tuple(s if isinstance(s, LayerSpec) else LayerSpec((Part(0, s),)) for s in layers)
    return Blueprint(evaluator.bank.sources, specs).canonical()


def tuned(evaluator, blueprint, steps=STEPS, **told):
    return tune(evaluator, blueprint, Fidelity(ROWS), steps, **told)


def test_the_gradient_by_a_weight_is_that_of_the_merged_layer():
    evaluator = evaluator_of("llama")
    spec = LayerSpec((Part(0, 1, 0.25), Part(0, 2, 0.75)), mlp=Mix((Part(0, 1, 0.5), Part(0, 2, 0.5))))
    layer, calls = _Layer(evaluator.bank, spec, evaluator.dense.family.half), evaluator.dense.record(tokens(1))[0]
    state = torch.randn(2, tokens(1).shape[1], evaluator.reference.hidden[0].shape[-1])
    after(layer.module, state, calls[spec.anchor.layer]).square().sum().backward()

    weights = layer.weights.detach().clone().requires_grad_()
    theirs = [dict(evaluator.bank.module(LayerSpec((Part(*key),))).named_parameters()) for key in layer.sources]
    half = {name: int(name.startswith("mlp.")) for name in theirs[0]}
    merged = {n: sum(weights[half[n], k] * t[n] for k, t in enumerate(theirs)) for n in theirs[0]}
    args, kwargs = calls[spec.anchor.layer]
    out = torch.func.functional_call(evaluator.bank.module(LayerSpec((Part(0, 2),))), merged, (state, *args), kwargs)
    (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    torch.testing.assert_close(layer.weights.grad, weights.grad, rtol=1e-4, atol=1e-3)
    assert all(p.grad is None for p in layer.module.parameters()), "a gradient that is used up takes no memory"


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


@pytest.mark.parametrize("packed", [True, False])
def test_the_gradient_by_a_weight_is_what_the_doubt_about_tasks_does(packed):
    evaluator = asking(packed=packed)
    stack = _Stack(evaluator, mixed(evaluator, 0, mean(1, 2), mean(5, 6), 15).over(evaluator.bank.sources))
    told = _Tasks(stack, ASKED).descend()
    blends = stack.layers[1:3]
    slopes = torch.stack([layer.weights.grad for layer in blends])

    def doubt(step):
        specs = []
        for layer, row in zip(blends, 0.5 + step, strict=True):
            attention, mlp = (tuple(map(Part, *zip(*layer.sources, strict=True), half)) for half in row.tolist())
            specs.append(LayerSpec(attention, mlp=Mix(mlp)))
        return DOUBT_WEIGHT * evaluator.evaluate([mixed(evaluator, 0, *specs, 15)], ASKED)[0].doubt

    assert evaluator.exam.packed == packed and told == pytest.approx(doubt(torch.zeros(2, 2, 2)), rel=1e-5)
    apart = torch.tensor([0.02, -0.02])
    for layer in range(2):
        for half in range(2):
            step = torch.zeros(2, 2, 2)
            step[layer, half] = apart
            rise = doubt(step) - doubt(-step)
            assert float((slopes * step).sum()) == pytest.approx(rise / 2, rel=0.05, abs=1e-4)
    assert slopes.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tasks_are_learned_beside_the_text(dtype):
    evaluator = asking(dtype)
    before = mixed(evaluator, 0, mean(1, 2), mean(5, 6), 15)
    done = tune(evaluator, before, ASKED, STEPS)
    losses = [m.kl + DOUBT_WEIGHT * m.doubt for m in evaluator.evaluate([before, done.blueprint], ASKED)]
    assert losses[0] == pytest.approx(done.losses[0], rel=1e-3 if dtype == torch.float32 else 2e-2)
    assert losses[1] < losses[0] and done.blueprint != tune(evaluator, before, Fidelity(ROWS, 1), STEPS).blueprint
    assert evaluator.bank.model.dtype == dtype


@pytest.mark.parametrize("items", [0, 3])
def test_stopped_after_any_step_it_goes_on_and_ends_the_same(items, tmp_path):
    evaluator = asking()
    before, evidence = mixed(evaluator, 0, mean(1, 2), mean(5, 6), 15), replace(ASKED, items=items)
    state, told = tmp_path / "state.safetensors", []

    def stopping(done, total, loss):
        told.append(done)
        if done in (1, 4):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(evaluator, before, evidence, STEPS, stopping, state)
    assert tune(evaluator, before, evidence, STEPS, stopping, state) == tune(evaluator, before, evidence, STEPS)
    assert told == list(range(1, STEPS + 1)), "no step was done twice"
    assert [p.name for p in tmp_path.iterdir()] == [state.name]
