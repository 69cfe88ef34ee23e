"""A folder or large file that is there is whole, whoever is killed and whoever else writes it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from qlora_ray.errors import RunError
from qlora_ray.runs.whole import restore_folder, tidy_folder, whole_file, whole_folder
from tests.unit.whole_folders import fill_disk, lose_first, names_in, read_whole, write_folder


def test_a_folder_takes_its_name_when_it_is_whole_and_replaces_an_old_one_entirely(tmp_path):
    path = tmp_path / "deep" / "adapter"
    with whole_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists() and folder.parent == path.parent
    assert (path / "a").read_text() == "1"
    assert path.stat().st_mode & 0o777 == 0o755
    write_folder(path, "new", names="b")
    assert names_in(path) == ["b"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt("boom")])
def test_an_exception_leaves_the_old_folder_and_no_temporary_one(tmp_path, error):
    path = tmp_path / "adapter"
    for is_there in (False, True):
        if is_there:
            write_folder(path, "old")
        with pytest.raises(type(error), match="boom"), whole_folder(path) as folder:
            (folder / "1").write_text("new")
            raise error
        assert list(tmp_path.iterdir()) == ([path] if is_there else [])
    assert read_whole(path) == "old"


@pytest.mark.parametrize("step", ["sync", "rename"])
def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch, step):
    path = tmp_path / "adapter"
    write_folder(path, "old")
    real_replace = Path.replace

    def replace(self, target):
        if Path(target) == path and not self.name.endswith(".old"):
            fill_disk()
        return real_replace(self, target)

    if step == "sync":
        monkeypatch.setattr(os, "fsync", fill_disk)
    else:
        monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space left on device"):
        write_folder(path, "new")
    assert read_whole(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_folder_is_taken_away_and_one_at_work_is_left_alone(tmp_path):
    (tmp_path / ".a.qlora_ray-0abc_xyz").mkdir()
    other = tmp_path / ".a.b.qlora_ray-0abc_xyz"
    other.mkdir()
    with whole_folder(tmp_path / "a") as living:
        with whole_folder(tmp_path / "a") as folder:
            (folder / "new").touch()
            assert set(tmp_path.iterdir()) == {living, folder, other}
        (living / "last").touch()
    assert names_in(tmp_path) == [other.name, "a"]
    assert names_in(tmp_path / "a") == ["last"]


def test_an_older_folder_comes_back_if_its_replacement_was_killed_halfway(tmp_path):
    path = tmp_path / "a"
    (tmp_path / ".a.qlora_ray-0abc_xyz.old").mkdir()
    (tmp_path / ".a.qlora_ray-0abc_xyz.old" / "kept").touch()
    with pytest.raises(ValueError, match="wrong"), whole_folder(path):
        raise ValueError("wrong")
    assert names_in(path) == ["kept"]
    (tmp_path / ".a.qlora_ray-1abc_xyz.old").mkdir()
    write_folder(path, "new")
    assert read_whole(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_where_there_are_no_locks_nothing_is_tidied_up(tmp_path, monkeypatch):
    left = tmp_path / ".a.qlora_ray-0abc_xyz"
    left.mkdir()

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    write_folder(tmp_path / "a", "new")
    assert left.is_dir() and read_whole(tmp_path / "a") == "new"


def test_of_two_that_write_one_folder_the_second_is_refused_where_it_says_so(tmp_path):
    path = tmp_path / "a"
    (tmp_path / ".a.qlora_ray-0abc_xyz").mkdir()
    with (
        whole_folder(path, taken="a: taken") as folder,
        pytest.raises(RunError, match=r"^a: taken$"),
        whole_folder(path, taken="a: taken"),
    ):
        pass
    assert list(tmp_path.iterdir()) == [path] and not folder.exists()


def test_of_two_that_begin_at_once_never_both_go_on(tmp_path, monkeypatch):
    path = tmp_path / "a"
    others = contextlib.ExitStack()
    # Between the first look and the hold of one's own folder, another one begins.
    lose_first(monkeypatch, "mkdtemp", lambda made: others.enter_context(whole_folder(path)))
    with others, pytest.raises(RunError, match="taken"), whole_folder(path, taken="taken"):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_tidied_up_before_it_was_held_is_made_again(tmp_path, monkeypatch):
    lose_first(monkeypatch, "mkdtemp", os.rmdir)
    write_folder(tmp_path / "a", "new")
    assert read_whole(tmp_path / "a") == "new"


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.zip"
    for content in (b"1", b"2"):
        with whole_file(path) as stream:
            stream.write(content)
    with pytest.raises(ValueError, match="boom"), whole_file(path) as stream:
        stream.write(b"3")
        raise ValueError("boom")
    assert path.read_bytes() == b"2" and path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_file_is_taken_away_and_nothing_else(tmp_path):
    kept = [tmp_path / ".a.zip.qlora_ray-0abcdxyz", tmp_path / ".b.defaults", tmp_path / ".a.defaults"]
    kept[0].mkdir()
    for path in kept[1:]:
        path.touch()
    (tmp_path / ".a.zip.qlora_ray-0abc_xyz").touch()
    with whole_file(tmp_path / "a.zip") as living:
        with whole_file(tmp_path / "a.zip"):
            pass
        living.write(b"last")
    # A user's own file with such a name beside a folder.
    with whole_folder(tmp_path / "b"):
        pass
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "a.zip", tmp_path / "b"}
    assert (tmp_path / "a.zip").read_bytes() == b"last"


def test_a_folder_is_tidied_of_all_that_killed_writers_left_in_it(tmp_path):
    with whole_file(tmp_path / "living") as living:
        (tmp_path / ".record.json.qlora_ray-a1b2c3d4").touch()
        (tmp_path / ".state.qlora_ray-a1b2c3d4").mkdir()
        # Killed between two renames: the older one comes back.
        write_folder(tmp_path / ".adapter.qlora_ray-a1b2c3d4.old", "old")
        (tmp_path / ".adapter.qlora_ray-turn").touch()
        write_folder(tmp_path / ".best.qlora_ray-a1b2c3d4.old.gone", "old")
        (tmp_path / ".defaults").touch()
        tidy_folder(tmp_path)
        living.write(b"new")
    assert names_in(tmp_path) == [".defaults", "adapter", "living"]
    assert read_whole(tmp_path / "adapter") == "old"


def test_a_users_own_hidden_folders_and_files_beside_ours_are_left_alone(tmp_path):
    mine = [tmp_path / ".model.original" / "weights", tmp_path / ".a.zip.previous", tmp_path / ".model.original.old"]
    mine[0].parent.mkdir()
    for path in mine:
        path.touch()
    with whole_folder(tmp_path / "model"):
        pass
    with whole_file(tmp_path / "a.zip"):
        pass
    restore_folder(tmp_path / "model")
    assert all(path.is_file() for path in mine)


def test_an_older_folder_that_was_being_taken_away_never_comes_back(tmp_path):
    half = tmp_path / ".a.qlora_ray-0abc_xyz.old.gone"
    half.mkdir()
    (half / "half").touch()
    for path in (tmp_path / "a", tmp_path / "a", tmp_path / "missing" / "a"):  # there may be nothing to restore
        restore_folder(path)
        assert list(tmp_path.iterdir()) == []


def test_an_older_folder_that_cannot_be_taken_away_is_left_to_the_next_one(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_folder(path, "old")

    def refuse(*args, **settings):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        write_folder(path, "new")
    assert read_whole(path) == "new" and len(list(tmp_path.iterdir())) == 2
    restore_folder(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path = tmp_path / "a"
    synced = set()
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        real_fsync(descriptor)

    def replace(self, target):
        if Path(target) == path:
            assert {file.stat().st_ino for file in (self, *self.rglob("*"))} <= synced
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    with whole_folder(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("1")
        (folder / "file").write_text("2")
    assert path.parent.stat().st_ino in synced


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "a").symlink_to("elsewhere")
    write_folder(tmp_path / "a", "new")
    assert (tmp_path / "elsewhere" / "mine").is_file() and not (tmp_path / "a").is_symlink()
    assert names_in(tmp_path) == ["a", "elsewhere"]


def test_a_file_that_was_tidied_up_before_it_was_held_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"

    def write_another(made):
        with whole_file(path) as stream:
            stream.write(b"other's")
        assert not Path(made[1]).exists()

    lose_first(monkeypatch, "mkstemp", write_another)
    with whole_file(path) as stream:
        stream.write(b"own")
    assert path.read_bytes() == b"own" and list(tmp_path.iterdir()) == [path]


def test_a_file_in_a_missing_place_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"), whole_file(tmp_path / "gone" / "a.zip"):
        pass
