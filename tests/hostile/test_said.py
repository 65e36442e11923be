"""What a result says of its own making reaches no file of this machine."""

import shutil
from pathlib import Path
from typing import get_args

import pytest

from hf_prune.blueprint import Source
from hf_prune.errors import HfPruneError, InvalidRecipe, SourceError
from hf_prune.hub.names import parse
from hf_prune.recipe import OPTIONS
from hf_prune.report import said
from hf_prune.results import assemble_blueprint, heal_folder, open_pair, report_folder
from tests.hostile.folders import COMMIT, SECRET, altered, opened, resourced, result, secrets

ENTRIES = (
    "secret", "secret:default:text", "x/../secret:default:text", "./secret", "secret/", "secret/train.jsonl",
    "secret/text.txt", "secret/task.yaml", "secret/items.jsonl", "{home}/secret", "{home}/secret/train.jsonl",
    "hf://datasets/../secret", "hf://datasets/{home}/secret", "hf://datasets/x/../secret", "file://{home}/secret",
    "ns/secret/../secret", "ns/secret:../../secret:text", "text:default:text", "json", "ns/secret", "ns/secret:default",
    "self:secret/items.jsonl", "self:secret", "self:",
)  # fmt: skip
"""Spellings of text that lies here; two may mean a dataset of the Hub, which has none."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home):
    return result(home)


def refused(work, match=None):
    with pytest.raises(HfPruneError, match=match) as caught:
        work()
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("field", ["data", "tasks"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_text_of_this_machine_is_not_read_because_a_report_names_it(
    made, home, tmp_path, monkeypatch, hub_server, field, entry
):
    hidden = secrets(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    theirs = altered(made, tmp_path / "theirs", **{field: [entry.format(home=tmp_path)]})
    given = {"base": str(home / "base"), **({"data": (str(home / "text.txt"),)} if field == "tasks" else {})}
    before = (theirs / "README.md").read_text()
    with opened() as files:
        refused(lambda: list(report_folder(theirs, **given)))
        refused(lambda: list(heal_folder(theirs, output=tmp_path / "healed", heal=1000, **given)))
    inside = [f for f in files if f.startswith((str(hidden.resolve()), str((tmp_path / "ns").resolve())))]
    assert inside == [] and (theirs / "README.md").read_text() == before and not (tmp_path / "healed").exists()


@pytest.mark.parametrize("repo", ["{home}/model", "../model", "model", "./model", "~/model", "ns/model"])
@pytest.mark.parametrize("part", ["base", "adapter"])
def test_a_blueprint_names_no_model_of_this_machine(made, home, tmp_path, monkeypatch, hub_server, part, repo):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("model", "ns/model", "in/model"):
        shutil.copytree(home / "base", tmp_path / place)
    repo = repo.format(home=tmp_path)
    how = {"repo": repo} if part == "base" else {"repo": "ns/none", "adapter": f"{repo}@{COMMIT}"}
    theirs = resourced(made, tmp_path / "theirs", **how)
    with opened() as files:
        refused(lambda: assemble_blueprint(theirs / "blueprint.json", tmp_path / "out"))
        refused(lambda: list(report_folder(theirs, data=(str(home / "text.txt"),))))
        refused(lambda: open_pair(theirs))
    places = tuple(str(tmp_path.resolve() / place) for place in ("model", "ns", "in"))
    assert [f for f in files if f.startswith(places)] == [] and not (tmp_path / "out").exists()


def test_what_the_user_says_is_read(made, home, tmp_path):
    """The same folder, with base and text named: not the report's word."""
    again = assemble_blueprint(made / "blueprint.json", tmp_path / "out", source=str(home / "base"))
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_names_on_the_hub_stay_what_they_are():
    assert said.source(Source("ns/m", COMMIT)) == f"hf://ns/m@{COMMIT}"
    both = said.source(Source("ns/m", COMMIT, f"ns/a@{COMMIT}"))
    assert [str(n) for n in parse(both)] == [f"ns/m@{COMMIT}", f"ns/a@{COMMIT}"]
    assert all(name.folder is None for name in parse(both))
    told = {"data": ["ns/d:en:text", "hf://datasets/ns/e"], "tasks": "arc_easy", "length": 32, "output": "/x"}
    found = {"data": ("hf://datasets/ns/d:en:text", "hf://datasets/ns/e"), "tasks": ("arc_easy",), "length": 32}
    assert said.kept(told, {}) == found and said.kept({"data": "self"}, {}) == {"data": ("self",)}
    assert said.kept(told, {"data": ("mine",)}) == {k: v for k, v in found.items() if k != "data"}


@pytest.mark.parametrize("entry", ["ns/d:en:text:train", "ns/d.v2", "ns/d:"])
def test_a_dataset_is_taken_in_every_spelling(entry):
    assert said.kept({"data": [entry]}, {}) == {"data": (f"hf://datasets/{entry}",)}


@pytest.mark.parametrize("revision", ["main", "", "../../x", "sha256-" + "0" * 56])
def test_a_source_is_a_commit(revision):
    with pytest.raises(SourceError, match="--source or --base"):
        said.source(Source("ns/m", revision))


def test_every_field_of_free_text_is_decided_on():
    """A new one must say whether a report may fill it, and what is then opened."""
    free = {name for name, option in OPTIONS.items() if set(_kinds(option.field.annotation)) & {str}}
    assert free <= {*said.NEVER_KEPT, *said.FROM_THE_HUB, *said.WORDS}, free


def _kinds(annotation):
    found = [a for a in get_args(annotation) if isinstance(a, type) or get_args(a)]
    return [annotation] if annotation is str else [kind for part in found for kind in _kinds(part)]


def test_the_sentence_says_which_flag(made, home, tmp_path):
    theirs = altered(made, tmp_path / "theirs", data=[str(Path("elsewhere", "x.txt"))])
    error = refused(lambda: list(report_folder(theirs, base=str(home / "base"))), "say where it is with --data")
    assert isinstance(error, InvalidRecipe)
