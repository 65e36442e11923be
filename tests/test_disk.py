"""Disks that are full or read-only and paths that cannot be: one sentence each, and the same command goes on."""

import os
from pathlib import Path

import pytest

from hf_prune.atomic_files import check_place, disk_told, what_failed, write_text, written
from hf_prune.errors import CannotWrite, HfPruneError
from hf_prune.pipeline import compress, run
from hf_prune.recipe import Recipe
from hf_prune.results import assemble_blueprint, heal_folder, report_folder
from tests import runs
from tests.disks import disk
from tests.test_resume import pairs, rows

ODD = {
    "a name that is too long": lambda home: home / ("x" * 250),
    "a path that is too long": lambda home: home / "/".join(["x" * 200] * 30),
    "a file as parent": lambda home: home / "file/out",
    "a file as parent's parent": lambda home: home / "file/a/out",
    "a file": lambda home: home / "file",
    "a dangling link": lambda home: home / "dangling",
    "a parent that is a dangling link": lambda home: home / "dangling/out",
    "links in a circle": lambda home: home / "round",
    "a zero byte": lambda home: home / "a\0b",
}


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "file").write_text("somebody's own")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    return tmp_path


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("stage", ["compress", "heal", "report", "assemble", "copy"])
def test_an_output_that_cannot_be_is_refused_before_anything(home, odd, stage):
    output, before = ODD[odd](home), sorted(home.iterdir())
    with pytest.raises(HfPruneError) as e:
        match stage:
            case "compress":
                # What comes later would say that there is no such base.
                list(compress(Recipe.of(base=str(home / "nothing"), ratio=0.25, output=str(output))))
            case "heal":
                list(heal_folder(home, output=output))
            case "report":
                list(report_folder(home, output=output))
            case "assemble":
                (home.parent / "blueprint.json").write_text("{}")
                assemble_blueprint(home.parent / "blueprint.json", output)
            case "copy":
                check_place(output)
    said = str(e.value)
    assert "nothing" not in said or "nothing was begun" in said
    assert said.count("\n") == 0 and "Errno" not in said and len(said) < 700
    assert sorted(home.iterdir()) == before and (home / "file").read_text() == "somebody's own"


def test_a_place_that_will_do_is_left_as_it_was(tmp_path):
    check_place(tmp_path / "a/b/out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    check_place(tmp_path / "link")
    check_place(tmp_path / "there")


def test_a_read_only_disk_is_said_before_anything(tmp_path):
    with disk(tmp_path / "disk", 1 << 20) as small:
        small.remount("ro")
        with pytest.raises(CannotWrite, match="the disk is read-only; nothing was begun"):
            list(compress(Recipe.of(base="ns/base", ratio=0.25, output=str(small.folder / "out"))))


@pytest.mark.parametrize("write", ["text", "block"])
def test_nothing_is_left_of_a_file_that_did_not_fit(tmp_path, write):
    with disk(tmp_path / "disk", 1 << 16) as small:
        with pytest.raises(CannotWrite, match="disk/a: the disk is full; the rest stays"), disk_told("the rest stays"):
            if write == "text":
                write_text(small.folder / "a", "x" * (1 << 17))
            else:
                with written(small.folder / "a") as partial:
                    partial.write_bytes(b"x" * (1 << 17))
        assert list(small.folder.iterdir()) == []


def test_what_others_say_of_a_full_disk_is_understood(tmp_path):
    import torch
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(1 << 16)}
    with disk(tmp_path / "disk", 1 << 16) as small:
        for save in (save_file, torch.save):
            with pytest.raises(Exception) as e:  # noqa: B017, PT011 - every library has its own
                save(tensors, small.folder / "a")
            assert "the disk is full" in what_failed(e.value).lower()


def test_what_is_no_trouble_of_a_disk_stays_what_it_was():
    assert what_failed(ValueError("no space left on device")) is None
    assert what_failed(ConnectionRefusedError(111, "refused")) is None
    with pytest.raises(KeyError), disk_told("all is kept"):
        raise KeyError("a bug")


STEP = 192 << 10


@pytest.mark.slow
def test_a_disk_that_fills_in_every_stage_loses_nothing(tmp_path):
    """Each time the disk is a little larger, the run gets a little further."""
    more = {"repair": True, "repair_sequences": 8, "search_heal": 500, "heal": 2000, "heal_batch": 4, "heal_rank": 2}
    whole = run(runs.recipe(tmp_path / "whole", drop_layers=2, **more))
    again = {"base": str(tmp_path / "whole/base"), "data": (str(tmp_path / "whole/text.txt"),)}
    said, size = [], STEP
    with disk(tmp_path / "disk", size) as small:
        wanted = runs.recipe(small.folder, drop_layers=2, **more, **again)
        stages = set()
        while size < 100 * STEP:
            try:
                last = ""
                for event in compress(wanted):
                    last = getattr(event, "name", last)
                break
            except CannotWrite as e:
                said.append(str(e))
                stages.add(last)
            assert not (small.folder / "small").exists() and set(os.listdir(small.folder)) <= {"small.run"}
            size += STEP
            small.remount(f"size={size}")
        assert len(said) > 5 and stages >= {"assemble"}, (said, stages)
        assert all("he disk is full; what the run has found is kept in" in s and "Errno" not in s for s in said), said
        assert os.listdir(small.folder) == ["small"]
        for name in ("model.safetensors", "blueprint.json", "repairs/patches.safetensors"):
            assert (small.folder / "small" / name).read_bytes() == (whole.folder / name).read_bytes(), name
        assert rows(small.folder / "small/journal.jsonl") == rows(whole.folder / "journal.jsonl")
        assert set(pairs(small.folder / "small/journal.jsonl").values()) == {1}
