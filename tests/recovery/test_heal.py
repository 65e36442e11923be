"""Training after a cut: the loss is what it says, the best state wins, and a killed run ends the same."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import modeling_utils

from hf_prune.evaluation.comparison import Targets
from hf_prune.models.experts import stacked
from hf_prune.recovery.heal import COMPLETE, Course, distillation, heal, lora_targets
from tests.families import EVERY, tiny
from tests.oracle import row, tokens

V = 7
STEP = 4 * 24
"""Tokens of one step of `trained`."""


def logits(seed, scale=2.0):
    return scale * torch.randn(2, 3, V, generator=torch.Generator().manual_seed(seed))


def next_tokens(seed):
    return torch.randint(V, (2, 3), generator=torch.Generator().manual_seed(seed))


def divergence(teacher, student, k=V):
    """KL with all but the teacher's k likeliest tokens in one bucket, token by token in float64."""
    found = torch.empty(teacher.shape[:-1], dtype=torch.float64)
    for at in [(i, j) for i in range(found.shape[0]) for j in range(found.shape[1])]:
        p, q = teacher[at].double().softmax(-1), student[at].double().softmax(-1)
        order = p.argsort(descending=True)
        p, q = p[order], q[order]
        if k < V:
            p, q = (torch.cat([x[:k], x[k:].sum()[None]]) for x in (p, q))
        found[at] = (p * (p / q).log()).sum()
    return found


@given(st.integers(0, 10**6), st.integers(1, V + 2), st.floats(0, 2), st.floats(0, 2), st.floats(0.1, 2))
def test_the_loss_is_kl_over_the_top_and_the_rest_plus_cross_entropy(seed, k, kl, ce, scale):
    teacher, student, labels = logits(seed, scale), logits(seed + 1, scale), next_tokens(seed)
    found = distillation(student, Targets.of(teacher, k) if kl else None, labels, Course(0, kl=kl, ce=ce))
    entropy = cross_entropy(student.double().flatten(0, 1), labels.flatten(), reduction="none").view(2, 3)
    wanted = kl * divergence(teacher, student, k) + ce * entropy
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    # Grouping tokens can only lose divergence (log-sum inequality).
    assert (found <= kl * divergence(teacher, student) + ce * entropy + 1e-3).all()
    assert (found >= ce * entropy - 1e-3).all()


@given(st.integers(0, 10**6), st.integers(1, V))
def test_equal_models_have_nothing_to_learn(seed, k):
    both = logits(seed).requires_grad_()
    loss = distillation(both, Targets.of(both.detach(), k), next_tokens(seed), Course(0, ce=0.0))
    loss.sum().backward()
    assert float(loss.detach().abs().max()) < 1e-5 and float(both.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("family", EVERY)
def test_the_lora_sits_on_every_matrix_of_the_layers_and_on_no_other(family):
    model, kept = tiny(family), row(family)
    targets = lora_targets(model, kept)
    matrices = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    hit = {n for n in matrices if any(n == t or n.endswith("." + t) for t in targets)}
    inside = {n for n in matrices if n.startswith(kept.layers + ".")}
    assert hit == inside and matrices - inside, "a head stays outside"
    for number in range(model.config.num_hidden_layers):
        for path in (kept.attention_out, *([] if stacked(model) else [kept.mlp_out])):
            assert f"{kept.layers}.{number}.{path}" in hit


def test_a_name_that_occurs_outside_of_the_layers_is_spelled_out():
    layers = torch.nn.ModuleList(torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 2)}) for _ in range(2))
    model = torch.nn.ModuleDict({"layers": layers, "proj": torch.nn.Linear(2, 2)})
    assert lora_targets(model, SimpleNamespace(prefix="layers.")) == ["layers.0.proj", "layers.1.proj"]
    del model["proj"]
    assert lora_targets(model, SimpleNamespace(prefix="layers.")) == ["proj"]


