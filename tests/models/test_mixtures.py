"""Experts taken out of every family: identity, cut against the dense model with masked routers, decoding, reloading."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from transformers import AutoModelForCausalLM

from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, LayerSpec, Part
from hf_prune.errors import InvalidBlueprint, UnsupportedArchitecture
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.models.experts import blended
from hf_prune.models.families import FAMILIES
from hf_prune.models.mixtures import ROUTINGS, require_mixture
from tests.families import SOURCE, opened
from tests.mixtures import DEPTH, EXPERTS, GONE, mask, moe, saved, without
from tests.oracle import cached_logits, logits

TOKENS = torch.randint(3, 500, (3, 20), generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=sorted(ROUTINGS))
def kind(request):
    return request.param


def test_a_mixture_is_known_by_its_headers(kind, tmp_path):
    made = saved(kind, tmp_path / "base")
    mixture = opened(tmp_path / "base").mixture
    assert mixture.experts == EXPERTS and mixture.layers == tuple(range(bool(ROUTINGS[kind].groups), DEPTH))
    stacks = made.get_submodule(f"model.layers.2.{ROUTINGS[kind].experts}")
    router = made.get_submodule(f"model.layers.2.{ROUTINGS[kind].router}")
    held = [*stacks.parameters(), *router.parameters(), *router.buffers()]
    assert mixture.parameters * EXPERTS == sum(t.numel() for t in held)


def test_in_float64_it_is_the_dense_model_whose_router_never_chooses_them(kind, tmp_path):
    made = saved(kind, tmp_path / "base")
    parent = opened(tmp_path / "base")
    # Layers of several sizes are only ever made side by side, in the sweep.
    bank = LayerBank(made.double(), [parent])
    cut = without(parent.source, GONE)
    with torch.inference_mode():
        found = Evaluator(bank, TOKENS).logits(cut, len(TOKENS))
        expected = logits(mask(moe(kind).double(), kind, GONE), TOKENS)
        whole = logits(moe(kind).double(), TOKENS)
    # Some families compute their router in float32, whatever they are made in.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    assert float((found - whole).abs().max()) > 1e-3


def test_no_candidate_copies_an_expert(kind, tmp_path):
    made = saved(kind, tmp_path / "base")
    parent = opened(tmp_path / "base")
    bank = LayerBank(made, [parent])
    spec, path = without(parent.source, GONE).layers[2], ROUTINGS[kind].experts
    stack = made.get_submodule(f"model.layers.2.{path}").down_proj
    layer = bank.module(spec)
    assert layer.get_submodule(path).down_proj.data_ptr() == stack.data_ptr()
    assert len(layer.get_submodule(ROUTINGS[kind].router).weight) == EXPERTS - len(GONE[2])
    own = bank.owned(spec)
    kept = [e for e in range(EXPERTS) if e not in GONE[2]]
    assert torch.equal(own.get_submodule(path).down_proj, stack[kept])
    states = torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(7))
    calls = Evaluator(bank, TOKENS).own.calls
    with torch.inference_mode():
        ours, theirs = (one(states, *calls[2][0], **calls[2][1]) for one in (layer, own))
    assert torch.equal(*(out[0] if isinstance(out, tuple) else out for out in (ours, theirs)))
    # What is repaired has rows of its own, beside which the resident experts stay.
    patch = {f"{path}.down_proj": 2 * own.get_submodule(path).down_proj}
    repaired = bank.module(bank.repaired(spec, patch)).get_submodule(path).down_proj
    assert torch.equal(repaired, 2 * stack[kept]) and repaired.data_ptr() != stack.data_ptr()


def test_a_cut_is_a_stock_checkpoint_with_a_smaller_number(kind, tmp_path):
    saved(kind, tmp_path / "base")
    parent = opened(tmp_path / "base")
    gone = {i: (1, 2, 3, 4, 5, 7) if i % 2 else (0, 1, 2, 4, 5, 6) for i in parent.mixture.layers}
    if ROUTINGS[kind].groups:
        gone = {i: (1, 3, 4, 7) if i % 2 else (0, 1, 5, 6) for i in parent.mixture.layers}
    cut = without(parent.source, gone)
    (tmp_path / "out").mkdir()
    stored = write(cut, [parent], tmp_path / "out")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and again.config.model_type == kind
    left = EXPERTS - len(gone[2])
    assert getattr(again.config, ROUTINGS[kind].count) == left
    assert stored[0] == sum(p.numel() for p in again.parameters()) + sum(
        b.numel() for n, b in again.named_buffers() if n.endswith("bias")
    )
    expected = logits(mask(moe(kind), kind, gone), TOKENS)
    torch.testing.assert_close(logits(again.eval(), TOKENS), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cached_logits(again, TOKENS, 8), logits(again, TOKENS), rtol=1e-3, atol=1e-4)
    bank = LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])
    assert Evaluator(bank, TOKENS).parameters(cut) == stored[0]


def test_layers_may_have_different_numbers_of_experts(kind, tmp_path):
    saved(kind, tmp_path / "base")
    parent = opened(tmp_path / "base")
    cut = without(parent.source, GONE)
    (tmp_path / "out").mkdir()
    stored = write(cut, [parent], tmp_path / "out")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and again.config.model_type == f"pruned_{kind}"
    told = {i: s[ROUTINGS[kind].count] for i, s in again.config.layer_overrides.items()}
    assert told == {i: EXPERTS - len(gone) for i, gone in GONE.items()}
    expected = logits(mask(moe(kind), kind, GONE), TOKENS)
    torch.testing.assert_close(logits(again.eval(), TOKENS), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cached_logits(again, TOKENS, 8), logits(again, TOKENS), rtol=1e-3, atol=1e-4)
    bank = LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])
    assert Evaluator(bank, TOKENS).parameters(cut) == stored[0]


def test_all_experts_in_their_order_are_the_dense_model_bit_for_bit(kind, tmp_path):
    made = saved(kind, tmp_path / "base")
    parent = opened(tmp_path / "base")
    again = assemble(without(parent.source, dict.fromkeys(parent.mixture.layers, ())), [parent])
    assert all(torch.equal(t, made.state_dict()[n]) for n, t in again.state_dict().items())


def test_a_token_goes_to_fewer_experts_only_where_fewer_are_left(tmp_path):
    saved("mixtral", tmp_path / "base")
    parent = opened(tmp_path / "base")
    for left, chosen in ((2, 2), (1, 1)):
        made = assemble(without(parent.source, dict.fromkeys(range(DEPTH), tuple(range(left, EXPERTS)))), [parent])
        assert made.config.num_local_experts == left and made.config.num_experts_per_tok == chosen
        assert bool(logits(made, TOKENS).isfinite().all())


@pytest.mark.parametrize(
    ("kind", "layer", "left", "said"),
    [
        ("mixtral", 1, (0, 8), "asks for expert 8"),
        ("deepseek_v3", 0, (0, 1, 4, 5), "names experts of layer 0"),
        ("deepseek_v3", 1, (0, 1, 4), "leaves 3 experts in 2 groups"),
        ("deepseek_v3", 1, (0, 4), "leaves 2 experts in 2 groups"),
        ("qwen3_moe", 1, (), "of no expert"),
    ],
)
def test_what_no_router_can_do_is_refused_in_words(kind, layer, left, said, tmp_path):
    saved(kind, tmp_path / "base")
    parent = opened(tmp_path / "base")
    spec = LayerSpec((Part(0, layer),), blends=tuple(((e, 1.0),) for e in left))
    with pytest.raises(InvalidBlueprint, match=said):
        assemble(Blueprint((parent.source,), (LayerSpec((Part(0, 0),)), spec)), [parent])


def by_hand(experts, kind, blend):
    """What an expert computes whose neurons are weighted sums, each neuron with the likest of the first expert's."""

    def neurons(e):
        both, down = experts.gate_up_proj[e].double(), experts.down_proj[e].double()
        if kind == "gpt_oss":
            return both[:, ::2].T, both[:, 1::2].T, down
        return *both.chunk(2), down.T

    first = neurons(blend[0][0])
    total = [blend[0][1] * part for part in first]
    for e, weight in blend[1:]:
        theirs = neurons(e)
        alike = sum(a @ b.T for a, b in zip(first, theirs, strict=True))
        order = linear_sum_assignment(alike.numpy(), maximize=True)[1]
        total = [t + weight * part[order] for t, part in zip(total, theirs, strict=True)]
    return total


