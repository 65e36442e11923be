"""Before a search: every parent is checked once per run, and a base that overflows is run in a wider precision."""

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hf_prune.assembly.base_check import check_base
from hf_prune.errors import BaseOverflow, Misread
from hf_prune.events import Reported, Stage
from hf_prune.models.checkpoint import Checkpoint
from hf_prune.pipeline import compress
from hf_prune.report.schema.course import BaseCheck
from hf_prune.report.schema.report import Report
from hf_prune.report.text import report_lines
from hf_prune.report.verdicts import base_verdict
from hf_prune.session import parents
from hf_prune.session.parents import calibrate, check_parents, found_of
from hf_prune.session.session import open_session
from tests.foreign.builders import build, reconfigure, restate, state, stored
from tests.runs import recipe, relatives, stitching, text


@pytest.fixture
def checks(monkeypatch):
    """Sources that were checked, in order."""
    seen = []

    def noted(parent, *args, **kwargs):
        seen.append(parent.source)
        return check_base(parent, *args, **kwargs)

    monkeypatch.setattr(parents, "check_base", noted)
    return seen


def over(events):
    """The stages of a generator, and what it returns."""
    stages = []
    while True:
        try:
            stages.append(next(events))
        except StopIteration as end:
            return stages, end.value


def until(events, stage):
    """Run up to a stage and break off."""
    with contextlib.closing(events):
        next(e for e in events if isinstance(e, Stage) and e.name == stage)


def test_a_run_that_goes_on_does_not_check_again(tmp_path, checks):
    wanted = recipe(tmp_path, keep_layers=4)
    until(compress(wanted), "select")
    assert len(checks) == 1
    (report,) = [e.report for e in compress(wanted) if isinstance(e, Reported)]
    assert len(checks) == 1
    (row,) = report["base_check"]["parents"]
    assert row["ok"] and row["source"] == str(checks[0]) and row["max_logit_difference"] == 0
    assert any("stock transformers loads the same" in line for line in report_lines(Report(**report)))
    assert "stock transformers loads the same" in (tmp_path / "small/README.md").read_text()


def test_what_is_known_of_another_base_is_not_believed(tmp_path, checks):
    session = open_session(recipe(tmp_path, keep_layers=4))
    over(check_parents(session))
    known = json.loads(session.workdir.parents.read_text())
    session.workdir.parents.write_text(json.dumps(known | {"of": known["of"] | {"sources": ["ns/other@abc"]}}))
    assert found_of(session) is None
    over(check_parents(session))
    assert len(checks) == 2 and found_of(session)["parents"] == known["parents"]


def test_every_parent_of_a_stitch_is_checked(tmp_path, checks):
    session = open_session(stitching(relatives(tmp_path)))
    over(check_parents(session))
    assert checks == list(session.inputs.sources)
    assert [row["ok"] for row in found_of(session)["parents"]] == [True] * 3


@pytest.mark.parametrize("victim", ["base", "tuned", "lora"])
def test_a_misread_parent_stops_the_run_before_the_search(tmp_path, monkeypatch, victim):
    wanted, read = stitching(relatives(tmp_path)), Checkpoint.tensor
    name = "model.layers.2.self_attn.q_proj.weight"

    def misread(self, asked):
        mine = self.adapter.folder.name if self.adapter else self.folder.name
        return read(self, asked) + (0.01 if (mine, asked) == (victim, name) else 0)

    monkeypatch.setattr(Checkpoint, "tensor", misread)
    with pytest.raises(Misread, match=f"{victim}@.*{name} differs"):
        until(compress(wanted), "calibrate")
    assert not (tmp_path / "out").exists()


def overflowing(folder):
    """A base in float16 whose states are beyond it from the fourth layer on."""
    build(folder, dtype=torch.float16)
    name = "model.layers.3.mlp.down_proj.weight"
    return restate(folder, lambda s: s.update({name: (s[name].float() * 9e4).clamp(-6e4, 6e4).half()}))


def test_a_base_that_overflows_is_run_in_a_wider_precision(tmp_path):
    wanted = recipe(tmp_path, base=str(overflowing(tmp_path / "base")), keep_layers=4)
    narrow = replace(open_session(wanted), precision=torch.float16)
    _, session = over(check_parents(narrow))
    stages, session = over(calibrate(session))
    assert session.dtype == torch.float32 and torch.isfinite(session.evaluator.reference.hidden[-1]).all()
    assert stages[-1].detail == "again in float32: the base itself overflows in float16"
    assert found_of(session)["overflow"] == {"left": "float16", "measured_in": "float32"}
    # A resumed run knows.
    _, again = over(check_parents(replace(open_session(wanted), precision=torch.float16)))
    assert again.dtype == torch.float32
    told = SimpleNamespace(base_check=BaseCheck(**found_of(session)))
    assert any("overflows in float16" in line for line in base_verdict(told))


def test_who_asked_for_float16_is_told_that_the_base_overflows(tmp_path):
    folder = overflowing(tmp_path / "base")
    wanted = recipe(tmp_path, base=str(folder), keep_layers=4, dtype="float16")
    with pytest.raises(BaseOverflow, match="base itself overflows in float16.*--dtype bfloat16 or --dtype float32"):
        until(compress(wanted), "search")
    until(compress(recipe(tmp_path, base=str(folder), keep_layers=4, data=wanted.data.text)), "search")


def test_a_base_whose_config_and_files_differ_runs_to_its_end(tmp_path):
    folder = reconfigure(build(tmp_path / "base", tie_word_embeddings=True), num_hidden_layers=5)
    restate(folder, lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"].flip(0)}))
    data = (str(text(tmp_path / "text.txt")),)
    wanted = recipe(tmp_path, base=str(folder), drop=("2",), baselines=(), data=data)
    (report,) = [e.report for e in compress(wanted) if isinstance(e, Reported)]
    assert report["certificate"]["ok"] and report["size"]["pruned"]["layers"] == 4
    card = (tmp_path / "small/README.md").read_text()
    assert "a lm\\_head.weight of their own" in card or "lm_head.weight of their own" in card
    assert report["size"]["pruned"]["bytes"] < report["size"]["dense"]["bytes"]


def test_a_training_is_rounded_to_the_dtypes_of_its_base(tmp_path):
    folder = restate(build(tmp_path / "base", dtype=torch.float16), stored((".2.", torch.bfloat16)))
    data = (str(text(tmp_path / "text.txt")),)
    heal = {"heal": 2000, "heal_method": "full"}
    wanted = recipe(tmp_path, base=str(folder), drop=("4",), baselines=(), data=data, **heal)
    assert open_session(wanted).inputs.base.coarsest == torch.bfloat16
    (report,) = [e.report for e in compress(wanted) if isinstance(e, Reported)]
    assert report["certificate"]["ok"] and report["healing"]["kept"]
    before, after = state(folder), state(tmp_path / "small")
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items() if n in after}
