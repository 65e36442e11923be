import pytest
import torch

from hf_prune.assembly.assemble import assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part
from hf_prune.evaluation.bridges import RIDGES, Bridges
from hf_prune.evaluation.evaluator import Evaluator
from tests.families import DEPTH
from tests.oracle import opened, tokens

WINDOWS, FIT = tokens(19)[:3], tokens(19)[3:]
ALL = Fidelity(3)
CROSSED = Fidelity(3, bridged=True)


@pytest.fixture(scope="module")
def evaluator():
    parent = opened("llama")
    bank = LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])
    return Evaluator(bank, WINDOWS, bridges=lambda: FIT)


def without(evaluator, *gone):
    specs = tuple(LayerSpec((Part(0, i),)) for i in range(DEPTH) if i not in gone)
    return Blueprint(evaluator.bank.sources, specs)


def by_hand(before, after, ridge):
    """The weighted ridge regression as it is written, in float64, on the windows that are not held out."""
    fitted = [i for i in range(len(FIT)) if i % 4 != 3]
    x, y = (t[fitted].flatten(0, 1).double() for t in (before, after))
    weights = 1 / y.norm(dim=1, keepdim=True)
    gram = x.T @ (weights * x)
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(damped, x.T @ (weights * (y - x)))


def test_a_bridge_is_the_ridge_regression_of_the_step_on_the_state(evaluator):
    bridges = Bridges(evaluator.dense, FIT)
    with torch.inference_mode():
        states = evaluator.dense.run(FIT).hidden
    for begin, end in ((1, 2), (1, DEPTH - 1), (0, 2), (DEPTH - 2, DEPTH)):
        found = bridges.over(begin, end)
        tried = [by_hand(states[begin], states[end], ridge) for ridge in RIDGES]
        if found is not None:
            assert min(float((found.double() - one).abs().max()) for one in tried) < 1e-3 * float(found.abs().max())


@pytest.mark.parametrize("gone", [(1,), (1, 2), (0,), (DEPTH - 1,), (0, 2, DEPTH - 1)])
def test_every_gap_is_crossed_by_its_bridge(evaluator, gone):
    """Layer by layer by hand, with the bridges at the gaps."""
    kept = [i for i in range(DEPTH) if i not in gone]
    with torch.inference_mode():
        state, place = evaluator.own.hidden[0], 0
        for layer in [*kept, DEPTH]:
            if layer > place:
                state = evaluator.bridges.cross(state, place, layer)
            if layer < DEPTH:
                state = evaluator.dense.apply(evaluator.dense.layers[layer], [state], evaluator.own.calls[layer])[0][0]
            place = layer + 1
        log_p = evaluator.dense.logits(state)[:, :-1].float().log_softmax(-1)
    nll = -log_p.gather(-1, WINDOWS[:, 1:, None]).mean()
    bare, bridged = (evaluator.evaluate([without(evaluator, *gone)], f)[0] for f in (ALL, CROSSED))
    assert bridged.nll == pytest.approx(float(nll), rel=1e-4)
    assert bridged.nll != bare.nll


def test_a_model_without_gaps_is_scored_the_same(evaluator):
    whole = without(evaluator)
    doubled = Blueprint(whole.sources, (*whole.layers[:3], *whole.layers[2:]))
    for blueprint in (whole, doubled):
        bare, bridged = (evaluator.evaluate([blueprint], f)[0] for f in (ALL, CROSSED))
        assert (bare.kl, bare.nll, bare.update_cosine) == (bridged.kl, bridged.nll, bridged.update_cosine)


def test_without_windows_there_is_no_bridge(evaluator):
    plain = Evaluator(evaluator.bank, WINDOWS)
    with pytest.raises(ValueError, match="windows"):
        plain.evaluate([without(evaluator, 2)], CROSSED)
