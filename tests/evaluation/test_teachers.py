"""Candidates of several parents, scored by the sweep, are the models one would put together by hand."""

import pytest
import torch

from hf_prune.assembly.assemble import assemble, write
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Mix, Part
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.teachers import Teachers
from hf_prune.recovery.repair import repair
from tests.families import DEPTH
from tests.oracle import logits, stitched, stock, tokens, variants

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox"]
WINDOWS = tokens(4)
PARENTS = 3


def bank_of(name, capacity=64):
    parents = variants(name)
    base = Blueprint.identity(parents[0].source, DEPTH)
    return LayerBank(assemble(base, parents[:1]), parents, capacity)


def sources(name):
    return tuple(p.source for p in variants(name))


def candidates(name):
    def one(*layers, embed=0, head=0):
        return Blueprint(sources(name), tuple(layers), embed, head)

    blend = [LayerSpec(tuple(Part(k, i, w) for k, w in enumerate((0.5, 0.25, 0.25)))) for i in range(DEPTH)]
    found = {
        "variant": one(*[LayerSpec((Part(1, i),)) for i in range(DEPTH)], embed=1, head=1),
        "blend": one(*blend[:2], *blend[3:]),
        "arithmetic": one(*[LayerSpec((Part(0, i, -0.5), Part(1, i, 0.75), Part(2, i, 0.75))) for i in (0, 2, 3, 5)]),
        "ends": one(blend[0], LayerSpec((Part(2, 3),)), embed=2, head=1),
        "base prefix": one(*[LayerSpec((Part(0, i),)) for i in range(3)], blend[4]),
    }
    if name not in ("gpt2", "gpt_neox"):
        mlp = Mix((Part(0, 1, 0.5), Part(2, 1, 0.5)))
        found["halves"] = one(LayerSpec((Part(1, 1),), mlp=mlp), LayerSpec((Part(0, 4),), mlp=Mix((Part(1, 4),))))
    return found


def tied(name):
    return variants(name)[0].config.tie_word_embeddings


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sweep_says_what_the_model_by_hand_says(name):
    evaluator, made = Evaluator(bank_of(name), WINDOWS), candidates(name)
    scores = evaluator.token_scores(list(made.values()), Fidelity(len(WINDOWS)))
    for (label, blueprint), (_, nll) in zip(made.items(), scores, strict=True):
        if tied(name) and blueprint.embed != blueprint.head:
            continue
        said = logits(stitched(name, blueprint), WINDOWS)[:, :-1].log_softmax(-1)
        wanted = -said.gather(-1, WINDOWS[:, 1:, None]).squeeze(-1)
        torch.testing.assert_close(nll, wanted, rtol=1e-3, atol=1e-3, msg=lambda m, x=label: f"{x}: {m}")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_loads_as_the_model_by_hand(name, tmp_path):
    for label, blueprint in candidates(name).items():
        if tied(name) and blueprint.embed != blueprint.head:
            continue
        (tmp_path / label).mkdir()
        write(blueprint, variants(name), tmp_path / label)
        ours, theirs = stock(tmp_path / label), stitched(name, blueprint)
        torch.testing.assert_close(logits(ours, WINDOWS), logits(theirs, WINDOWS), rtol=1e-3, atol=1e-3)


def test_a_small_bank_makes_layers_again_and_scores_the_same():
    made = list(candidates("llama").values())
    large, small = (Evaluator(bank_of("llama", n), WINDOWS) for n in (64, 1))
    ours, theirs = (e.token_scores(made, Fidelity(4)) for e in (small, large))
    assert all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
    assert len(small.bank._made) <= 1


def test_every_window_is_compared_with_its_own_teacher():
    evaluator, whose = Evaluator(bank_of("llama"), WINDOWS), [2, 0, 1, 0]
    evaluator.teach(whose)
    candidate = candidates("llama")["blend"]
    kl, _ = evaluator.token_scores([candidate], Fidelity(4))[0]
    ours = logits(stitched("llama", candidate), WINDOWS)[:, :-1].double().log_softmax(-1)
    for row, teacher in enumerate(whose):
        dense = Blueprint(
            sources("llama"), tuple(LayerSpec((Part(teacher, i),)) for i in range(DEPTH)), teacher, teacher
        )
        said = logits(stitched("llama", dense), WINDOWS[row : row + 1])[0, :-1].double().log_softmax(-1)
        wanted = (said.exp() * (said - ours[row])).sum(-1)
        torch.testing.assert_close(kl[row].double(), wanted, rtol=2e-3, atol=2e-4)


def test_a_teacher_is_as_near_to_itself_as_can_be():
    evaluator = Evaluator(bank_of("llama"), WINDOWS)
    evaluator.teach([1] * 4)
    assert evaluator.evaluate([candidates("llama")["variant"]], Fidelity(4))[0].kl < 1e-5


def test_what_teachers_say_can_be_learned_from():
    bank = bank_of("llama")
    teachers = Teachers.of(bank, Dense(bank.model, bank.parents[0].family), 2, [1, 0])
    said = teachers.say(WINDOWS[:2])
    weight = torch.ones(1, requires_grad=True)
    (said * weight).sum().backward()
    dense = Blueprint(sources("llama"), tuple(LayerSpec((Part(1, i),)) for i in range(DEPTH)), 1, 1)
    torch.testing.assert_close(said[:1], logits(stitched("llama", dense), WINDOWS[:1]), rtol=1e-3, atol=1e-3)
    assert teachers.several and weight.grad is not None


def test_a_repair_aims_at_the_teacher_of_each_window():
    bank = bank_of("llama")
    cut = Blueprint(sources("llama"), tuple(LayerSpec((Part(1, i),)) for i in (0, 1, 3, 4, 5)), 1, 1)
    fit, held = tokens(24, seed=3), tokens(6, seed=4)
    done = repair(bank, cut, fit, held, teachers=[1] * 30)
    evaluator = Evaluator(bank, held)
    evaluator.teach([1] * 6)
    bare, repaired = evaluator.evaluate([cut, done.blueprint], Fidelity(6))
    assert repaired.kl < 0.9 * bare.kl and all(f.after <= f.before for f in done.fits)


def test_as_many_teachers_as_windows():
    bank = bank_of("llama")
    with pytest.raises(ValueError, match="2 teachers for 3 windows"):
        Teachers.of(bank, Dense(bank.model, bank.parents[0].family), 3, [0, 1])
