"""Whose sweep a folder is: a mark that only the user's own key makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ray.config import SweepConfig
from qlora_ray.runs.ownership import is_own, key_path, sign
from qlora_ray.runs.record_parts import BaseRecord
from qlora_ray.runs.records import Manifest, read_record, write_record


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def make_manifest() -> Manifest:
    return Manifest(config=SweepConfig().model_dump(), folder="/home/ann", base=BaseRecord(name="b", hash="sha256:b"))


def test_a_users_own_manifest_is_known_from_its_file_wherever_it_lies(state: Path, tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        write_record(tmp_path / place / "manifest.json", sign(make_manifest()))
        assert is_own(read_record(tmp_path / place / "manifest.json", Manifest))
    assert key_path().stat().st_mode & 0o077 == 0
    assert [path.name for path in key_path().parent.iterdir()] == ["owner_key"]


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {**SweepConfig().model_dump(), "cluster": {"address": "elsewhere:6379"}}},
        {"folder": "/home/eve"},
        {"base": BaseRecord(name="b", hash="sha256:other")},
        {"owner_mark": None},
        {"owner_mark": "not a märk"},
    ],
)
def test_a_manifest_that_somebody_changed_is_a_strangers(state: Path, changed: dict) -> None:
    own = sign(make_manifest())
    assert is_own(own) and not is_own(replace(own, **changed))
    # What a run writes anew is no part of the mark.
    assert is_own(replace(own, command=("sweep",)))


def test_another_users_manifest_is_a_strangers(state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = sign(make_manifest())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert not is_own(own)
    # Looking makes no key.
    assert not key_path().exists()


def test_without_a_place_for_a_key_nothing_is_marked_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert sign(make_manifest()).owner_mark is None
    assert not is_own(make_manifest())
