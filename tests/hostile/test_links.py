"""A link in a folder from elsewhere is refused by its name, and neither read, copied nor written through."""

import os
import shutil

import pytest

from hf_prune.atomic_files import copied
from hf_prune.atomic_files.links import check_files, copy_file
from hf_prune.errors import HfPruneError, UnsafeSource
from hf_prune.hub import push
from hf_prune.results import assemble_blueprint, heal_folder, report_folder
from tests.hostile.folders import SECRET, opened, result
from tests.runs import command

LINKED = {
    "a file": ("x.json", "secret.txt"),
    "the card": ("README.md", "secret.txt"),
    "the report": ("report.json", "secret.txt"),
    "the repairs": ("repairs/patches.safetensors", "secret.txt"),
    "a folder": ("figures", "private"),
    "a folder of repairs": ("repairs", "private"),
    "a figure": ("figures/search.png", "secret.txt"),
    "nothing": ("mergekit.yaml", "new.txt"),
    "a file of its own": ("other.json", "theirs/config.json"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home):
    return result(home)


@pytest.fixture(params=LINKED)
def theirs(request, made, tmp_path):
    """A result with a link in it."""
    name, to = LINKED[request.param]
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "private").mkdir()
    (tmp_path / "private/note.txt").write_text(SECRET)
    folder = tmp_path / "theirs"
    shutil.copytree(made, folder)
    place = folder / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / to)
    return folder


def test_a_link_is_refused_by_name_and_not_followed(theirs, home, tmp_path):
    given = {"base": str(home / "base"), "data": (str(home / "text.txt"),)}
    before = {p.name for p in (tmp_path, *tmp_path.iterdir()) if p.is_dir()}
    with opened() as files:
        for work in (
            lambda: list(report_folder(theirs, **given)),
            lambda: list(report_folder(theirs, output=tmp_path / "copy", **given)),
            lambda: list(heal_folder(theirs, output=tmp_path / "copy", heal=1000, **given)),
            lambda: copied(theirs, tmp_path / "copy"),
        ):
            with pytest.raises(UnsafeSource, match="in .*theirs is a link"):
                work()
    assert not [f for f in files if f.startswith((str(tmp_path / "secret.txt"), str(tmp_path / "private/")))]
    assert {p.name for p in (tmp_path, *tmp_path.iterdir()) if p.is_dir()} == before
    assert (tmp_path / "secret.txt").read_text() == SECRET and os.listdir(tmp_path / "private") == ["note.txt"]


def test_export_and_push_do_not_follow_it(theirs, tmp_path, hub_server):
    for way in (("--format", "mergekit"), ("--format", "nemotron-nas")):
        done = command("export", theirs, *way)
        assert done.returncode == 4 and "is a link" in done.stderr, done.stderr
    assert (tmp_path / "secret.txt").read_text() == SECRET and not (tmp_path / "new.txt").exists()
    if not (theirs / "other.json").exists():
        with pytest.raises(HfPruneError, match="is a link|not a plain file"):
            push(theirs, "ns/theirs")


def test_an_export_replaces_a_link_that_has_its_name(made, tmp_path):
    """Named by the user, and still not written through."""
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / "out.yaml").symlink_to(tmp_path / "own.txt")
    command("export", made, "--output", tmp_path / "out.yaml")
    assert (tmp_path / "own.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["blueprint.json", "repairs", "repairs/patches.safetensors"])
def test_a_blueprint_that_is_a_link_is_not_read(made, home, tmp_path, name):
    folder = tmp_path / "theirs"
    shutil.copytree(made, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(made / "blueprint.json")
    with pytest.raises(UnsafeSource, match=f"{name} in .* is a link"):
        assemble_blueprint(folder / "blueprint.json", tmp_path / "out", source=str(home / "base"))
    assert not (tmp_path / "out").exists()


def test_a_link_that_the_user_has_made_is_followed_to_its_result(made, home, tmp_path):
    (tmp_path / "mine.json").symlink_to(made / "blueprint.json")
    again = assemble_blueprint(tmp_path / "mine.json", tmp_path / "out", source=str(home / "base"))
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_a_link_to_a_stranger_s_link_is_not_followed(made, home, tmp_path):
    shutil.copytree(made, tmp_path / "theirs")
    (tmp_path / "theirs/repairs").symlink_to(tmp_path)
    (tmp_path / "mine.json").symlink_to(tmp_path / "theirs/blueprint.json")
    with pytest.raises(UnsafeSource, match="repairs in .*theirs is a link"):
        assemble_blueprint(tmp_path / "mine.json", tmp_path / "out", source=str(home / "base"))


def test_what_is_no_file_is_refused(made, tmp_path):
    folder = tmp_path / "theirs"
    shutil.copytree(made, folder)
    os.mkfifo(folder / "pipe")
    with pytest.raises(UnsafeSource, match="pipe in .* is neither a file nor a folder"):
        check_files(folder)


def test_a_link_that_appears_after_the_check_is_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/x").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UnsafeSource, match="x in .* is a link"):
        copy_file(tmp_path / "theirs/x", tmp_path / "out", tmp_path / "theirs")
    assert not (tmp_path / "out").exists()


def cache(folder, blob="contents"):
    """A snapshot as the Hub's cache has it."""
    (folder / "models--ns--x/blobs").mkdir(parents=True)
    (folder / "models--ns--x/blobs/0123").write_text(blob)
    snapshot = folder / "models--ns--x/snapshots/abc"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    (snapshot / "sub/a.json").symlink_to("../../../blobs/0123")
    return snapshot


def test_the_links_of_the_cache_of_the_hub_are_its_files(tmp_path):
    snapshot = cache(tmp_path)
    out = copied(snapshot, tmp_path / "out")
    assert (out / "config.json").read_text() == (out / "sub/a.json").read_text() == "contents"
    assert not (out / "config.json").is_symlink()


@pytest.mark.parametrize("trick", ["out of the cache", "through the contents", "all contents elsewhere"])
def test_a_folder_that_looks_like_the_cache_leads_nowhere_else(tmp_path, trick):
    snapshot = cache(tmp_path)
    (tmp_path / "private").mkdir()
    (tmp_path / "private/0123").write_text(SECRET)
    blobs = snapshot.parents[1] / "blobs"
    if trick == "out of the cache":
        (snapshot / "x").symlink_to(tmp_path / "private/0123")
    elif trick == "through the contents":
        (blobs / "0123").unlink()
        (blobs / "0123").symlink_to(tmp_path / "private/0123")
    else:
        shutil.rmtree(blobs)
        blobs.symlink_to(tmp_path / "private")
    with pytest.raises(UnsafeSource, match="is a link"):
        copied(snapshot, tmp_path / "out")
    assert not (tmp_path / "out").exists()
