"""Session: what a run is made of, each part made once, and what its journal must agree on."""

import json
from dataclasses import replace

import pytest
import torch

from hf_prune.blueprint import Fidelity, Trial
from hf_prune.errors import InvalidData, InvalidRecipe, UnsupportedArchitecture
from hf_prune.session import session as module
from hf_prune.session.clock import Clock
from hf_prune.session.session import ALWAYS, open_session
from tests.families import save_tiny
from tests.runs import DEPTH, base, prose, recipe


@pytest.fixture
def session(tmp_path):
    return open_session(recipe(tmp_path, keep_layers=4))


def test_heavy_parts_are_made_once(session):
    assert session.inputs.base.depth == DEPTH and session.inputs.target.remove == 2
    assert session.evaluator is session.evaluator and session.bank is session.bank
    assert session.inputs.cards[0]["license"] == "apache-2.0"


def test_the_three_splits_share_no_window(session):
    seen = {split: {tuple(row.tolist()) for row in w.tokens} for split, w in session.evidence.windows.items()}
    assert [len(s) for s in seen.values()] == [4, 4, 6]
    assert not seen["search"] & seen["selection"] and not (seen["search"] | seen["selection"]) & seen["report"]


def test_selection_windows_follow_the_search_windows_in_the_evaluator(session):
    rows = session.evaluator.reference.tokens
    assert torch.equal(rows[:4], session.evidence.windows["search"].tokens)
    start = session.evidence.selection.start
    assert torch.equal(
        rows[start : start + session.evidence.selection.sequences], session.evidence.windows["selection"].tokens
    )


def test_values_are_in_the_order_of_the_columns_and_the_objective_is_first(tmp_path):
    session = open_session(recipe(tmp_path, keep_layers=4, objective="perplexity"))
    assert session.columns[0] == "perplexity" and set(session.columns) == set(ALWAYS)
    scorer = session.deletions(2)
    trials = [Trial(scorer.space.from_removed(cut), Fidelity(n)) for cut, n in (((1, 2), 4), ((3, 4), 2), ((1, 2), 2))]
    together = scorer.evaluate(trials)
    assert together == [pytest.approx(scorer.evaluate([t])[0]) for t in trials]
    params = [v[session.columns.index("params")] for v in together]
    assert params == [session.evaluator.parameters(scorer.blueprint(t.genome)) for t in trials]
    assert len({scorer.key(t) for t in trials}) == 3


def test_two_spellings_of_one_model_have_one_key(tmp_path):
    session = open_session(recipe(tmp_path, keep_layers=4, method="halves"))
    halves, whole = session.scorer, session.deletions(2)
    keys = [s.key(Trial(s.space.from_removed((1, 4)), Fidelity(4))) for s in (halves, whole)]
    assert keys[0] == keys[1]


def test_a_journal_must_agree_on_recipe_base_evidence_and_numerics(tmp_path, monkeypatch):
    header = open_session(recipe(tmp_path, keep_layers=4)).header()
    assert set(header) == {"recipe", "base", "evidence", "objectives", "numerics"}
    (tmp_path / "text.txt").write_text((tmp_path / "text.txt").read_text().replace("cat", "cow"))
    changed = open_session(recipe(tmp_path, keep_layers=4, data=(str(tmp_path / "text.txt"),))).header()
    assert {k for k in header if header[k] != changed[k]} == {"evidence"}
    monkeypatch.setattr(module, "REVISION", 0)
    assert {k for k, v in open_session(recipe(tmp_path, keep_layers=4)).header().items() if v != header[k]} == {
        "numerics"
    }


@pytest.mark.parametrize("changes", [{"repair": True, "repair_sequences": 128}, {"search_heal": "1k"}])
def test_a_journal_of_candidates_that_are_trained_must_agree_on_their_text(tmp_path, changes):
    folder = tmp_path / "texts"
    folder.mkdir()

    def write(split: str, seed: int) -> None:
        lines = [json.dumps({"text": t}) for t in prose(seed, 40)]
        (folder / f"cats.{split}.jsonl").write_text("\n".join(lines))

    for seed, split in enumerate(("search", "selection", "report", "heal")):
        write(split, seed)
    asked = recipe(tmp_path, keep_layers=4, data=(str(folder),), **changes)
    plain, before = (open_session(r).header() for r in (recipe(tmp_path, keep_layers=4, data=(str(folder),)), asked))
    write("heal", 9)
    after = open_session(asked).header()
    assert "training" not in plain and {k for k in before if before[k] != after[k]} == {"training"}


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_search_runs_in_bfloat16_only_where_checkpoint_and_processor_do(tmp_path, monkeypatch, native, dtype):
    monkeypatch.setattr("hf_prune.session.dense_model.computes_bfloat16", lambda: native)
    assert open_session(recipe(tmp_path, keep_layers=4)).dtype == torch.float32
    narrow = base(tmp_path / "narrow", dtype="bfloat16")
    session = open_session(recipe(tmp_path, base=str(narrow), keep_layers=4))
    assert session.dtype == dtype
    asked = recipe(tmp_path, keep_layers=4, dtype="float16")
    assert replace(session, inputs=replace(session.inputs, recipe=asked)).dtype == torch.float16


def test_windows_longer_than_the_model_reads_are_refused(tmp_path):
    with pytest.raises(InvalidData, match="reads at most 256 tokens"):
        open_session(recipe(tmp_path, keep_layers=4, length=300)).evidence.windows  # noqa: B018


def test_a_target_that_cannot_be_met_is_refused_on_opening(tmp_path):
    with pytest.raises(InvalidRecipe, match="keep between 1 and 5"):
        open_session(recipe(tmp_path, keep_layers=6))


def test_the_clock_adds_laps_of_one_name():
    clock = Clock()
    clock.lap("a")
    clock.lap("b")
    clock.lap("a")
    assert set(clock.seconds) == {"a", "b", "total"} and clock.seconds["total"] >= 0


@pytest.mark.parametrize("family", ["olmo2", "gpt2"])
def test_a_family_that_is_not_cut_by_width_is_refused_before_anything_is_read(tmp_path, family):
    save_tiny(family, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    asked = recipe(tmp_path, base=str(tmp_path / "base"), method="width", data=(str(tmp_path / "none.txt"),))
    with pytest.raises(UnsupportedArchitecture, match=f"not '{family}'; choose --method collapse"):
        open_session(asked)
