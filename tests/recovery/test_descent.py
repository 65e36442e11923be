"""Sums learned by gradient: the gradient is that of autograd, and what was stopped goes on."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer

from hf_prune.assembly.assemble import Parent, assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Mix, Part, Source
from hf_prune.data.bundled import demo_folder
from hf_prune.evaluation.dense import after
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.objectives import DOUBT_WEIGHT
from hf_prune.evaluation.packed_tasks import Exam
from hf_prune.recovery.descent import Sum, _Layer, _Stack, _Tasks, descend
from tests.data.test_task_scores import MIXED
from tests.evaluation.test_packed_tasks import EXACT, FEW_SHOT
from tests.families import DEPTH, mean
from tests.oracle import opened, tokens

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


def total(*weights):
    """Layers by number, and what attention and MLP take of each."""
    rows = torch.tensor([(attention, mlp) for _, attention, mlp in weights]).T
    terms = tuple(LayerSpec((Part(0, layer),)) for layer, *_ in weights)
    return Sum(mean(*(layer for layer, *_ in weights)), terms, rows)


HALF = (0.5, 0.5)
SUMS = (Sum(LayerSpec((Part(0, 0),))), total((1, *HALF), (2, *HALF)), total((5, *HALF), (6, *HALF)),
        Sum(LayerSpec((Part(0, 15),))))  # fmt: skip


def of_sums(evaluator):
    """The model that they are made after."""
    return Blueprint(evaluator.bank.sources, tuple(s.spec for s in SUMS))


def test_the_gradient_by_a_weight_is_that_of_the_merged_layer():
    evaluator = evaluator_of("llama")
    whole = total((1, 0.25, 0.5), (2, 0.75, 0.5))
    layer, calls = _Layer(evaluator.bank, whole, evaluator.dense.family.half), evaluator.dense.record(tokens(1))[1]
    state = torch.randn(2, tokens(1).shape[1], evaluator.reference.hidden[0].shape[-1])
    after(layer.module, state, calls[2]).square().sum().backward()

    weights = layer.weights.detach().clone().requires_grad_()
    theirs = [dict(evaluator.bank.module(term).named_parameters()) for term in whole.terms]
    half = {name: int(name.startswith("mlp.")) for name in theirs[0]}
    merged = {n: sum(weights[half[n], k] * t[n] for k, t in enumerate(theirs)) for n in theirs[0]}
    args, kwargs = calls[2]
    out = torch.func.functional_call(evaluator.bank.module(LayerSpec((Part(0, 2),))), merged, (state, *args), kwargs)
    (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    torch.testing.assert_close(layer.weights.grad, weights.grad, rtol=1e-4, atol=1e-3)
    assert all(p.grad is None for p in layer.module.parameters()), "a gradient that is used up takes no memory"


@pytest.mark.parametrize("packed", [True, False])
def test_the_gradient_by_a_weight_is_what_the_doubt_about_tasks_does(packed):
    evaluator = asking(packed=packed)
    stack = _Stack(evaluator, of_sums(evaluator), SUMS)
    told = _Tasks(stack, ASKED).descend()
    blends = stack.layers[1:3]
    slopes = torch.stack([layer.weights.grad for layer in blends])

    def doubt(step):
        specs = []
        for layer, row in zip(blends, 0.5 + step, strict=True):
            attention, mlp = (tuple(Part(0, t.anchor.layer, w) for t, w in zip(layer.terms, half, strict=True))
                              for half in row.tolist())  # fmt: skip
            specs.append(LayerSpec(attention, mlp=Mix(mlp)))
        return DOUBT_WEIGHT * evaluator.evaluate([mixed(evaluator, 0, *specs, 15)], ASKED)[0].doubt

    # What is evaluated is rounded to the 16 bits of the checkpoint.
    assert evaluator.exam.packed == packed and told == pytest.approx(doubt(torch.zeros(2, 2, 2)), rel=1e-3)
    apart = torch.tensor([0.02, -0.02])
    for layer in range(2):
        for half in range(2):
            step = torch.zeros(2, 2, 2)
            step[layer, half] = apart
            rise = doubt(step) - doubt(-step)
            assert float((slopes * step).sum()) == pytest.approx(rise / 2, rel=0.05, abs=1e-4)
    assert slopes.abs().min() > 0


@pytest.mark.parametrize("items", [0, 3])
def test_stopped_after_any_step_it_goes_on_and_ends_the_same(items, tmp_path):
    evaluator = asking()
    evidence = replace(ASKED, items=items)
    state, told = tmp_path / "state.safetensors", []

    def stopping(done, total, loss):
        told.append(done)
        if done in (1, 4):
            raise KeyboardInterrupt

    def learned(**how):
        return descend(evaluator, of_sums(evaluator), SUMS, evidence, STEPS, 0.02, **how)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            learned(progress=stopping, state=state)
    ends = learned(progress=stopping, state=state), learned()
    assert ends[0].losses == ends[1].losses
    for one, other in zip(ends[0].weights, ends[1].weights, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert told == list(range(1, STEPS + 1)), "no step was done twice"
    assert [p.name for p in tmp_path.iterdir()] == [state.name]
