import threading
import time
from contextlib import suppress

import pytest

from hf_prune.atomic_files import claimed, copied, copying, staged, write_text, written
from hf_prune.errors import InvalidRecipe


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_gets_its_name_when_all_went_well(tmp_path):
    with staged(tmp_path / "small") as partial:
        (partial / "a").write_text("1")
        assert partial.name == "small" and partial.parent.parent == tmp_path and len(names(tmp_path)) == 1
    assert names(tmp_path) == ["small"] and (tmp_path / "small/a").read_text() == "1"


def test_nothing_is_left_of_a_failure_and_what_was_there_stays(tmp_path):
    copied_from = tmp_path / "small"
    copied_from.mkdir()
    (copied_from / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), staged(copied_from) as partial:
        (partial / "a").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["small"] and (copied_from / "a").read_text() == "old"


def test_what_has_the_name_already_is_replaced(tmp_path):
    for text in ("old", "new"):
        with staged(tmp_path / "small") as partial:
            (partial / text).write_text(text)
    assert names(tmp_path) == ["small"] and names(tmp_path / "small") == ["new"]


def killed(folder, replacing=False):
    """What is left when the process ends in the middle of writing a folder, or of giving it its name."""
    place = folder.with_name(".hf-prune-0123456789abcdef.partial")
    (place / folder.name).mkdir(parents=True)
    (place / folder.name / "half").write_text("x")
    (place / "unfinished").write_text(folder.name)
    if replacing:
        folder.rename(place / "replaced")


def test_a_killed_attempt_is_put_away_and_what_it_replaced_is_back(tmp_path):
    killed(tmp_path / "small")
    with claimed(tmp_path / "small"), staged(tmp_path / "small") as partial:
        assert not names(partial)
        (partial / "a").write_text("1")
    assert names(tmp_path) == ["small"]
    killed(tmp_path / "small", replacing=True)
    with claimed(tmp_path / "small"):
        assert names(tmp_path / "small") == ["a"]
    assert names(tmp_path) == ["small"]


def test_what_is_somebodys_own_is_never_removed(tmp_path):
    """Whatever it is called: only what bears our mark, and of this name, is ours."""
    for name in ("small.partial", "small.old", "small.run", ".hf-prune-ffff.partial", ".small.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own").write_text(name)
    killed(tmp_path / "other")
    before = names(tmp_path)
    for _ in range(2):
        with claimed(tmp_path / "small"), staged(tmp_path / "small") as partial:
            (partial / "a").write_text("1")
        with written(tmp_path / "small.txt") as file:
            file.write_text("1")
    assert names(tmp_path) == sorted([*before, "small", "small.txt"])
    assert all((tmp_path / name / "own").read_text() == name for name in before if (tmp_path / name / "own").exists())


def test_two_do_not_write_one_folder(tmp_path):
    with claimed(tmp_path / "small"):
        with pytest.raises(InvalidRecipe, match="Another run is writing .*/small; wait"), claimed(tmp_path / "small"):
            pass
        with claimed(tmp_path / "other"):
            pass
        (tmp_path / "here").symlink_to(tmp_path)
        with pytest.raises(InvalidRecipe, match="Another run"), claimed(tmp_path / "here/small"):
            pass
        (tmp_path / "here").unlink()
    with claimed(tmp_path / "small"):
        pass
    assert names(tmp_path) == []


def test_of_many_at_once_one_writes_at_a_time(tmp_path):
    """The lock's file comes and goes: nobody may hold one that is gone beside one who holds the new one."""
    at_work, most, entered = [], [], []

    def often(number):
        while entered.count(number) < 5:
            with suppress(InvalidRecipe), claimed(tmp_path / "small"):
                at_work.append(number)
                most.append(len(at_work))
                entered.append(number)
                time.sleep(0.001)
                at_work.remove(number)

    threads = [threading.Thread(target=often, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert max(most) == 1 and len(entered) == 30 and names(tmp_path) == []


def test_a_copy_is_whole_and_takes_no_name_that_is_taken(tmp_path):
    (tmp_path / "a/figures").mkdir(parents=True)
    (tmp_path / "a/figures/x").write_text("1")
    assert (copied(tmp_path / "a", tmp_path / "b") / "figures/x").read_text() == "1"
    with pytest.raises(InvalidRecipe, match="exists"):
        copied(tmp_path / "a", tmp_path / "b")


def test_a_copy_that_is_worked_on_gets_its_name_when_all_went_well(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("old")
    with pytest.raises(KeyboardInterrupt), copying(tmp_path / "a", tmp_path / "b") as partial:
        (partial / "x").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a"]
    with copying(tmp_path / "a", tmp_path / "b") as partial:
        (partial / "x").write_text("new")
    assert [(tmp_path / n / "x").read_text() for n in names(tmp_path)] == ["old", "new"]


def test_text_is_written_at_once(tmp_path):
    write_text(tmp_path / "a.json", "1\n")
    write_text(tmp_path / "a.json", "2\n")
    assert names(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_bytes() == b"2\n"


def test_a_file_gets_its_name_when_all_went_well(tmp_path):
    path = tmp_path / "state"
    for text in ("old", "new"):
        with written(path) as partial:
            partial.write_text(text)
    with pytest.raises(KeyboardInterrupt), written(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new"


def test_a_file_that_a_killed_process_left_in_a_folder_is_put_away(tmp_path):
    small, elsewhere = tmp_path / "small", tmp_path / "elsewhere"
    for folder in (small, small / "figures", elsewhere):
        folder.mkdir()
        for name in ("report.json", ".hf-prune-0123.partial", "mine.partial"):
            (folder / name).write_text("x")
    (small / "link").symlink_to(elsewhere, target_is_directory=True)
    with claimed(small):
        assert names(small) == ["figures", "link", "mine.partial", "report.json"]
        assert names(small / "figures") == ["mine.partial", "report.json"]
        assert len(names(elsewhere)) == 3
