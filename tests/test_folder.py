"""A finished folder is rebuilt, measured again and trained; what made it stays on record."""

import json
import shutil
from pathlib import Path

import pytest

from hf_prune.errors import InvalidRecipe, SourceError
from hf_prune.events import Finished, Stage
from hf_prune.folder import heal_folder, report_folder
from hf_prune.pipeline import run
from tests.runs import base, recipe, text

HEAL = {"heal": "2k", "heal_batch": 4, "heal_rank": 4, "repair": True, "repair_sequences": 24}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    base(folder / "base")
    text(folder / "text.txt")
    return folder


def asked(home, name, **changes):
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),), "output": str(home / name)}
    return recipe(home, **{**given, "drop": ("1", "3"), "baselines": ("last",), **changes})


@pytest.fixture(scope="module")
def plain(home):
    return run(asked(home, "plain"))


def where(home):
    return {"base": str(home / "base"), "data": (str(home / "text.txt"),)}


def finished(events):
    (last,) = [e for e in events if isinstance(e, Finished)]
    return last


def test_a_copy_is_measured_and_the_source_is_left_alone(plain, home, tmp_path):
    before = {p: p.read_bytes() for p in plain.folder.rglob("*") if p.is_file()}
    report = report_folder(plain.folder, output=tmp_path / "copy", **where(home), report_sequences=3)
    assert report["text"]["all"]["tokens"] == 3 * 31
    assert json.loads((tmp_path / "copy/report.json").read_text()) == report
    assert all(p.read_bytes() == content for p, content in before.items())
    with pytest.raises(InvalidRecipe, match="exists"):
        report_folder(plain.folder, output=tmp_path / "copy", **where(home))


@pytest.mark.slow
def test_a_result_healed_later_is_the_one_healed_at_once(plain, home):
    later = finished(heal_folder(plain.folder, output=home / "later", **where(home), **HEAL))
    once = run(asked(home, "once", **HEAL))
    assert (home / "later/model.safetensors").read_bytes() == (once.folder / "model.safetensors").read_bytes()
    assert (home / "later/blueprint.json").read_bytes() == (once.folder / "blueprint.json").read_bytes()
    report = later.report
    assert report["search_summary"] == plain.report["search_summary"] and report["healing"]["kept"]
    assert report["stages"]["names"] == ["dense", "cut", "repaired", "healed"]
    first, second = report["command"].splitlines()
    assert first == plain.report["command"] and second.startswith("hf-prune heal FOLDER") and "--heal 2000" in second
    assert (home / "later/journal.jsonl").is_file() and "hf-prune heal FOLDER" in (home / "later/README.md").read_text()
    again = list(heal_folder(plain.folder, output=home / "later", **where(home), **HEAL))
    assert any(isinstance(e, Stage) and e.name == "done" for e in again) and finished(again).report == report


def test_what_cannot_be_healed_is_refused_in_one_sentence(plain, home, tmp_path):
    def refused(error, match, source=plain.folder, **changes):
        with pytest.raises(error, match=match):
            list(heal_folder(source, output=tmp_path / "x", **{"heal": 1000, **where(home), **changes}))
        assert not (tmp_path / "x").exists()

    refused(InvalidRecipe, "not a result of hf_prune", source=home / "base")
    refused(InvalidRecipe, "compress its base again", ratio=0.5)
    refused(SourceError, "--source or --base", base=None)
    (tmp_path / "x").mkdir()
    with pytest.raises(InvalidRecipe, match="is not the result of this recipe"):
        list(heal_folder(plain.folder, output=tmp_path / "x", heal=1000, **where(home)))


def test_a_report_decides_nothing_about_trust_or_publishing(plain, home, tmp_path):
    folder = Path(shutil.copytree(plain.folder, tmp_path / "stranger"))
    report = json.loads((folder / "report.json").read_text())
    report["recipe"] |= {"trust_remote_code": True, "allow_pickle": True, "push_to": "me/x", "public": True,
                         "lm_eval": ["arc_easy"], "overwrite": True}  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    (tmp_path / "taken").mkdir()
    with pytest.raises(InvalidRecipe, match="is not the result"):
        list(heal_folder(folder, output=tmp_path / "taken", heal=1000, **where(home)))
    report_folder(folder, **where(home), report_sequences=3)
