"""Files may be read by whom the umask lets, whoever made them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlora_ray.runs import modes
from qlora_ray.runs.files import write_text
from qlora_ray.runs.whole import whole_file, whole_folder


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=["usual", "group", "private"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The process's umask in the test."""
    before = os.umask(request.param)
    modes._umask.cache_clear()
    yield request.param
    os.umask(before)
    modes._umask.cache_clear()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_written_has_the_modes_of_what_open_and_mkdir_make(tmp_path: Path, umask: int) -> None:
    (tmp_path / "plain").write_text("as any program writes")
    (tmp_path / "folder").mkdir()
    with whole_folder(tmp_path / "whole") as folder:
        save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
        (folder / "deeper").mkdir()
        write_text(folder / "deeper" / "b.json", "{}")
    with whole_file(tmp_path / "file") as stream:
        stream.write(b"1")
    folders = [tmp_path / "whole", tmp_path / "whole" / "deeper"]
    files = [tmp_path / "file", tmp_path / "whole" / "a.safetensors", tmp_path / "whole" / "deeper" / "b.json"]
    assert {mode_of(path) for path in folders} == {mode_of(tmp_path / "folder")} == {0o777 & ~umask}
    assert {mode_of(path) for path in files} == {mode_of(tmp_path / "plain")} == {0o666 & ~umask}


def test_without_proc_the_umask_is_asked_for_and_stays(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "STATUS", tmp_path / "none")
    assert modes._umask() == umask
    now = os.umask(umask)
    assert now == umask
