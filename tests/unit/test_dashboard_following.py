"""Files that grow: each line once, whole lines only, and another file told from the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.dashboard.following import FileReplaced, TailedLines, WatchedFile
from qlora_ray.runs import append_line, write_text


def test_each_line_is_read_once_and_what_is_no_object_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = TailedLines(path)
    assert tail.read_new() == []
    append_line(path, {"at": 1})
    assert tail.read_new() == [{"at": 1}]
    with path.open("a") as stream:
        stream.write('{"at": 2}\nnot json\n[3]\n{"at": 4}\n')
    assert tail.read_new() == [{"at": 2}, {"at": 4}]
    assert tail.read_new() == []


def test_half_a_line_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"at": 1}\n{"wh')
    tail = TailedLines(path)
    assert tail.read_new() == [{"at": 1}]
    with path.open("a") as stream:
        stream.write('ole": true}\n')
    assert tail.read_new() == [{"whole": True}]


def test_a_line_that_a_crash_cut_off_takes_nothing_with_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"at": 1}\n{"cut')
    tail = TailedLines(path)
    tail.read_new()
    # It takes away the line that was cut off, whatever the length of its own.
    append_line(path, {"at": 2})
    assert tail.read_new() == [{"at": 2}]


@pytest.mark.parametrize("content", [None, "", '{"another": 1}\n{"file": 2}\n'])
def test_a_file_that_is_another_one_is_told(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"at": 1})
    tail = TailedLines(path)
    tail.read_new()
    # Its inode is not free for the next file as long as it has a name.
    path.rename(tmp_path / "old")
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileReplaced, match=r"events\.jsonl"):
        tail.read_new()


def test_a_file_that_is_replaced_is_noticed_once(tmp_path: Path) -> None:
    watched = WatchedFile(tmp_path / "live.json")
    assert not watched.has_changed()
    write_text(watched.path, "{}")
    assert [watched.has_changed(), watched.has_changed()] == [True, False]
    write_text(watched.path, "{}")
    assert [watched.has_changed(), watched.has_changed()] == [True, False]
    watched.path.unlink()
    assert [watched.has_changed(), watched.has_changed()] == [True, False]