@given(st.integers(1, 10**7), st.integers(1, 64), st.integers(8, 4096))
def test_the_steps_are_as_many_as_the_budget_holds_and_at_least_one(budget, batch, length):
    steps = Course(budget, batch=batch).steps(length)
    assert steps >= 1 and (steps + 1) * batch * length > budget
    assert steps == 1 or steps * batch * length <= budget


def pair():
    """A teacher of six layers, and the same without the third, as a student."""
    teacher, student = tiny("llama"), tiny("llama")
    del student.model.layers[2]
    student.config.num_hidden_layers = 5
    for i, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = i
    return student, teacher.requires_grad_(False)


def trained(home, progress=lambda *_: None, both=None, **changes):
    student, teacher = both or pair()
    course = Course(**{"tokens": 12 * STEP, "batch": 4, "checks": 6, "rank": 4, "alpha": 8.0, "rate": 3e-3, **changes})
    return heal(student, teacher, row("llama"), tokens(32, seed=5), tokens(8, seed=5), course, home, progress)


def loss(model):
    """What the selection windows say, worked out by hand."""
    _, teacher = pair()
    windows = tokens(8, seed=5)
    with torch.no_grad():
        said, wanted = (m(input_ids=windows).logits[:, :-1] for m in (model, teacher))
    text = cross_entropy(said.flatten(0, 1), windows[:, 1:].flatten())
    p, q = wanted.log_softmax(-1), said.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean() + 0.5 * text)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_training_helps_and_the_best_state_is_what_one_gets(tmp_path, method):
    told = []
    done = trained(tmp_path, lambda *x: told.append(x), method=method)
    assert done.kept and done.after < 0.97 * done.before and done.tokens == 12 * STEP
    assert done.before == pytest.approx(loss(pair()[0]), rel=1e-4)
    assert [t for t, _ in done.curve] == [STEP * n for n in range(0, 13, 2)] and done.curve[0] == (0, done.before)
    assert done.after == min(x for _, x in done.curve)
    assert loss(done.model) == pytest.approx(done.after, rel=1e-4) and not done.model.training
    assert [(n, of) for n, of, x in told if x is None] == [(n, 12) for n in range(1, 13)]
    assert [(STEP * n, x) for n, _, x in told if x is not None] == list(done.curve)


@pytest.mark.slow
def test_a_single_step_learns(tmp_path):
    done = trained(tmp_path, tokens=STEP)
    (_, before), (_, after) = done.curve
    assert done.tokens == STEP and after < before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_only_the_layers_learn_and_the_teacher_does_not(tmp_path, method):
    (student, teacher), (dense, _) = pair(), pair()
    given_away = {n: p.clone() for n, p in teacher.named_parameters()}
    done = trained(tmp_path, both=(student, teacher), method=method)
    assert all(torch.equal(p, given_away[n]) and p.grad is None for n, p in teacher.named_parameters())
    learns = {n for n, p in done.model.named_parameters() if p.requires_grad}
    assert learns and all("model.layers." in n for n in learns)
    assert all(p.grad is None for n, p in done.model.named_parameters() if n not in learns)
    if method == "full":
        assert learns == {n for n, _ in student.named_parameters() if n.startswith("model.layers.")}
    else:
        assert all("lora_" in n for n in learns)
        student = done.model.merge_and_unload()
    before, after = dense.state_dict(), student.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    matrices = {n for n in before if n.startswith("model.layers.") and before[n].dim() == 2}
    assert matrices <= changed and all(n.startswith("model.layers.") for n in changed)
    assert method == "full" or changed == matrices


@pytest.mark.slow
@pytest.mark.parametrize("rate", [10.0, 1e30], ids=["worse", "broken"])
def test_a_training_that_hurts_is_stopped_and_not_kept(tmp_path, rate):
    done = trained(tmp_path, rate=rate, patience=2, tokens=24 * STEP, checks=12)
    assert not done.kept and done.after >= done.before and math.isfinite(done.before)
    assert done.tokens < 24 * STEP and len(done.curve) == 1 + done.tokens // (2 * STEP)


