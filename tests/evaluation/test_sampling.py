"""A model that speaks: repeatable, as stock transformers would draw, and stopped where whoever listens goes."""

from collections import Counter

import pytest
import torch

from hf_prune.errors import BaseOverflow
from hf_prune.evaluation.sampling import sample
from tests.families import tiny


@pytest.fixture(scope="module")
def model():
    return tiny("llama").eval()


def test_the_same_seed_says_the_same_and_leaves_the_generator_alone(model):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    own = model.generation_config
    first, again, other = (sample(model, [(3,)] * 4, 12, seed) for seed in (1, 1, 2))
    assert first == again and first != other and len({s.ids for s in first}) > 1
    assert torch.equal(torch.get_rng_state(), state) and model.generation_config is own


def test_draws_follow_the_models_own_distribution(model):
    """The first token of many rows, against the probabilities of a forward of the same prompt."""
    prompt, rows = (3, 7, 11), 4000
    drawn = Counter(s.ids[0] for s in sample(model, [prompt] * rows, 1, 0))
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1].float().softmax(-1)
    most = int(expected.argmax())
    spread = float((expected[most] * (1 - expected[most]) / rows).sqrt())
    assert abs(drawn[most] / rows - float(expected[most])) < 5 * spread
    assert len(drawn) > 0.5 * min(rows, len(expected)) / 2


def test_prompts_of_other_lengths_beside_it_do_not_change_what_a_model_is_likely_to_say(model):
    """A sharpened model leaves no choice, so padding must not change its words."""
    with torch.no_grad():
        scale = model.lm_head.weight.clone()
        model.lm_head.weight.mul_(1e4)
    try:
        alone = [sample(model, [p], 6, 0)[0] for p in ((3, 7, 11, 9), (5, 2))]
        assert sample(model, [(3, 7, 11, 9), (5, 2)], 6, 0) == alone
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(scale)


def test_whoever_listens_can_end_it_and_counts_every_row(model):
    steps = []
    said = sample(model, [(3,)] * 8, 10, 0, steps.append)
    assert sum(steps) >= sum(len(s.ids) for s in said) and steps[0] == 8

    def leave(rows):
        raise KeyboardInterrupt

    own = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        sample(model, [(3,)] * 2, 10, 0, leave)
    assert model.generation_config is own


def test_an_end_is_told_from_a_cut(model):
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = list(range(0, model.config.vocab_size, 2))
    try:
        said = sample(model, [(3,)] * 64, 3, 0)
    finally:
        model.generation_config.eos_token_id = ends
    assert all(s.ended == (s.ids[-1] % 2 == 0) and all(i % 2 for i in s.ids[:-1]) for s in said)
    assert {s.ended for s in said} == {True, False}


def test_a_model_that_overflows_is_told(model):
    with torch.no_grad():
        kept = model.model.norm.weight.clone()
        model.model.norm.weight.fill_(float("nan"))
    try:
        with pytest.raises(BaseOverflow, match="--dtype"):
            sample(model, [(3,)], 2, 0)
    finally:
        with torch.no_grad():
            model.model.norm.weight.copy_(kept)
