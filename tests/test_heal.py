"""Training after a cut: the loss is what it says, the best state wins, and a killed run ends the same."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.heal import COMPLETE, Course, distillation, heal, lora_targets
from hf_prune.reference import Targets
from tests.families import EVERY, tiny
from tests.oracle import row, tokens

V = 7


def logits(seed, scale=2.0):
    return scale * torch.randn(2, 3, V, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, V), st.floats(0, 2), st.floats(0, 2))
def test_the_loss_is_kl_over_the_top_and_the_rest_plus_cross_entropy(seed, k, kl, ce):
    teacher, student, labels = logits(seed), logits(seed + 1), torch.randint(V, (2, 3))
    found = distillation(student, Targets.of(teacher, k) if kl else None, labels, Course(0, kl=kl, ce=ce))
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    full = (p * (p / q).log()).sum(-1)
    entropy = torch.nn.functional.cross_entropy(student.double().flatten(0, 1), labels.flatten(), reduction="none")
    wanted = kl * full + ce * entropy.view(2, 3)
    if k == V:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    else:
        # Grouping events can only lose divergence (log-sum inequality).
        assert (found <= wanted + 1e-4).all() and (found >= ce * entropy.view(2, 3) - 1e-4).all()


def test_equal_models_have_nothing_to_learn():
    both = logits(0)
    assert (
        float(distillation(both, Targets.of(both, 4), torch.zeros(2, 3).long(), Course(0, ce=0.0)).abs().max()) < 1e-5
    )


@pytest.mark.parametrize("family", EVERY)
def test_the_lora_sits_on_every_matrix_of_the_layers_and_on_no_other(family):
    model, kept = tiny(family), row(family)
    targets = lora_targets(model, kept)
    hit = {n for n, m in model.named_modules() if any(n == t or n.endswith("." + t) for t in targets)
           and type(m).__name__ in ("Linear", "Conv1D")}  # fmt: skip
    matrices = {n for n, p in model.named_modules() if type(p).__name__ in ("Linear", "Conv1D")}
    assert hit == {n for n in matrices if n.startswith(kept.prefix)} and kept.mlp_out.split(".")[-1] in " ".join(
        targets
    )


@pytest.mark.parametrize(("budget", "steps"), [(1, 1), (511, 1), (1024, 2), (10_000, 19)])
def test_the_budget_is_never_exceeded_by_a_step(budget, steps):
    assert Course(budget, batch=16).steps(32) == steps


def pair():
    """A teacher of six layers, and the same without the third, as a student."""
    teacher, student = tiny("llama"), tiny("llama")
    del student.model.layers[2]
    student.config.num_hidden_layers = 5
    for i, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = i
    return student, teacher.requires_grad_(False)


def trained(home, progress=lambda *_: None, **changes):
    student, teacher = pair()
    course = Course(
        **{"tokens": 4 * 24 * 12, "batch": 4, "checks": 6, "rank": 4, "alpha": 8.0, "rate": 3e-3, **changes}
    )
    return heal(student, teacher, row("llama"), tokens(32, seed=5), tokens(8, seed=5), course, home, progress)


def loss(model, course=None):
    _, teacher = pair()
    windows = tokens(8, seed=5)
    with torch.no_grad():
        said, wanted = (m(input_ids=windows).logits[:, :-1] for m in (model, teacher))
    return float(distillation(said, Targets.of(wanted, 512), windows[:, 1:], course or Course(0)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_training_helps_and_the_best_state_is_what_one_gets(tmp_path, method):
    done = trained(tmp_path, method=method)
    assert done.kept and done.after < 0.97 * done.before and done.tokens == 4 * 24 * 12
    assert done.curve[0] == (0, done.before) and done.after == min(x for _, x in done.curve)
    assert loss(done.model) == pytest.approx(done.after, rel=1e-3)
    names = {n for n, p in done.model.named_parameters() if p.requires_grad}
    assert names and all("layers." in n for n in names)
    assert not any("embed" in n or "lm_head" in n for n in names)


@pytest.mark.slow
def test_a_training_that_hurts_is_not_kept(tmp_path):
    done = trained(tmp_path, rate=50.0, patience=2)
    assert not done.kept and done.after >= done.before and done.tokens < 4 * 24 * 12
    assert math.isfinite(done.before)


class Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, torn):
    whole = trained(tmp_path / "whole")

    def kill(done, total, _):
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "torn", kill)
    left = sorted((tmp_path / "torn").glob(f"checkpoint-*/{COMPLETE}"))
    assert left
    if torn:
        left[-1].unlink()
    seen = []
    again = trained(tmp_path / "torn", lambda done, total, _: seen.append(done))
    assert seen[1] > 1, "it began from a checkpoint"
    assert (again.before, again.after, again.curve) == (whole.before, whole.after, whole.curve)
    ours, theirs = again.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.slow
def test_checkpointing_changes_memory_and_not_the_result(tmp_path):
    plain, saving = trained(tmp_path / "a"), trained(tmp_path / "b", checkpointing=True)
    assert saving.after == pytest.approx(plain.after, rel=1e-4)