@pytest.mark.slow
def test_the_best_state_may_lie_before_the_end(tmp_path):
    # Few windows, learned by heart: the selection loss falls and then rises.
    student, teacher = pair()
    course = Course(80 * STEP, batch=4, checks=20, rate=3e-2, kl=0.0, ce=1.0, rank=8, patience=3)
    done = heal(student, teacher, row("llama"), tokens(4, seed=8), tokens(8, seed=9), course, tmp_path)
    losses = [x for _, x in done.curve]
    assert 0 < losses.index(min(losses)) < len(losses) - 1 and done.kept and done.after == min(losses)
    windows = tokens(8, seed=9)
    with torch.no_grad():
        said = done.model(input_ids=windows).logits[:, :-1]
    assert float(cross_entropy(said.flatten(0, 1), windows[:, 1:].flatten())) == pytest.approx(done.after, rel=1e-4)


@pytest.mark.slow
def test_a_run_is_decided_by_its_seed(tmp_path):
    torch.manual_seed(1)
    one = trained(tmp_path / "one")
    torch.manual_seed(2)
    assert trained(tmp_path / "two").curve == one.curve
    assert trained(tmp_path / "three", seed=1).curve[1:] != one.curve[1:]


class Killed(BaseException):
    pass


def killed(home, at, **changes):
    """A run that dies right behind a step."""

    def die(done, total, value):
        if done == at and value is None:
            raise Killed

    with pytest.raises(Killed):
        trained(home, die, **changes)


def same(ours, theirs):
    """Bit for bit; a NaN is one."""
    assert (ours.before, ours.after, ours.tokens) == (theirs.before, theirs.after, theirs.tokens)
    assert str(ours.curve) == str(theirs.curve)
    a, b = ours.model.state_dict(), theirs.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in b)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, method, torn):
    whole, home = trained(tmp_path / "whole", method=method), tmp_path / "killed"
    killed(home, 7, method=method)
    newest = home / "checkpoint-6"
    assert (newest / COMPLETE).is_file()
    if torn:
        (newest / COMPLETE).unlink()
        for file in newest.glob("*.safetensors"):
            file.write_bytes(file.read_bytes()[:100])
    seen = []
    again = trained(home, lambda done, *_: seen.append(done), method=method)
    assert seen[0] == 0 and seen[1] == (5 if torn else 7), "it goes on behind the last whole checkpoint"
    same(again, whole)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    whole = trained(tmp_path / "whole")
    killed(tmp_path / "killed", 1)
    same(trained(tmp_path / "killed"), whole)


@pytest.mark.slow
def test_a_finished_run_called_again_trains_no_more(tmp_path):
    whole, seen = trained(tmp_path), []
    same(trained(tmp_path, lambda done, *_: seen.append(done)), whole)
    assert seen == [0]


PLATEAU = {"rate": 0.1, "patience": 2, "tokens": 24 * STEP, "checks": 12}


@pytest.mark.slow
def test_a_run_that_lost_patience_goes_on_as_impatient_as_it_was(tmp_path):
    whole = trained(tmp_path / "whole", **PLATEAU)
    assert whole.tokens == 6 * STEP
    killed(tmp_path / "killed", 5, **PLATEAU)
    same(trained(tmp_path / "killed", **PLATEAU), whole)


@pytest.mark.slow
def test_a_run_that_stopped_early_has_stopped_when_called_again(tmp_path):
    whole = trained(tmp_path, **PLATEAU)
    same(trained(tmp_path, **PLATEAU), whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_checkpointing_changes_memory_and_not_the_result(tmp_path, monkeypatch, method):
    passes, checkpoint = [], modeling_utils.checkpoint

    def counted(*args, **kwargs):
        passes.append(args)
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "checkpoint", counted)
    plain = trained(tmp_path / "a", method=method)
    assert not passes
    saving = trained(tmp_path / "b", method=method, checkpointing=True)
    assert len(passes) == 12 * 5, "steps times layers; looking at the selection split needs no second pass"
    assert saving.before == plain.before and saving.after == pytest.approx(plain.after, rel=1e-5)
