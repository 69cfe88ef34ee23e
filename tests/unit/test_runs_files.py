"""A file that is there is whole, whatever happens while it is written."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import tempfile
from pathlib import Path

import pytest

from qlora_ray.errors import RunError
from qlora_ray.runs.files import (
    append_line,
    read_json,
    read_lines,
    to_plain_json,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)


def fill_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_text_is_written_under_its_name_alone_and_readable_by_others(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", fill_disk)
    with pytest.raises(RunError, match=r"a\.json: cannot be written: No space left on device\. Free some space"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_on_a_full_disk_is_not_there_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fill_disk)
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "a.txt", "half")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_a_missing_folder_cannot_be_written(tmp_path):
    with pytest.raises(RunError, match=r"gone/a.txt: cannot be written: No such file or directory"):
        write_text(tmp_path / "gone" / "a.txt", "x")


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"nan": math.nan, "list": [math.inf, -math.inf, 1.5]})
    strict = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert strict == {"nan": None, "list": [None, None, 1.5]}


def test_plain_json_has_only_what_json_has():
    data = {1: Path("a/b"), "t": (1, {2}), "n": None, "b": True, "deep": {"x": [math.nan]}}
    assert to_plain_json(data) == {"1": "a/b", "t": [1, [2]], "n": None, "b": True, "deep": {"x": [None]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"{half", "cannot be read: Expecting property name"), (b"\xff", "cannot be read")],
)
def test_json_that_cannot_be_read_is_a_run_error(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=rf"a\.json: {message}"):
        read_json(path)


def test_lines_are_read_as_they_were_appended(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"n": 1}, {"text": "two\nlines \u2028 and a separator"}, {"nan": math.nan}]
    for row in rows:
        append_line(path, row)
    assert read_lines(path) == [*rows[:2], {"nan": None}]
    assert len(path.read_bytes().splitlines()) == 3


def test_a_line_is_one_write_so_that_no_reader_sees_half_of_it(tmp_path, monkeypatch):
    written = []
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(data) or real_write(handle, data))
    append_line(tmp_path / "a.jsonl", {"n": 1, "text": "x" * 100_000})
    assert len(written) == 1 and written[0].endswith(b"\n")


def test_a_last_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n": 3, "te')
    assert read_lines(path) == [{"n": 1}, {"n": 2}]


def test_a_line_cut_off_by_a_crash_does_not_swallow_those_that_follow(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2, "te')
    append_line(path, {"n": 3})
    append_line(path, {"n": 4})
    assert read_lines(path) == [{"n": 1}, {"n": 3}, {"n": 4}]


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "a.jsonl") == []


def test_a_line_on_a_full_disk_is_a_run_error(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_line(path, {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fill_disk)
        with pytest.raises(RunError, match=r"a\.jsonl: cannot be written: No space left on device"):
            append_line(path, {"n": 2})
    assert read_lines(path) == [{"n": 1}]


def test_a_line_that_fits_only_in_part_is_a_run_error_and_is_never_read(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real_write(handle, data[:5]))
        with pytest.raises(RunError, match="cannot be written: No space left on device"):
            append_line(path, {"n": 1})
    append_line(path, {"n": 2})
    assert read_lines(path) == [{"n": 2}]


def test_a_line_that_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        append_line(tmp_path / "a.jsonl", {"n": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "adapter"
    with whole_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists() and folder.parent == path.parent
    assert (path / "a").read_text() == "1"
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path]


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path):
    path = tmp_path / "adapter"
    for name in ("a", "b"):
        with whole_folder(path) as folder:
            (folder / name).write_text(name)
    assert [file.name for file in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt("boom")])
def test_an_exception_leaves_the_old_folder_and_no_temporary_one(tmp_path, error):
    path = tmp_path / "adapter"
    with whole_folder(path) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(type(error), match="boom"), whole_folder(path) as folder:
        (folder / "a").write_text("2")
        raise error
    assert (path / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_in_a_first_folder_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="boom"), whole_folder(tmp_path / "adapter"):
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "adapter"
    with whole_folder(path) as folder:
        (folder / "a").write_text("1")
    real_replace = Path.replace

    def replace(self, target):
        if Path(target) == path and not self.name.endswith(".old"):
            fill_disk()
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space left on device"), whole_folder(path):
        pass
    assert (path / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_folder_is_taken_away_and_one_at_work_is_left_alone(tmp_path):
    (tmp_path / ".a.0abc_xyz").mkdir()
    other = tmp_path / ".a.b.0abc_xyz"
    other.mkdir()
    with whole_folder(tmp_path / "a") as living:
        with whole_folder(tmp_path / "a") as folder:
            (folder / "new").touch()
            assert set(tmp_path.iterdir()) == {living, folder, other}
        (living / "last").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["last"]


def test_an_older_folder_comes_back_if_its_replacement_was_killed_halfway(tmp_path):
    path = tmp_path / "a"
    (tmp_path / ".a.0abc_xyz.old").mkdir()
    (tmp_path / ".a.0abc_xyz.old" / "kept").touch()
    with pytest.raises(ValueError, match="wrong"), whole_folder(path):
        raise ValueError("wrong")
    assert [one.name for one in path.iterdir()] == ["kept"]
    (tmp_path / ".a.1abc_xyz.old").mkdir()
    with whole_folder(path) as folder:
        (folder / "new").touch()
    assert [one.name for one in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_where_there_are_no_locks_nothing_is_tidied_up(tmp_path, monkeypatch):
    left = tmp_path / ".a.0abc_xyz"
    left.mkdir()

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("qlora_ray.runs.files.fcntl.flock", no_locks)
    with whole_folder(tmp_path / "a") as folder:
        (folder / "new").touch()
    assert left.is_dir()
    assert (tmp_path / "a" / "new").is_file()


def test_of_two_that_write_one_folder_the_second_is_refused_where_it_says_so(tmp_path):
    path = tmp_path / "a"
    (tmp_path / ".a.0abc_xyz").mkdir()
    with (
        whole_folder(path, taken="a: taken") as folder,
        pytest.raises(RunError, match=r"^a: taken$"),
        whole_folder(path, taken="a: taken"),
    ):
        pass
    assert list(tmp_path.iterdir()) == [path] and not folder.exists()


def test_of_two_that_begin_at_once_never_both_go_on(tmp_path, monkeypatch):
    path = tmp_path / "a"
    real_mkdtemp = tempfile.mkdtemp
    others = contextlib.ExitStack()

    def make_after_another(**settings):
        # Between the first look and the folder of one's own, another one begins.
        monkeypatch.setattr(tempfile, "mkdtemp", real_mkdtemp)
        others.enter_context(whole_folder(path))
        return real_mkdtemp(**settings)

    monkeypatch.setattr(tempfile, "mkdtemp", make_after_another)
    with others, pytest.raises(RunError, match="taken"), whole_folder(path, taken="taken"):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_tidied_up_before_it_was_held_is_made_again(tmp_path, monkeypatch):
    real_mkdtemp = tempfile.mkdtemp

    def make_and_lose(**settings):
        monkeypatch.setattr(tempfile, "mkdtemp", real_mkdtemp)
        lost = real_mkdtemp(**settings)
        Path(lost).rmdir()
        return lost

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_lose)
    with whole_folder(tmp_path / "a") as folder:
        (folder / "b").touch()
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["b"]


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
    kept = [tmp_path / ".a.zip.0abcdxyz", tmp_path / ".b.defaults", tmp_path / ".a.defaults"]
    kept[0].mkdir()
    for path in kept[1:]:
        path.touch()
    (tmp_path / ".a.zip.0abc_xyz").touch()
    with whole_file(tmp_path / "a.zip") as living:
        with whole_file(tmp_path / "a.zip"):
            pass
        living.write(b"last")
    # A user's own file with such a name beside a folder.
    with whole_folder(tmp_path / "b"):
        pass
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "a.zip", tmp_path / "b"}
    assert (tmp_path / "a.zip").read_bytes() == b"last"
