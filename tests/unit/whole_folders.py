"""Whole folders for tests: written, read, and lost while they are made."""

from __future__ import annotations

import errno
import tempfile

from qlora_ray.runs.whole import whole_folder

FILES = ("1", "2", "3")


def fill_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def write_folder(path, text, *, names=FILES, **settings):
    """A whole folder of files of one text."""
    with whole_folder(path, **settings) as folder:
        for name in names:
            (folder / name).write_text(text)


def read_whole(path):
    """What the files of a whole folder all hold; fails for one that is not whole."""
    contents = {file.name: file.read_text() for file in path.iterdir()}
    assert set(contents) == set(FILES) and len(set(contents.values())) == 1
    return contents["1"]


def names_in(path):
    return sorted(file.name for file in path.iterdir())


def lose_first(monkeypatch, name, lose):
    """Lets the first temporary file or folder that is made be lost before its maker goes on."""
    real = getattr(tempfile, name)

    def make_and_lose(**settings):
        monkeypatch.setattr(tempfile, name, real)
        made = real(**settings)
        lose(made)
        return made

    monkeypatch.setattr(tempfile, name, make_and_lose)
