"""The dense model as a row of layers: what is recorded is what its own forward does."""

import math

import pytest
import torch

from hf_prune.errors import UnsupportedArchitecture
from hf_prune.evaluation.comparison import COSINE_FLOATS, block_distance, block_influence, cosine, log_rest
from hf_prune.evaluation.dense import Dense
from tests.families import DEPTH, EVERY
from tests.oracle import logits, row, saved, stock, tokens

WINDOWS = tokens(3)


def dense(name, **how):
    return Dense(stock(saved(name)), row(name), **how)


@pytest.mark.parametrize("name", EVERY)
def test_layer_by_layer_is_the_models_own_forward(name):
    model = stock(saved(name))
    reference = Dense(model, row(name)).run(WINDOWS, 97)
    log_probs = logits(model, WINDOWS)[:, :-1].double().log_softmax(-1)
    assert len(reference.hidden) == DEPTH + 1 and reference.hidden[0].shape[:2] == WINDOWS.shape
    assert torch.allclose(reference.log_p.double(), log_probs.gather(-1, reference.top), atol=2e-4)
    nll = -log_probs.gather(-1, WINDOWS[:, 1:, None])[..., 0]
    assert torch.allclose(reference.nll.double(), nll, atol=2e-4) and reference.log_tail is None


def test_the_tail_is_the_mass_outside_the_top_k():
    reference = dense("llama").run(WINDOWS, 10)
    assert reference.top.shape == (3, WINDOWS.shape[1] - 1, 10)
    assert torch.allclose(reference.p.sum(-1) + reference.log_tail.exp(), torch.ones(3, WINDOWS.shape[1] - 1))


def test_log_rest_survives_a_certain_prediction():
    assert torch.isfinite(log_rest(torch.tensor([[0.0, -40.0]]))).all()


def test_a_model_whose_forward_does_more_than_its_layers_is_refused():
    model = stock(saved("llama"))
    Dense(model, row("llama")).run(WINDOWS)
    model.register_forward_hook(lambda m, a, out: out.__class__(logits=out.logits * 1.5))
    with pytest.raises(UnsupportedArchitecture, match="does not give the logits"):
        Dense(model, row("llama")).run(WINDOWS)


def test_scores_of_layers_against_their_formulas():
    reference = dense("llama").run(WINDOWS)
    states = [h.double() for h in reference.hidden]

    def cos(a, b):
        return torch.nn.functional.cosine_similarity(a, b, dim=-1)

    influence = [1 - float(cos(states[i], states[i + 1]).mean()) for i in range(DEPTH)]
    assert block_influence(reference) == pytest.approx(influence, abs=1e-5)
    distance = block_distance(reference)
    for start in range(DEPTH):
        for n in range(1, DEPTH - start + 1):
            angle = torch.arccos(cos(states[start][:, -1], states[start + n][:, -1])) / math.pi
            assert distance[start][n - 1] == pytest.approx(float(angle.mean()), abs=1e-4)
        assert len(distance[start]) == DEPTH - start


@pytest.mark.parametrize("rows", [1, 7])
def test_cosines_in_pieces_are_those_of_the_whole(rows):
    a, b = torch.randn(2, rows, 2, COSINE_FLOATS // 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cosine(a, b), torch.nn.functional.cosine_similarity(a, b, dim=-1))


def test_tiles_hold_whole_sequences_and_cover_everything():
    d = dense("llama", tile_tokens=50)
    tiles = d.tiles(torch.zeros(7, 24, 1), 50)
    assert [t.stop - t.start for t in tiles] == [2, 2, 2, 1] and tiles[0].start == 0
    assert [t.stop - t.start for t in d.tiles(torch.zeros(3, 24, 1), 1)] == [1, 1, 1]
