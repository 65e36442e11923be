import pytest

from hf_prune.atomic_files import copied, copying, staged, write_text, written
from hf_prune.errors import InvalidRecipe


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_folder_gets_its_name_when_all_went_well(tmp_path):
    with staged(tmp_path / "small") as partial:
        (partial / "a").write_text("1")
        assert names(tmp_path) == ["small.partial"]
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


def test_a_killed_attempt_is_in_nobodys_way(tmp_path):
    (tmp_path / "small.partial").mkdir()
    (tmp_path / "small.partial/stale").write_text("x")
    with staged(tmp_path / "small") as partial:
        assert not names(partial)
    assert names(tmp_path) == ["small"]


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
