"""The sweep gives the numbers of a plain forward of the assembled model, in every family, however it is cut up."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_prune.evaluation.batches
from hf_prune.assembly.assemble import Parent, assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import GONE, Blueprint, Fidelity, LayerSpec, Part, Source
from hf_prune.errors import InvalidBlueprint
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.methods import METHODS
from hf_prune.methods.method import Facts
from hf_prune.recipe import Recipe
from tests.families import DEPTH, EVERY, tiny
from tests.oracle import EDITS, blueprint, logits, opened, oracle, row, tokens

WINDOWS = tokens(3)
ALL = Fidelity(3)
CANDIDATES = list(EDITS)


def bank_of(name):
    parent = opened(name)
    return LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])


def plain(name, edit, top_k=None):
    """Mean KL (top k and one bucket for the rest) and NLL, from logits of whole forwards, in float64."""
    dense, ours = (logits(oracle(name, EDITS[e]), WINDOWS)[:, :-1].double().log_softmax(-1) for e in ("identity", edit))
    nll = -ours.gather(-1, WINDOWS[:, 1:, None]).mean()
    top = dense.topk(top_k or dense.shape[-1], -1).indices
    p, q = dense.gather(-1, top), ours.gather(-1, top)
    kl = (p.exp() * (p - q)).sum(-1)
    if top_k:
        rest_p, rest_q = (1 - x.exp().sum(-1) for x in (p, q))
        kl = kl + rest_p * (rest_p / rest_q).log()
    return float(kl.mean()), float(nll)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("top_k", [None, 20])
def test_kl_and_nll_are_those_of_a_plain_forward(name, top_k):
    bank = bank_of(name)
    evaluator = Evaluator(bank, WINDOWS, **({"top_k": top_k} if top_k else {}))
    found = evaluator.evaluate([blueprint(bank.parents[0], e) for e in CANDIDATES], ALL)
    for edit, m in zip(CANDIDATES, found, strict=True):
        kl, nll = plain(name, edit, top_k)
        assert m.kl == pytest.approx(kl, rel=2e-4, abs=1e-6) and m.nll == pytest.approx(nll, rel=1e-5), edit
        assert m.finite and (m.kl > 0.01 or edit == "identity")


def test_top_k_is_a_lower_bound_of_the_full_divergence():
    bank = bank_of("llama")
    candidate = [blueprint(bank.parents[0], "dropped")]
    kls = [Evaluator(bank, WINDOWS, top_k=k).evaluate(candidate, ALL)[0].kl for k in (1, 8, 32, 97)]
    assert kls == sorted(kls) and kls[0] < kls[-1]


def test_token_scores_are_what_the_means_are_made_of():
    bank = bank_of("qwen3")
    evaluator = Evaluator(bank, WINDOWS)
    candidates = [blueprint(bank.parents[0], e) for e in CANDIDATES]
    means = evaluator.evaluate(candidates, ALL)
    for m, (kl, nll) in zip(means, evaluator.token_scores(candidates, ALL), strict=True):
        assert kl.shape == nll.shape == (3, WINDOWS.shape[1] - 1) and kl.dtype == torch.float32
        assert float(kl.double().mean()) == pytest.approx(m.kl) and float(nll.double().mean()) == pytest.approx(m.nll)


def test_a_fidelity_takes_its_own_windows_and_no_others():
    bank = bank_of("llama")
    evaluator, candidate = Evaluator(bank, WINDOWS), [blueprint(bank.parents[0], "merged")]
    parts = [evaluator.evaluate(candidate, Fidelity(n, start=s))[0].kl for n, s in ((1, 0), (2, 1), (3, 0))]
    assert parts[2] == pytest.approx((parts[0] + 2 * parts[1]) / 3) and parts[0] != parts[1]
    with pytest.raises(ValueError, match="windows 2 to 4, there are 3"):
        evaluator.evaluate(candidate, Fidelity(2, start=2))


def deletions(bank, count, seed=0):
    kept = list(itertools.combinations(range(DEPTH), DEPTH - count))
    return [Blueprint((bank.parents[0].source,), tuple(LayerSpec((Part(0, i),)) for i in k)) for k in kept]


VARIANTS = {
    "no shared prefixes": {"share_prefixes": False},
    "nothing from the reference": {"reuse_reference": False},
    "neither": {"share_prefixes": False, "reuse_reference": False},
    "one sequence a call": {"tile_tokens": 1},
    "everything in one call": {"tile_tokens": 1 << 20},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_however_the_work_is_cut_up_the_numbers_stay(name, variant):
    bank = bank_of(name)
    candidates = deletions(bank, 2) + [blueprint(bank.parents[0], e) for e in CANDIDATES]
    usual = Evaluator(bank, WINDOWS, with_modules=True).evaluate(candidates, ALL)
    other = Evaluator(bank, WINDOWS, with_modules=True, **VARIANTS[variant]).evaluate(candidates, ALL)
    for a, b in zip(usual, other, strict=True):
        for field in ("kl", "nll", "update_cosine", "gelaco"):
            assert getattr(a, field) == pytest.approx(getattr(b, field), rel=1e-4, abs=1e-6), field


def test_few_states_in_memory_give_the_same_numbers(monkeypatch):
    bank = bank_of("llama")
    candidates = deletions(bank, 2)
    usual = Evaluator(bank, WINDOWS).evaluate(candidates, ALL)
    monkeypatch.setattr(hf_prune.evaluation.batches, "STATE_BYTES", 1)
    assert [m.kl for m in Evaluator(bank, WINDOWS).evaluate(candidates, ALL)] == pytest.approx([m.kl for m in usual])


def test_threads_change_nothing():
    bank, threads = bank_of("llama"), torch.get_num_threads()
    candidates, found = deletions(bank, 3), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(Evaluator(bank, WINDOWS, tile_tokens=24).evaluate(candidates, ALL))
    finally:
        torch.set_num_threads(threads)
    assert repr(found[0]) == repr(found[1])


def test_a_candidate_that_overflows_scores_infinity_and_spoils_no_other(tmp_path, monkeypatch):
    model = tiny("llama")
    model.model.layers[3].mlp.down_proj.weight.data *= 1e20
    model.model.layers[3].mlp.gate_proj.weight.data[:] = 0
    model.save_pretrained(tmp_path)
    parent = Parent.open(Source("fragile", "tiny"), tmp_path)
    # Silent in the dense model; averaged with a lively gate it explodes.
    bank = LayerBank(assemble(Blueprint.identity(parent.source, DEPTH), [parent]), [parent])
    explodes = LayerSpec((Part(0, 2, -1e19), Part(0, 3, 1e19 + 1)))
    broken = Blueprint((parent.source,), (LayerSpec((Part(0, 0),)), explodes, LayerSpec((Part(0, 5),))))
    fine = Blueprint((parent.source,), (LayerSpec((Part(0, 0),)), LayerSpec((Part(0, 5),))))
    evaluator = Evaluator(bank, WINDOWS)
    before = evaluator.cost.layer_tokens
    first, second = evaluator.evaluate([broken, fine], ALL)
    assert not first.finite and first.kl == first.nll == math.inf
    assert repr(second) == repr(evaluator.evaluate([fine], ALL)[0]) and second.finite
    assert all(torch.isinf(x).all() for x in evaluator.token_scores([broken], ALL)[0])
    # Broken at its second layer, it is not carried through the third.
    only = Evaluator(bank, WINDOWS)
    only.evaluate([broken], ALL)
    assert only.cost.layer_tokens == WINDOWS.numel() and before == 0
    # Nor through the next windows, when they are taken one at a time.
    monkeypatch.setattr(hf_prune.evaluation.batches, "STATE_BYTES", 1)
    only.evaluate([broken], ALL)
    assert only.cost.layer_tokens == WINDOWS.numel() + WINDOWS.shape[1]


def test_all_deletions_of_four_of_sixteen_layers_cost_6187_passes(tmp_path):
    tiny("llama", num_hidden_layers=16, hidden_size=8, head_dim=4, num_attention_heads=2,
                           num_key_value_heads=1, intermediate_size=8).save_pretrained(tmp_path)  # fmt: skip
    parent = Parent.open(Source("deep", "tiny"), tmp_path)
    bank = LayerBank(assemble(Blueprint.identity(parent.source, 16), [parent]), [parent])
    windows = tokens(1, 8)
    kept = list(itertools.combinations(range(16), 12))
    candidates = [Blueprint((parent.source,), tuple(LayerSpec((Part(0, i),)) for i in k)) for k in kept]
    evaluator = Evaluator(bank, windows, reuse_reference=False)
    evaluator.evaluate(candidates, Fidelity(1))
    prefixes = {k[:n] for k in kept for n in range(1, 13)}
    assert evaluator.cost.layer_tokens == 8 * len(prefixes) == 8 * 6187
    assert evaluator.cost.plain_layer_tokens == 8 * 21840
    reusing = Evaluator(bank, windows)
    reusing.evaluate(candidates, Fidelity(1))
    assert reusing.cost.layer_tokens == 8 * (6187 - 12)


@settings(max_examples=25)
@given(st.data())
def test_a_generation_of_any_method_scores_like_its_members_alone(data):
    bank = bank_of("llama")
    method = data.draw(
        st.sampled_from([m for _, m in sorted(METHODS.items()) if m.genes >= {"layers"} and not m.several])
    )
    space = method.space(Recipe.of(base="m"), Facts(DEPTH, 2))
    import numpy as np

    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    candidates = [Blueprint((bank.parents[0].source,), space.decode(space.random(rng))) for _ in range(4)]
    evaluator = Evaluator(bank, WINDOWS[:1])
    together = evaluator.evaluate(candidates, Fidelity(1))
    for candidate, m in zip(candidates, together, strict=True):
        alone = evaluator.evaluate([candidate], Fidelity(1))[0]
        assert m.kl == pytest.approx(alone.kl, rel=1e-3, abs=1e-6) or m.kl == alone.kl
        assert m.update_cosine == pytest.approx(alone.update_cosine, abs=1e-4)


# The similarity fitnesses, against hooks on whole forwards ---------------------------------------------------------


def observed(name, model):
    """States around every layer, and what its attention and MLP add: [depth + 1][N, T, d], [depth][2][N, T, d]."""
    family, states, halves = row(name), [], []
    layers = model.get_submodule(family.layers)
    for layer in layers:
        inner = []
        halves.append(inner)
        for path in (family.attention, family.mlp or family.mlp_out):
            layer.get_submodule(path).register_forward_hook(
                lambda m, a, out, inner=inner: inner.append(out[0] if isinstance(out, tuple) else out)
            )
        layer.register_forward_pre_hook(
            lambda m, a, k: states.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
    layers[-1].register_forward_hook(lambda m, a, out: states.append(out[0] if isinstance(out, tuple) else out))
    logits(model, WINDOWS)
    return states, halves


def cos(a, b):
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("edit", ["dropped", "merged", "extrapolated"])
def test_similarity_compares_residual_updates_over_the_layers_each_output_stands_for(name, edit):
    specs = EDITS[edit]
    (dense, _), (ours, _) = observed(name, oracle(name, EDITS["identity"])), observed(name, oracle(name, specs))
    begin, total = 0, 0.0
    for i, spec in enumerate(specs):
        end = max(p.layer for p in spec.parts) + 1
        total += float(cos((ours[i + 1] - ours[i])[:, 1:], (dense[end] - dense[begin])[:, 1:]).mean())
        begin = end
    bank = bank_of(name)
    found = Evaluator(bank, WINDOWS).evaluate([blueprint(bank.parents[0], edit)], ALL)[0]
    assert found.update_cosine == pytest.approx(total / len(specs), abs=2e-5)


@pytest.mark.parametrize("edit", ["dropped", "merged"])
def test_gelaco_averages_attention_feed_forward_and_final_cosines(edit):
    specs = EDITS[edit]
    (dense, inner), (ours, mine) = (observed("llama", oracle("llama", EDITS[e])) for e in ("identity", edit))
    ends = [max(p.layer for p in s.parts) for s in specs]
    home = [next((i for i, e in enumerate(ends) if layer <= e), len(ends) - 1) for layer in range(DEPTH)]
    halves = [sum(float(cos(inner[x][h], mine[home[x]][h]).mean()) for x in range(DEPTH)) / DEPTH for h in (0, 1)]
    expected = (sum(halves) + float(cos(dense[-1], ours[-1]).mean())) / 3
    bank = bank_of("llama")
    found = Evaluator(bank, WINDOWS, with_modules=True).evaluate([blueprint(bank.parents[0], edit)], ALL)[0]
    assert found.gelaco == pytest.approx(expected, abs=2e-5)


def test_the_dense_model_is_like_itself():
    bank = bank_of("phi3")
    found = Evaluator(bank, WINDOWS, with_modules=True).evaluate([blueprint(bank.parents[0], "identity")], ALL)[0]
    assert found.kl == 0 and found.update_cosine == pytest.approx(1) and found.gelaco == pytest.approx(1)


def test_removed_halves_are_not_counted_as_parameters():
    bank = bank_of("llama")
    parent = bank.parents[0]
    evaluator = Evaluator(bank, WINDOWS)
    whole = LayerSpec((Part(0, 0),))
    gone = LayerSpec((Part(0, 0),), attn_level=GONE)
    sizes = [evaluator.parameters(Blueprint((parent.source,), (s,))) for s in (whole, gone)]
    assert sizes[0] - sizes[1] == 32 * 32 * 2 + 2 * 16 * 32 + 32 * 2 + 16 * 2


# Repeated layers, several parents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 1, 2, 3, 4, 5), (5, 0, 1), (0, 1, 2, 3, 4, 5, 5, 5), (3, 2, 1, 0)])
def test_repeated_and_reordered_layers_score_like_a_plain_forward(order):
    specs = [EDITS["identity"][i] for i in order]
    bank = bank_of("qwen3")
    candidate = Blueprint((bank.parents[0].source,), tuple(specs))
    found = Evaluator(bank, WINDOWS, with_modules=True).evaluate([candidate], ALL)[0]
    models = [oracle("qwen3", s) for s in (EDITS["identity"], specs)]
    dense, ours = (logits(m, WINDOWS)[:, :-1].double().log_softmax(-1) for m in models)
    assert found.kl == pytest.approx(float((dense.exp() * (dense - ours)).sum(-1).mean()), rel=2e-4)
    states, mine = (observed("qwen3", m)[0] for m in models)
    begin, total = 0, 0.0
    for i, layer in enumerate(order):
        # A layer that comes again stands for no further source layer: it is held against the last one.
        end = max(begin, layer + 1)
        target = states[end] - states[min(begin, end - 1)]
        total += float(cos((mine[i + 1] - mine[i])[:, 1:], target[:, 1:]).mean())
        begin = end
    assert found.update_cosine == pytest.approx(total / len(order), abs=2e-5)
    assert -1 <= found.gelaco <= 1


def test_a_candidate_without_layers_is_refused():
    bank = bank_of("llama")
    empty = LayerSpec((Part(0, 1),), attn_level=GONE, mlp_level=GONE)
    with pytest.raises(InvalidBlueprint, match="without layers"):
        Evaluator(bank, WINDOWS).evaluate([Blueprint((bank.parents[0].source,), (empty,))], ALL)


def test_layers_of_a_second_parent_are_not_taken_for_the_dense_ones(tmp_path):
    """The variant has the same embedding and head, so a layer mistaken for the base's would score a KL of zero."""
    base, variant = tiny("llama"), tiny("llama", seed=1)
    variant.load_state_dict({k: v for k, v in base.state_dict().items() if ".layers." not in k}, strict=False)
    parents = []
    for name, model in (("a", base), ("b", variant)):
        model.save_pretrained(tmp_path / name)
        parents.append(Parent.open(Source(name, "tiny"), tmp_path / name))
    bank = LayerBank(assemble(Blueprint.identity(parents[0].source, DEPTH), parents[:1]), parents)
    layers = tuple(LayerSpec((Part(int(i in (0, 3)), i),)) for i in range(DEPTH))
    mixed = Blueprint(tuple(p.source for p in parents), layers)
    found = Evaluator(bank, WINDOWS).evaluate([mixed], ALL)[0]
    dense, ours = (logits(m, WINDOWS)[:, :-1].double().log_softmax(-1) for m in (base, assemble(mixed, parents)))
    expected = float((dense.exp() * (dense - ours)).sum(-1).mean())
    assert expected > 0.01 and found.kl == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma2", "gpt_neox", "olmo2", "granite"])
def test_gelaco_in_families_of_every_shape(name):
    """Halves in sequence and beside each other, with norms behind them, and an MLP without a module of its own."""
    # The last two source layers stand behind the last output layer, and belong to it.
    specs = EDITS["merged"][:3]
    (dense, inner), (ours, mine) = (observed(name, oracle(name, s)) for s in (EDITS["identity"], specs))
    ends = [max(p.layer for p in s.parts) for s in specs]
    home = [next((i for i, e in enumerate(ends) if layer <= e), len(ends) - 1) for layer in range(DEPTH)]
    halves = [sum(float(cos(inner[x][h], mine[home[x]][h]).mean()) for x in range(DEPTH)) / DEPTH for h in (0, 1)]
    expected = (sum(halves) + float(cos(dense[-1], ours[-1]).mean())) / 3
    bank = bank_of(name)
    candidate = Blueprint((bank.parents[0].source,), tuple(specs))
    found = Evaluator(bank, WINDOWS, with_modules=True).evaluate([candidate], ALL)[0]
    assert found.gelaco == pytest.approx(expected, abs=2e-5)
