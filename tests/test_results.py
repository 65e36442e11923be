"""A finished folder is rebuilt, measured again and trained; what made it stays on record."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from hf_prune.blueprint import Blueprint, Source
from hf_prune.errors import (
    HfPruneError,
    IncompatibleSources,
    InvalidBlueprint,
    InvalidRecipe,
    InvalidReport,
    SourceError,
)
from hf_prune.events import Advanced, Stage
from hf_prune.pipeline import run
from hf_prune.recipe import OPTIONS, Recipe
from hf_prune.results import assemble_blueprint, heal_folder, report_folder
from tests.runs import TASKS, base, finished, leftovers, recipe, text

HEAL = {"heal": "2k", "heal_batch": 4, "heal_rank": 4, "repair": True, "repair_sequences": 24}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    base(folder / "base")
    text(folder / "text.txt")
    return folder


def asked(home, name, **changes):
    fixed = {"keep_layers": 4, "baselines": ("last", "greedy"), "repair_finalists": 1}
    return recipe(home, **{**where(home), "output": str(home / name), **fixed, **changes})


def where(home):
    return {"base": str(home / "base"), "data": (str(home / "text.txt"),), "tasks": TASKS}


@pytest.fixture(scope="module")
def plain(home):
    """Searched, neither repaired nor trained; nobody may write to it."""
    return run(asked(home, "plain"))


@pytest.fixture(scope="module")
def later(plain, home):
    """The same, repaired and trained afterwards."""
    return finished(heal_folder(plain.folder, output=home / "later", **where(home), **HEAL))


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def strict(path):
    """JSON as the standard has it: no NaN, no Infinity."""
    return json.loads(Path(path).read_text(), parse_constant=lambda name: pytest.fail(name))


def refused(error, match, work):
    with pytest.raises(error, match=match) as caught:
        work()
    said = str(caught.value)
    assert isinstance(caught.value, HfPruneError) and "\n" not in said and said.endswith(".")


def test_a_blueprint_rebuilds_the_weights_bit_for_bit(plain, home, tmp_path):
    path, source = plain.folder / "blueprint.json", str(home / "base")
    again = assemble_blueprint(path, tmp_path / "again", source=source)
    for name in ("model.safetensors", "blueprint.json", "config.json"):
        assert (again / name).read_bytes() == (plain.folder / name).read_bytes(), name

    def wrong(error, match, output="x", **how):
        refused(error, match, lambda: assemble_blueprint(path, tmp_path / output, **how))

    base(tmp_path / "b", seed=9)
    wrong(SourceError, "--source or --base")
    wrong(IncompatibleSources, "weights would differ", source=str(tmp_path / "b"))
    wrong(InvalidBlueprint, "no meaning", source=source, pick="knee")
    wrong(InvalidRecipe, "choose another --output", source=source, output="again")
    gone = "there is no such file here"
    refused(InvalidBlueprint, gone, lambda: assemble_blueprint(tmp_path / "none.json", tmp_path / "x"))
    (tmp_path / "b" / "latin.json").write_bytes(b'{"caf\xe9": 1}')
    refused(InvalidBlueprint, "Cannot read", lambda: assemble_blueprint(tmp_path / "b" / "latin.json", tmp_path / "x"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "b"]


def test_measuring_again_keeps_the_search_and_renews_the_figures(plain, home, tmp_path):
    folder = Path(shutil.copytree(plain.folder, tmp_path / "small"))
    before, weights = strict(folder / "report.json"), (folder / "model.safetensors").read_bytes()
    after = finished(report_folder(folder, **where(home), report_sequences=3)).report
    assert after == strict(folder / "report.json") and (folder / "model.safetensors").read_bytes() == weights
    for name in ("search_summary", "merging", "selection", "command", "recipe", "certificate", "size", "layers"):
        assert after[name] == before[name], name
    assert after["text"]["all"]["tokens"] == 3 * 31 and "3 |" in (folder / "README.md").read_text()
    assert [b["removed"] for b in after["baselines"]] == [b["removed"] for b in before["baselines"]]
    assert after["splits"]["search"] == before["splits"]["search"] and after["stages"]["names"] == ["dense", "cut"]
    assert leftovers(tmp_path) == []


def test_a_copy_is_measured_and_the_source_is_left_alone(plain, home, tmp_path):
    before = content(plain.folder)
    told = list(report_folder(plain.folder, output=tmp_path / "copy", **where(home), report_sequences=3))
    report = finished(told).report
    assert [e.name for e in told if isinstance(e, Stage)] == ["pull", "report"]
    assert report["text"]["all"]["tokens"] == 3 * 31 and strict(tmp_path / "copy/report.json") == report
    assert content(plain.folder) == before
    after = content(tmp_path / "copy")
    # Some figures are drawn again, and a drawing may come out the same.
    figures = {Path("figures", name) for name in ("capabilities.png", "comparison.png")}
    assert after.keys() == before.keys()
    assert {n for n in after if after[n] != before[n]} - figures == {Path("report.json"), Path("README.md")}
    again = lambda: list(report_folder(plain.folder, output=tmp_path / "copy", **where(home)))  # noqa: E731
    refused(InvalidRecipe, "exists", again)


def test_nothing_is_left_of_a_copy_that_is_not_measured_to_the_end(plain, home, tmp_path):
    with closing(report_folder(plain.folder, output=tmp_path / "copy", **where(home))) as events:
        assert [next(events).name, next(events).name] == ["pull", "report"]
        assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".partial"]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_measured_is_refused_in_one_sentence(plain, home, tmp_path):
    copy = Path(shutil.copytree(plain.folder, tmp_path / "copy"))
    before = content(copy)

    def wrong(error, match, source=copy, **changes):
        refused(error, match, lambda: list(report_folder(source, **{**where(home), **changes})))

    base(tmp_path / "b", seed=9)
    file = str(home / "text.txt")
    for name, entry in (("data", ["~nobody/x" * 99, file]), ("data", file), ("tasks", [file]), ("tasks", str(home))):
        theirs = Path(shutil.copytree(plain.folder, tmp_path / f"theirs-{name}"))
        report = strict(theirs / "report.json")
        report["recipe"][name] = entry
        (theirs / "report.json").write_text(json.dumps(report))
        given = {"base": str(home / "base"), **({"data": where(home)["data"]} if name == "tasks" else {})}
        refused(InvalidRecipe, f"say where it is with --{name}", lambda t=theirs, g=given: list(report_folder(t, **g)))
        shutil.rmtree(theirs)
    theirs = Path(shutil.copytree(plain.folder, tmp_path / "theirs"))
    report = strict(theirs / "report.json")
    report["recipe"]["search_tasks"] = [str(home / "text.txt"), str(tmp_path / "gone.jsonl")]
    (theirs / "report.json").write_text(json.dumps(report))
    wrong(SourceError, "neither a folder", source=theirs, base=str(tmp_path / "gone"))
    shutil.rmtree(theirs)
    wrong(InvalidRecipe, f"{home / 'base'} is not a result of hf_prune", source=home / "base", output=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    wrong(SourceError, "--source or --base", base=None)
    wrong(SourceError, "neither a folder", base=str(tmp_path / "gone"))
    wrong(IncompatibleSources, "weights would differ", base=str(tmp_path / "b"))
    wrong(InvalidRecipe, "compress its base again", keep_layers=5)
    assert content(copy) == before and leftovers(tmp_path) == []


def test_what_a_broken_report_holds_is_not_built(plain, home, tmp_path):
    raw = strict(plain.folder / "report.json")
    pinned, rival = Blueprint.from_json((plain.folder / "blueprint.json").read_text()), raw["baselines"][1]
    elsewhere = Blueprint.identity(Source("ns/other", "a" * 40), 6).to_json()
    deeper = Blueprint.identity(pinned.sources[0], 7).to_json()
    for error, match, change in (
        (InvalidReport, r"report.json holds no report of hf_prune \(size: Field required\)", {"size": ...}),
        (InvalidReport, r"\(baselines.0.layers: ", {"baselines": [{**rival, "layers": "four"}]}),
        (InvalidRecipe, "Layer 77 cannot be removed", {"baselines": [{**rival, "removed": [77]}]}),
        (InvalidBlueprint, "made from other sources", {"baselines": [{**rival, "blueprint": elsewhere}]}),
        (InvalidBlueprint, "asks for layer 6", {"baselines": [{**rival, "blueprint": deeper}]}),
        (HfPruneError, "no task '5'", {"recipe": {**raw["recipe"], "tasks": 5}}),
    ):
        theirs = Path(shutil.copytree(plain.folder, tmp_path / "theirs"))
        broken = {k: v for k, v in {**raw, **change}.items() if v is not ...}
        (theirs / "report.json").write_text(json.dumps(broken))
        before = content(theirs)
        given = {k: v for k, v in where(home).items() if k != "tasks" or "recipe" not in change}
        refused(error, match, lambda t=theirs, g=given: list(report_folder(t, **g)))
        assert content(theirs) == before
        shutil.rmtree(theirs)


def test_what_cannot_be_healed_is_refused_in_one_sentence(plain, home, tmp_path):
    def wrong(error, match, source=plain.folder, **changes):
        ask = {"heal": 1000, **where(home), **changes}
        refused(error, match, lambda: list(heal_folder(source, output=tmp_path / "x", **ask)))

    wrong(InvalidRecipe, "not a result of hf_prune", source=home / "base")
    wrong(InvalidRecipe, "compress its base again", ratio=0.5)
    wrong(InvalidRecipe, "compress its base again", drop=("1",))
    wrong(InvalidRecipe, "heal_kl or heal_ce must be above 0", heal_kl=0, heal_ce=0)
    wrong(SourceError, "--source or --base", base=None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").mkdir()
    wrong(InvalidRecipe, "is not the result of this recipe")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and not list((tmp_path / "x").iterdir())


def test_a_report_decides_nothing_about_trust_or_publishing(plain, home, tmp_path):
    folder = Path(shutil.copytree(plain.folder, tmp_path / "stranger"))
    report = strict(folder / "report.json")
    report["recipe"] |= {"trust_remote_code": True, "allow_pickle": True, "push_to": "me/x", "public": True,
                         "lm_eval": ["arc_easy"], "overwrite": True, "output": str(tmp_path / "theirs"),
                         "trust": {"remote_code": True}, "publish": {"repo": "me/x"},
                         "tasks": {"names": ["/etc/passwd"], "force_test_split": True}}  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    (tmp_path / "taken").mkdir()
    healing = heal_folder(folder, output=tmp_path / "taken", heal=1000, **where(home))
    with pytest.raises(InvalidRecipe, match="is not the result"):
        list(healing)
    finished(report_folder(folder, **where(home), report_sequences=3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stranger", "taken"]


@pytest.mark.slow
def test_a_result_healed_later_is_the_one_healed_at_once(later, plain, home):
    once = run(asked(home, "once", **HEAL))
    for name in ("model.safetensors", "blueprint.json", "repairs/patches.safetensors", "config.json"):
        assert (home / "later" / name).read_bytes() == (once.folder / name).read_bytes(), name
    timeless = ({**r["healing"], "tokens_per_s": None} for r in (later.report, once.report))
    assert next(timeless) == next(timeless) and later.report["repair"] == once.report["repair"]
    for name in ("text", "stages", "size", "recipe_digest", "digest"):
        assert later.report[name] == once.report[name], name


@pytest.mark.slow
def test_a_healed_folder_keeps_what_made_it_and_says_what_was_done(later, plain, home):
    folder, report = home / "later", later.report
    assert strict(folder / "report.json") == report and later.folder == str(folder)
    for name in ("search_summary", "selection", "merging", "baselines", "front", "search"):
        assert report[name] == plain.report[name], name
    assert report["stages"]["names"] == ["dense", "cut", "repaired", "healed"] and report["healing"]["kept"]
    assert report["certificate"]["ok"] and {"search", "repair", "heal"} <= report["seconds"].keys()
    first, second = report["command"].splitlines()
    assert first == plain.report["command"] and second.startswith("hf-prune heal FOLDER")
    for flag in ("--heal 2000", "--heal-batch 4", "--heal-rank 4", "--repair", "--repair-sequences 24"):
        assert flag in second, flag
    assert not {"--keep-layers", "--base", "--output", "--seed"} & set(second.split())
    kept = {k: v for k, v in report["recipe"].items() if k in OPTIONS}
    again = Recipe.of(**{**kept, **where(home)})
    assert again.digest == report["recipe_digest"] and again.heal.tokens == 2000 and again.size.keep_layers == 4
    assert (folder / "journal.jsonl").read_bytes() == (plain.folder / "journal.jsonl").read_bytes()
    card = (folder / "README.md").read_text()
    assert "hf-prune heal FOLDER" in card and str(home) not in card
    for name in {p.name for p in (plain.folder / "figures").iterdir()} | {"healing.png"}:
        assert (folder / "figures" / name).is_file(), name
    assert not [n for n in leftovers(home) if n.startswith("later")]


@pytest.mark.slow
def test_the_card_of_a_healed_folder_shows_every_figure(later, home):
    card, figures = (home / "later/README.md").read_text(), home / "later/figures"
    assert [p.name for p in figures.iterdir() if f"figures/{p.name}" not in card] == []


@pytest.mark.slow
def test_a_second_call_says_done(later, plain, home):
    before = content(home / "later")
    again = list(heal_folder(plain.folder, output=home / "later", **where(home), **HEAL))
    assert [e.name for e in again if isinstance(e, Stage)] == ["pull", "done"]
    assert finished(again).report == later.report and content(home / "later") == before


def of_another_cut(plain, folder):
    """A result of the same recipe with its second layer replaced by a copy of the first."""
    shutil.copytree(plain.folder, folder)
    found = Blueprint.from_json((folder / "blueprint.json").read_text())
    other = replace(found, layers=(found.layers[0], found.layers[0], *found.layers[2:]))
    (folder / "blueprint.json").write_text(other.to_json())
    return folder


@pytest.mark.slow
def test_what_was_made_of_another_source_is_not_the_result(later, plain, home, tmp_path):
    other, before = of_another_cut(plain, tmp_path / "other"), content(home / "later")
    with pytest.raises(InvalidRecipe, match="of another source than .*other"):
        list(heal_folder(other, output=home / "later", **where(home), **HEAL))
    assert content(home / "later") == before


@pytest.mark.slow
def test_a_training_is_not_resumed_for_another_source(plain, home, tmp_path):
    other = of_another_cut(plain, tmp_path / "other")
    with closing(heal_folder(plain.folder, output=tmp_path / "out", **where(home), **HEAL)) as events:
        next(e for e in events if isinstance(e, Advanced) and e.stage == "heal" and e.done == 7)
    events = heal_folder(other, output=tmp_path / "out", **where(home), **HEAL)
    with closing(events):
        steps = (e.done for e in events if isinstance(e, Advanced) and e.stage == "heal")
        assert next(steps) == 0 and next(steps) == 1


@pytest.mark.slow
def test_a_healed_result_is_healed_anew_and_not_on_top(later, plain, home, tmp_path):
    other = {**where(home), **HEAL, "heal": "1k"}
    fresh = finished(heal_folder(plain.folder, output=tmp_path / "fresh", **other)).report
    anew = finished(heal_folder(home / "later", output=tmp_path / "anew", **other)).report
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("fresh", "anew")]
    assert weights[0] == weights[1] != (home / "later/model.safetensors").read_bytes()
    assert {**anew["healing"], "tokens_per_s": None} == {**fresh["healing"], "tokens_per_s": None}
    assert anew["stages"] == fresh["stages"] and anew["repair"] == fresh["repair"]
    assert len(anew["command"].splitlines()) == 3


@pytest.mark.slow
def test_a_healed_folder_is_measured_again_with_its_training(later, home, tmp_path):
    report = finished(report_folder(home / "later", output=tmp_path / "copy", **where(home), report_sequences=3)).report
    assert report["healing"] == later.report["healing"] and report["repair"] == later.report["repair"]
    assert report["stages"]["names"] == ["dense", "cut", "repaired", "healed"]
    texts = report["stages"]["text"]["all"]
    assert texts["healed"]["perplexity"] < texts["cut"]["perplexity"]
    assert report["command"] == later.report["command"] and report["text"]["all"]["tokens"] == 3 * 31


@pytest.mark.slow
def test_left_in_the_middle_of_its_training_it_goes_on_from_there(later, plain, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with closing(heal_folder(plain.folder, **where(home), **HEAL)) as events:
        left = next(e.done for e in events if isinstance(e, Advanced) and e.stage == "heal" and e.done == 7)
    assert left == 7 and [p.name for p in tmp_path.iterdir()] == ["plain-healed.run"]
    events = list(heal_folder(plain.folder, **where(home), **HEAL))
    steps = [e.done for e in events if isinstance(e, Advanced) and e.stage == "heal"]
    assert steps[0] == 0 and steps[1] > 1, "it began from a checkpoint"
    assert [e for e in events if isinstance(e, Advanced) and e.stage == "repair"] == []
    weights = [folder / "model.safetensors" for folder in (tmp_path / "plain-healed", home / "later")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["plain-healed"]
