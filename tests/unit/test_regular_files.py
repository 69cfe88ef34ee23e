"""Files of strangers: pipes and devices are never opened, and JSON that no reader can hold is an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_ray.errors import RunError
from qlora_ray.regular_files import find_irregular, load_json, open_regular, parse_json, read_bytes, resolve_path
from qlora_ray.runs.files import read_json, read_lines
from qlora_ray.runs.inventory import hash_file
from qlora_ray.runs.locks import held_if_free, is_locked, locked_file
from qlora_ray.runs.paths import SweepPaths


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("read", [read_bytes, open_regular, load_json, hash_file])
def test_a_pipe_is_never_opened(pipe: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match="a pipe, not a regular file"):
        read(pipe)


def test_a_link_to_a_device_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="a device, not a regular"):
        read_bytes(tmp_path / "link")
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def test_records_and_lines_that_are_a_pipe_are_one_line_and_none(pipe: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be read: .* a pipe, not"):
        read_json(pipe)
    assert read_lines(pipe) == []


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a": ' + b"9" * 6000 + b"}", b"\xff{}", "{}".encode("utf-16"), b"", b"{"]
)
def test_json_that_cannot_be_read_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


def test_a_mark_of_utf8_is_no_part_of_the_json() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_half_characters_become_what_utf8_can_hold_and_pairs_stay() -> None:
    found = parse_json(b'{"\\ud800": ["a\\udfff", "\\ud83d\\ude00", 5]}')
    assert found == {"?": ["a?", "\U0001f600", 5]}
    assert str(found).encode()


def test_lines_that_are_no_objects_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b'[1]\n5\nnull\n"x"\n' + b"[" * 100_000 + b'\n\xff\n{"a": 1}\n')
    assert read_lines(tmp_path / "lines") == [{"a": 1}]


def test_a_folder_with_a_pipe_is_told_before_a_library_opens_it(pipe: Path) -> None:
    assert find_irregular(pipe.parent) == "a pipe in pipe"
    pipe.unlink()
    (pipe.parent / "loop").symlink_to("loop")
    (pipe.parent / "file").write_text("x")
    assert find_irregular(pipe.parent) is None


def test_a_path_in_a_circle_is_resolved_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert resolve_path(tmp_path / "loop").name == "loop"


def test_locks_that_are_a_pipe_are_neither_waited_for_nor_held(pipe: Path) -> None:
    assert not is_locked(pipe)
    with held_if_free(pipe) as is_held:
        assert is_held in (True, None)
    with pytest.raises(OSError, match="a pipe, not a regular"), locked_file(pipe, waits=True):
        pass
    pipe.rename(pipe.parent / ".lock")
    with pytest.raises(RunError, match="a pipe, not a regular file"), SweepPaths(pipe.parent).lock():
        pass