def test_experts_that_are_merged_are_means_of_neurons_that_are_alike(kind, tmp_path):
    made = saved(kind, tmp_path / "base")
    parent = opened(tmp_path / "base")
    blends = (((0, 0.75), (3, 0.25)), ((2, 1.0),), ((5, 0.5), (1, 0.25), (6, 0.25)), ((7, 1.0),))
    cut = without(parent.source, {})
    cut = replace(cut, layers=(*cut.layers[:2], replace(cut.layers[2], blends=blends), cut.layers[3]))
    path, router = ROUTINGS[kind].experts, ROUTINGS[kind].router
    dense = made.get_submodule(f"model.layers.2.{path}")
    (tmp_path / "out").mkdir()
    write(cut, [parent], tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for layer in (LayerBank(made, [parent]).module(cut.canonical().layers[2]), again.model.layers[2]):
        found = layer.get_submodule(path)
        for place, blend in enumerate(blends):
            both, last = found.gate_up_proj[place], found.down_proj[place]
            ours = (both[:, ::2].T, both[:, 1::2].T, last) if kind == "gpt_oss" else (*both.chunk(2), last.T)
            for mine, theirs in zip(ours, by_hand(dense, kind, blend), strict=True):
                torch.testing.assert_close(mine, theirs.float(), rtol=1e-5, atol=1e-6)
        rows = made.get_submodule(f"model.layers.2.{router}").state_dict()
        for name, tensor in layer.get_submodule(router).state_dict().items():
            assert torch.equal(tensor, rows[name][[0, 2, 5, 7]]), name


def test_an_expert_merged_with_itself_in_another_order_is_itself(kind, tmp_path):
    made, routing = moe(kind), ROUTINGS[kind]
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    stacks = made.get_submodule(f"model.layers.2.{routing.experts}")
    whole = {f"{routing.experts}.{n}": t.clone() for n, t in stacks.state_dict().items()}
    neurons = stacks.down_proj.shape[1 if routing.transposed else 2]
    order = order[order < neurons]
    for suffix, tensor in whole.items():
        name = suffix.rpartition(".")[2]
        if name == "down_proj":
            tensor[4] = tensor[1][order] if routing.transposed else tensor[1][:, order]
        elif name.startswith("gate_up_proj") and routing.transposed:
            tensor[4][..., ::2], tensor[4][..., 1::2] = (
                tensor[1][..., ::2][..., order],
                tensor[1][..., 1::2][..., order],
            )
        elif name.startswith("gate_up_proj"):
            tensor[4] = torch.cat([tensor[1][:neurons][order], tensor[1][neurons:][order]])
        else:
            tensor[4] = tensor[1]
    for suffix, tensor in whole.items():
        (merged,) = blended(suffix, whole.__getitem__, (((1, 0.4), (4, 0.6)),), routing)
        torch.testing.assert_close(merged, tensor[1], rtol=1e-5, atol=1e-6)


def test_a_blueprint_says_its_experts_and_says_nothing_where_all_stay():
    plain = Blueprint.identity(SOURCE, 2)
    assert "blends" not in plain.to_json()
    fewer = replace(plain, layers=(replace(plain.layers[0], blends=(((3, 1.0),), ((4, 0.25), (1, 0.75)))),))
    assert Blueprint.from_json(fewer.to_json()) == fewer and fewer.digest != plain.digest
    assert fewer.canonical().layers[0].blends == (((3, 1.0),), ((4, 0.25), (1, 0.75)))
    with pytest.raises(InvalidBlueprint, match="numbers of experts with finite weights"):
        Blueprint.from_json(fewer.to_json().replace("0.25", "1e400"))


def test_a_family_whose_experts_are_not_known_is_refused():
    with pytest.raises(UnsupportedArchitecture, match="Experts can be taken out of .*mixtral.*, not 'llama'"):
        require_mixture(FAMILIES["llama"])
