"""Experts refitted in closed form: against least squares by hand, and what few tokens reach is left alone."""

import tempfile
from pathlib import Path

import pytest
import torch

from hf_prune.evaluation.residual_maps import factor_of
from hf_prune.models.families import FAMILIES
from hf_prune.models.mixtures import ROUTINGS
from hf_prune.recovery.expert_repair import LEAST_TOKENS, Routed, inner, refit_experts
from hf_prune.recovery.expert_scores import expert_outputs
from hf_prune.recovery.heal import Course, heal
from hf_prune.recovery.repair import RIDGES
from tests.mixtures import EXPERTS, moe

WIDTH, TOKENS, FITTED = 32, 1200, 900


def routed(rng, to):
    states = torch.randn(TOKENS, WIDTH, generator=rng)
    chosen = torch.stack([torch.tensor(to)[torch.randperm(len(to), generator=rng)[:2]] for _ in range(TOKENS)])
    return Routed(states, chosen, torch.rand(TOKENS, 2, generator=rng))


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "deepseek_v3"])
def test_what_enters_the_last_map_times_it_is_what_an_expert_puts_out(kind):
    experts = moe(kind).model.layers[2].get_submodule(ROUTINGS[kind].experts)
    states, chosen = torch.randn(40, WIDTH), torch.arange(40)[:, None] % EXPERTS
    found = expert_outputs(experts, states, chosen)[:, 0]
    for e in range(EXPERTS):
        down = experts.down_proj[e] if experts.is_transposed else experts.down_proj[e].T
        out = inner(experts, states[e::EXPERTS], e) @ down + (experts.down_proj_bias[e] if experts.has_bias else 0)
        torch.testing.assert_close(found[e::EXPERTS], out, rtol=1e-4, atol=1e-5)


def test_one_expert_is_ridge_regression_on_its_tokens_and_the_next_fits_what_is_left():
    rng = torch.Generator().manual_seed(3)
    experts = moe("mixtral").model.layers[1].mlp.experts
    given = routed(rng, [2, 5, 6])
    residual, weights = torch.randn(TOKENS, WIDTH, generator=rng), torch.rand(TOKENS, generator=rng)
    # The held-out tokens are the first of the fitted ones, so that a correction always helps there.
    for part in (given.states, given.chosen, given.weights, residual, weights):
        part[FITTED:] = part[: TOKENS - FITTED]
    left, expected = residual.double().clone(), experts.down_proj.double().clone()
    for e in (2, 5, 6):
        token, place = (given.chosen == e).nonzero(as_tuple=True)
        x = inner(experts, given.states[token], e).double() * given.weights[token, place, None].double() * 0.5
        fit = token < FITTED
        w = weights[token].double()[:, None]
        gram, cross = x[fit].T @ (w[fit] * x[fit]), x[fit].T @ (w[fit] * left[token][fit])
        change = torch.linalg.solve(gram + 0.1 * gram.diagonal().mean() * torch.eye(len(gram)), cross)
        left[token] -= x @ change
        expected[e] += change.T
    stack, found = refit_experts(experts, given, 0.5, residual, weights, FITTED, (0.1,))
    assert found == {2: 0.1, 5: 0.1, 6: 0.1}
    torch.testing.assert_close(stack.double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(residual.double(), left, rtol=1e-3, atol=1e-4)
    untouched = [0, 1, 3, 4, 7]
    assert torch.equal(stack[untouched], experts.down_proj[untouched])


def test_an_expert_that_few_tokens_reach_or_that_gains_nothing_keeps_its_weights():
    rng = torch.Generator().manual_seed(3)
    experts = moe("mixtral").model.layers[1].mlp.experts
    given = routed(rng, [0, 1])
    given.chosen[: LEAST_TOKENS - 1, 0] = 3
    given.chosen[FITTED : FITTED + 40, 0] = 3
    residual = torch.zeros(TOKENS, WIDTH)
    residual[given.chosen.eq(3).any(1)] = 1.0
    residual[given.chosen.eq(0).any(1) & (torch.arange(TOKENS) >= FITTED)] = -1.0
    stack, found = refit_experts(experts, given, 1.0, residual, torch.ones(TOKENS), FITTED, RIDGES)
    assert 3 not in found and torch.equal(stack[3], experts.down_proj[3])


@pytest.mark.parametrize(("kind", "factor"), [("qwen3_moe", 1.0), ("deepseek_v3", 1.0), ("granitemoe", 0.25)])
def test_what_experts_add_is_multiplied_as_the_family_does(kind, factor):
    model = moe(kind, **({"residual_multiplier": factor} if kind == "granitemoe" else {}))
    calls, layer = [], model.model.layers[2]
    hook = layer.register_forward_pre_hook(lambda _, args, kw: calls.append((args, kw)), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=torch.arange(3, 23)[None], use_cache=False)
        hook.remove()
        args, kwargs = calls[0]
        state = args[0] if args else kwargs.pop("hidden_states")
        call = (args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"})
        found = factor_of(layer, layer.get_submodule(ROUTINGS[kind].experts), state, call)
    assert found == pytest.approx(factor, rel=1e-3)


def test_no_training_changes_a_router():
    student, teacher = moe("qwen3_moe"), moe("qwen3_moe")
    with torch.no_grad():
        student.model.layers[1].mlp.experts.down_proj.mul_(0.5)
    tokens = torch.randint(3, 500, (8, 24), generator=torch.Generator().manual_seed(2))
    before = {n: t.clone() for n, t in student.state_dict().items()}
    with tempfile.TemporaryDirectory() as home:
        course = Course(4 * 192, method="full", batch=4, checks=2, rate=1e-3)
        heal(student, teacher, FAMILIES["qwen3_moe"], tokens, tokens, course, Path(home))
    changed = {n for n, t in student.state_dict().items() if not torch.equal(t, before[n])}
    assert any("experts.down_proj" in n for n in changed) and not any(".mlp.gate." in n for n in changed)


def selection_loss(model, tokens):
    with torch.no_grad():
        said = model(input_ids=tokens).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(said.flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
def test_the_best_state_of_a_whole_mixture_is_what_one_gets_and_what_is_resumed(kind, tmp_path):
    train, held = (torch.randint(3, 500, (4, 24), generator=torch.Generator().manual_seed(seed)) for seed in (2, 5))
    # Few windows, learned by heart: others are foretold worse and worse.
    course = Course(8 * 96, method="full", batch=4, checks=4, patience=9, rate=0.1, kl=0.0, ce=1.0)

    def once(home, progress=lambda *_: None):
        tied = moe(kind, tie_word_embeddings=kind == "mixtral")
        return heal(tied, None, FAMILIES[kind], train, held, course, home, progress)

    done = once(tmp_path / "whole")
    losses = [loss for _, loss in done.curve[1:]]
    assert min(losses) < losses[-1], losses
    assert selection_loss(done.model, held) == pytest.approx(min(losses), rel=1e-4)

    def kill(step, steps, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "killed", kill)
    again = once(tmp_path / "killed")
    assert again.curve == done.curve
    for name, tensor in done.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
