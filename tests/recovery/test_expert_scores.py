"""What an expert is worth: the published rules, in float64 and by hand, token by token."""

import pytest
import torch

from hf_prune.evaluation.dense import Dense
from hf_prune.models.inference import family_of
from hf_prune.models.mixtures import ROUTINGS, mixture_of
from hf_prune.recovery.expert_scores import DISTANCES, SCORES, distances, expert_outputs, measured
from tests.mixtures import DEPTH, EXPERTS, moe

TOKENS = torch.randint(3, 500, (3, 17), generator=torch.Generator().manual_seed(2))


def by_hand(model, kind, layer):
    """Scores of one layer of a SwiGLU mixture from the states that enter its block, a token and an expert at a time."""
    block, seen = model.model.layers[layer].get_submodule(ROUTINGS[kind].router.rpartition(".")[0]), []
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
        hook.remove()
        router, experts = (
            model.model.layers[layer].get_submodule(getattr(ROUTINGS[kind], p)) for p in ("router", "experts")
        )
        _, weights, chosen = router(seen[0])
        norms, gates = [[] for _ in range(EXPERTS)], [[] for _ in range(EXPERTS)]
        for x, g, to in zip(seen[0], weights, chosen, strict=True):
            for weight, e in zip(g.tolist(), to.tolist(), strict=True):
                gate, up = (experts.gate_up_proj[e] @ x).chunk(2)
                out = experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up)
                norms[e].append(float(out.norm()))
                gates[e].append(weight)
    mean = lambda values: sum(values) / len(values) if values else 0.0  # noqa: E731
    return {
        "reap": [mean([g * n for g, n in zip(gs, ns, strict=True)]) for gs, ns in zip(gates, norms, strict=True)],
        "frequency": [len(ns) / TOKENS.numel() for ns in norms],
        "output_norm": [mean(ns) for ns in norms],
        "ean": [sum(ns) for ns in norms],
        "weight_norm": [
            float((experts.gate_up_proj[e].square().sum() + experts.down_proj[e].square().sum()).sqrt())
            for e in range(EXPERTS)
        ],
    }


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "granitemoe", "deepseek_v3"])
def test_scores_are_those_of_their_papers(kind):
    model = moe(kind).double()
    family = family_of(model.config)
    mixture = mixture_of(family, model.config, {n: t.numel() for n, t in model.state_dict().items()})
    steps = []
    found = measured(Dense(model, family, tile_tokens=20), mixture, TOKENS, lambda *step: steps.append(step))
    assert set(found) == {*SCORES, DISTANCES} and steps[-1] == (DEPTH, DEPTH)
    for row, layer in enumerate(mixture.layers):
        for name, expected in by_hand(model, kind, layer).items():
            torch.testing.assert_close(
                found[name][row], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
            )


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_experts_are_as_far_apart_as_what_they_make_of_the_same_tokens(kind):
    experts = moe(kind).double().model.layers[1].get_submodule(ROUTINGS[kind].experts)
    states = torch.randn(9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = distances(experts, states, EXPERTS)
    for a in range(EXPERTS):
        for b in range(EXPERTS):
            ours, theirs = (expert_outputs(experts, states, torch.full((9, 1), e))[:, 0] for e in (a, b))
            assert float(found[a, b]) == pytest.approx(float((ours - theirs).square().mean().sqrt()), abs=1e-9)
