"""A file that is there is whole, whatever happens while it is written."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from qlora_ray.errors import RunError
from qlora_ray.runs.files import append_line, mend_lines, read_json, read_lines, to_plain_json, write_json, write_text
from qlora_ray.runs.locks import is_locked

REAL_WRITE = os.write


def fill_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_text_is_written_under_its_name_alone_and_readable_by_others(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, {"a": 1}])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, old):
    path = tmp_path / "a.json"
    if old:
        write_json(path, old)
    monkeypatch.setattr(os, "fsync", fill_disk)
    with pytest.raises(RunError, match=r"a\.json: cannot be written: No space left on device\. Free"):
        write_json(path, {"a": 2})
    assert [read_json(file) for file in tmp_path.iterdir()] == ([old] if old else [])


def test_a_file_in_a_missing_folder_cannot_be_written(tmp_path):
    with pytest.raises(RunError, match=r"gone/a.txt: cannot be written: No such file"):
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
    monkeypatch.setattr(os, "write", lambda handle, data: written.append(data) or REAL_WRITE(handle, data))
    append_line(tmp_path / "a.jsonl", {"n": 1, "text": "x" * 100_000})
    assert len(written) == 1 and written[0].endswith(b"\n")


def test_a_line_cut_off_by_a_crash_is_left_out_and_swallows_none_that_follows(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_lines(path) == []
    path.write_text('{"n": 1}\n{"n": 2, "te')
    assert read_lines(path) == [{"n": 1}]
    append_line(path, {"n": 3})
    append_line(path, {"n": 4})
    assert read_lines(path) == [{"n": 1}, {"n": 3}, {"n": 4}]


def test_a_line_torn_at_any_byte_leaves_whole_lines_and_the_next_one_follows(tmp_path):
    path = tmp_path / "a.jsonl"
    append_line(path, {"n": 1})
    first = path.read_bytes()
    append_line(path, {"n": 2, "text": "größer"})
    whole = path.read_bytes()
    for size in range(len(first), len(whole) + 1):
        is_there = size >= len(whole) - 1
        path.write_bytes(whole[:size])
        mend_lines(path)
        assert path.read_bytes() == (whole if is_there else first)
        path.write_bytes(whole[:size])
        append_line(path, {"n": 3})
        assert path.read_bytes() == (whole if is_there else first) + b'{"n": 3}\n'
    mend_lines(tmp_path / "none")


def test_nobody_else_appends_while_a_torn_line_is_taken_away(tmp_path, monkeypatch):
    path, truncate, seen = tmp_path / "a.jsonl", os.ftruncate, []
    path.write_text('{"n": 1}\n{"n": 2, "te')
    monkeypatch.setattr(os, "ftruncate", lambda *place: (seen.append(is_locked(path)), truncate(*place))[1])
    append_line(path, {"n": 3})
    assert (seen, is_locked(path)) == ([True], False)


@pytest.mark.parametrize("write", [fill_disk, lambda handle, data: REAL_WRITE(handle, data[:5])], ids=["full", "part"])
def test_a_line_that_does_not_fit_is_a_run_error_and_is_never_read(tmp_path, monkeypatch, write):
    path = tmp_path / "a.jsonl"
    append_line(path, {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(RunError, match=r"a\.jsonl: cannot be written: No space left on device"):
            append_line(path, {"n": 2})
    assert path.read_bytes() == b'{"n": 1}\n'
    append_line(path, {"n": 3})
    assert read_lines(path) == [{"n": 1}, {"n": 3}]


def test_a_line_that_json_cannot_hold_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        append_line(tmp_path / "a.jsonl", {"n": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json_is_refused_by_its_name_and_left_out_of_lines(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"a\.json: cannot be read"):
        read_json(path)
    path.write_bytes(b'{"row": 1}\n' + content + b'\n{"row": 2}\n')
    assert read_lines(path) == [{"row": 1}, {"row": 2}]
