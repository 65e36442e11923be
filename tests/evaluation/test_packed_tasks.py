"""Tasks in the sweep give what a live model gives, however they are packed."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune.assembly.assemble import Parent, assemble
from hf_prune.assembly.layer_bank import LayerBank
from hf_prune.blueprint import Blueprint, Fidelity, LayerSpec, Part, Source
from hf_prune.data.bundled import demo_folder
from hf_prune.data.task_scores import Question, score
from hf_prune.data.task_sources import load_tasks
from hf_prune.data.tasks import Item, Task, bundled_tasks
from hf_prune.evaluation.dense import Dense
from hf_prune.evaluation.evaluator import Evaluator
from hf_prune.evaluation.packed_tasks import Exam, packed_row, seen, sharing
from hf_prune.limits import EXAM_BYTES
from hf_prune.models.inference import family_of
from hf_prune.recovery.short_training import Candidate
from tests.data.test_task_scores import FAMILIES, MIXED, random_model

FEW_SHOT = Task(
    "shots",
    tuple(
        Item(
            f"tom has a dog. the dog is big.\nmia has a cat. the cat is small.\n{who} has a",
            ("bird.", f"{what}.", "big"),
            1,
        )
        for who, what in (("sue", "red hat"), ("ben", "bag of toys"), ("sue", "very old car"))
    ),
)
EXACT = Task("exact", (Item("once upon a", ("time",), 0), Item("she went to the", ("park to play",), 0)), "exact")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder() / "storymath-16l")


@pytest.fixture(scope="module")
def parent():
    folder = demo_folder() / "storymath-16l"
    return Parent.open(Source("demo", "demo"), folder)


@pytest.fixture(scope="module")
def bank(parent):
    return LayerBank(assemble(Blueprint.identity(parent.source, 16), [parent], dtype=torch.float32), [parent])


def cut(parent, gone=(3, 6)):
    return Blueprint((parent.source,), tuple(LayerSpec((Part(0, i),)) for i in range(16) if i not in gone))


def ordered(exam, task):
    return exam.tasks[[t.name for t in exam.tasks].index(task.name)]


def alike(ours, theirs):
    finite = np.isfinite(theirs.log_likelihoods)
    assert (finite == np.isfinite(ours.log_likelihoods)).all()
    np.testing.assert_allclose(ours.log_likelihoods[finite], theirs.log_likelihoods[finite], rtol=1e-3, atol=2e-3)
    assert (ours.correct == theirs.correct).all() and (ours.correct_norm == theirs.correct_norm).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_every_family_answers_on_sheets_as_it_does_live(family, packed, tokenizer):
    model = random_model(family)
    dense = Dense(model, family_of(model.config), tile_tokens=256)
    exam = Exam(dense, [MIXED, EXACT, FEW_SHOT], tokenizer, packed=packed)
    sheets = exam.sheets(0, exam.items)
    with torch.inference_mode():
        found = exam.judged(0, exam.items, [s.scores(dense, s.hidden[-1]) for s in sheets])
    for ours, task in zip(found, exam.tasks, strict=True):
        alike(ours, score(model, tokenizer, task))


def test_sheets_of_fewer_tokens_say_the_same_and_keep_no_states(tokenizer):
    model = random_model("llama")
    dense = Dense(model, family_of(model.config), tile_tokens=256)
    exam = Exam(dense, [MIXED, FEW_SHOT], tokenizer)
    whole, small = exam.sheets(0, 3), exam.sheets(0, 3, 64)
    assert all(len(s.tokens) == 1 or s.tokens.numel() <= 64 for s in small) and len(small) > len(whole)
    assert {len(s.hidden) for s in small} == {1} and {len(s.hidden) for s in whole} == {4}
    assert exam.sheets(0, 3, 10**6) is whole and exam.sheets(0, 3, 64) is small
    found = [{}, {}]
    for said, sheets in zip(found, (whole, small), strict=True):
        for sheet in sheets:
            state = sheet.hidden[0]
            with torch.inference_mode():
                for layer, (args, kwargs) in zip(dense.layers, sheet.calls, strict=True):
                    state = layer(state, *args, **kwargs)
                said |= dict(zip(sheet.options, sheet.scores(dense, state)[0].tolist(), strict=True))
    assert found[0] == pytest.approx(found[1], abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_rows_may_be_longer_than_any_text_the_model_can_read(family, tokenizer):
    places = {"n_positions" if family == "gpt2" else "max_position_embeddings": 40}
    model = random_model(family, **places)
    exam = Exam(Dense(model, family_of(model.config)), [FEW_SHOT], tokenizer)
    (sheet,) = exam.sheets(0, 3)
    assert sheet.tokens.shape[0] == 1 and sheet.tokens.shape[1] > 40
    with torch.inference_mode():
        (found,) = exam.judged(0, 3, [sheet.scores(exam.dense, sheet.hidden[-1])])
    alike(found, score(model, tokenizer, exam.tasks[0]))


def test_a_candidate_that_is_to_be_trained_answers_as_the_sweep_does(bank, parent, tokenizer):
    windows = torch.randint(3, 400, (2, 32), generator=torch.Generator().manual_seed(0))
    evaluator = Evaluator(bank, windows, exam=lambda dense: Exam(dense, [MIXED, EXACT, FEW_SHOT], tokenizer))
    swept = evaluator.evaluate([cut(parent)], Fidelity(1, items=2, first_item=1))[0].tasks
    with Candidate(evaluator.dense, bank, cut(parent).canonical(), 0) as candidate:
        ours = candidate.answers(evaluator.exam, 1, 2)
    assert len(ours) == len(swept) == 3
    for mine, theirs in zip(ours, swept, strict=True):
        alike(mine, theirs)


def test_a_cut_model_answers_in_the_sweep_as_it_does_live(bank, parent, tokenizer):
    tasks = [Task(t.name, t.items[:12], t.kind) for t in load_tasks(bundled_tasks())]
    evaluator = Evaluator(bank, torch.randint(3, 2000, (2, 32)), exam=lambda dense: Exam(dense, tasks, tokenizer))
    measures = evaluator.evaluate([cut(parent), cut(parent, (8,)), cut(parent, ())], Fidelity(2, items=12))
    assert evaluator.exam.packed
    for blueprint, m in zip([cut(parent), cut(parent, (8,)), cut(parent, ())], measures, strict=True):
        live = assemble(blueprint, [parent], dtype=torch.float32)
        for ours, task in zip(m.tasks, evaluator.exam.tasks, strict=True):
            alike(ours, score(live, tokenizer, task))
        assert m.error == pytest.approx(1 - np.mean([t.accuracy for t in m.tasks])) and m.doubt > 0
        assert m.error_norm == pytest.approx(1 - np.mean([t.accuracy_norm for t in m.tasks]))


def test_states_that_were_not_kept_are_computed(bank, parent, tokenizer, monkeypatch):
    tokens, found = torch.randint(3, 2000, (2, 32)), []
    for room in (EXAM_BYTES, 700_000, 0):
        monkeypatch.setattr(Exam, "_room", room)
        evaluator = Evaluator(
            bank, tokens, tile_tokens=64, exam=lambda dense: Exam(dense, [MIXED, EXACT, FEW_SHOT], tokenizer)
        )
        measures = evaluator.evaluate([cut(parent), cut(parent, (8,)), cut(parent, ())], Fidelity(2, items=10))
        kept = {len(s.hidden) for s in evaluator.exam.sheets(0, 10)}
        found.append((kept, evaluator.cost.layer_tokens, measures))
    assert [kept for kept, _, _ in found] == [{17}, {17, 1}, {1}]
    assert found[0][1] < found[1][1] < found[2][1]
    for _, _, measures in found[1:]:
        for ours, theirs in zip(measures, found[0][2], strict=True):
            assert (ours.kl, ours.nll) == (theirs.kl, theirs.nll)
            for one, other in zip(ours.tasks, theirs.tasks, strict=True):
                alike(one, other)


def test_items_from_anywhere_are_the_items_from_there(bank, parent, tokenizer):
    tasks = [Task(t.name, t.items[:10], t.kind) for t in load_tasks(bundled_tasks())]
    evaluator = Evaluator(bank, torch.randint(3, 2000, (2, 32)), exam=lambda dense: Exam(dense, tasks, tokenizer))
    whole, late = (
        evaluator.evaluate([cut(parent)], f)[0] for f in (Fidelity(2, items=10), Fidelity(2, items=4, first_item=6))
    )
    for all_items, few in zip(whole.tasks, late.tasks, strict=True):
        assert len(few.correct) == 4
        np.testing.assert_allclose(all_items.log_likelihoods[6:], few.log_likelihoods, rtol=1e-4, atol=1e-3)


def test_what_overflows_on_a_sheet_alone_is_seen(bank, parent, tokenizer):
    evaluator = Evaluator(bank, torch.randint(3, 2000, (2, 32)), exam=lambda dense: Exam(dense, [MIXED], tokenizer))
    (sheet,) = evaluator.exam.sheets(0, 10)
    with torch.inference_mode():
        sheet.hidden[3][0, 0] = torch.inf
    assert [m.finite for m in evaluator.evaluate([cut(parent), cut(parent, (0,))], Fidelity(2, items=10))] == [
        False,
        True,
    ]


def test_a_shared_prompt_is_computed_once(bank, tokenizer):
    exam = Exam(Dense(bank.model, bank.parents[0].family), [MIXED], tokenizer)
    plain = Exam(Dense(bank.model, bank.parents[0].family), [MIXED], tokenizer, packed=False)
    packed, apart = (sum(s.tokens.numel() for s in e.sheets(0, e.items)) for e in (exam, plain))
    assert exam.packed and packed < 0.75 * apart


def test_what_items_begin_with_is_computed_once(bank, tokenizer):
    dense = Dense(bank.model, bank.parents[0].family)
    shots = "tom has a dog. the dog is big.\n" * 6
    items = [Item(f"{shots}{name} has a", (" hat", " red car"), 0) for name in ("sue", "ben", "mia", "kim") * 3]
    own = [len(tokenizer(i.context[len(shots) :] + "".join(i.choices)).input_ids) for i in items]
    exam = Exam(dense, [Task("shots", tuple(items))], tokenizer)
    (sheet,) = exam.sheets(0, 12)
    assert len(tokenizer(shots).input_ids) < sheet.tokens.numel() < len(tokenizer(shots).input_ids) + sum(own)


QUESTIONS = st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=2, max_size=6),
                               st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=3)),
                     min_size=1, max_size=5)  # fmt: skip


@given(QUESTIONS, st.integers(1, 60))
def test_every_answer_of_a_row_is_told_by_its_own_text_and_no_other(drawn, most):
    """Whatever shares a row: what the place of an answer sees is what comes before the answer, at its positions."""
    asked = [
        Question(n, tuple(context[:-1]), tuple((context[-1], *o) for o in options), tuple(map(len, options)))
        for n, (context, options) in enumerate(drawn)
    ]
    groups = list(sharing(asked, most))
    assert sorted(q.number for group in groups for q in group) == list(range(len(asked)))
    for row in (packed_row(0, group) for group in groups):
        sees, found = seen([row], len(row.tokens))[0], {}
        for at, wanted, item, option in row.scored:
            text = sorted((row.positions[i], row.tokens[i]) for i in sees[at].nonzero().flatten().tolist())
            assert [place for place, _ in text] == list(range(len(text)))
            found.setdefault((item, option), []).append([token for _, token in text] + [wanted])
        for (item, option), texts in found.items():
            whole = [*asked[item].prefix, *asked[item].rests[option]]
            assert texts == [whole[:end] for end in range(len(texts[0]), len(whole) + 1)]
            assert len(texts) == asked[item].scored[option]
    assert sum(len(row.scored) for row in (packed_row(0, g) for g in groups)) == sum(sum(q.scored) for q in asked)


def test_items_share_a_row_where_they_share_enough_and_as_long_as_it_has_room():
    alike = [Question(n, (1, 1, 1, n), ((2, 3), (2, 4)), (1, 1)) for n in range(4)]
    assert [[len(g) for g in sharing(alike, most)] for most in (11, 10, 7, 6)] == [[4], [3, 1], [2, 2], [1] * 4]
    assert [len(packed_row(0, g).tokens) for g in sharing(alike, 11)] == [11]
    other = [Question(n, (1, n, *range(8)), ((2, 3), (2, 4)), (1, 1)) for n in range(4)]
    assert [len(g) for g in sharing(other, 100)] == [1] * 4


def test_greedy_text_begins_with_the_answer_exactly_when_it_counts_as_right(tokenizer):
    folder = demo_folder() / "storymath-16l"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = ["once upon a time there was a little", "tom and his friend went to the"]
    items = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        said = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        items += [Item(prompt, (tokenizer.decode(said),), 0), Item(prompt, (" zebra",), 0)]
    scores = score(model, tokenizer, Task("said", tuple(items), "exact"))
    assert scores.correct.tolist() == [True, False] * 2 and scores.chance == 0


def test_files_may_ask_for_text(tmp_path):
    lines = [{"context": "1 + 1 =", "answer": "2"}, {"context": "2 + 2 =", "answer": "4"}]
    (tmp_path / "sums.search.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (task,) = load_tasks([tmp_path / "sums.search.jsonl"])
    assert task.kind == "exact" and task.name == "sums" and task.items[1] == Item("2 + 2 =", ("4",), 0)
