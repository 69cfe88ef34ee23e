"""What a bundle says of itself, and what it may be written over."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from qlora_ray.errors import RunError
from qlora_ray.exporting import inventory
from qlora_ray.exporting.inventory import check_target, is_bundle, read_bundle
from tests.exporting_fixtures import write_alone, write_sweep


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "s")


def test_a_file_or_a_link_is_no_target(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for name in ("file", "link"):
        with pytest.raises(RunError, match=f"must be a folder, got a {name}"):
            check_target(tmp_path / name, sweep=sweep)


def test_the_folder_that_the_command_runs_in_is_no_target(sweep, tmp_path, monkeypatch):
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deeper")
    for to in (tmp_path / "here", tmp_path / "here" / "deeper", Path()):
        with pytest.raises(RunError, match="got the folder this command runs"):
            check_target(to, sweep=sweep)


def test_a_mounted_disk_is_no_target(sweep, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    with pytest.raises(RunError, match=r"--to \S+disk: .*got a mounted disk"):
        check_target(tmp_path / "disk", sweep=sweep)


def test_a_bundle_is_read_again_and_held_against_its_inventory(sweep, tmp_path):
    written = write_alone(sweep, tmp_path / "b")
    assert read_bundle(tmp_path / "b").inventory == written.inventory
    assert is_bundle(tmp_path / "b") and not is_bundle(sweep) and read_bundle(sweep) is None
    readme = tmp_path / "b" / "README.md"
    for changed in (readme.read_text().replace("LoRA", "lora"), "shorter"):
        readme.write_text(changed)
        with pytest.raises(RunError, match=r"must be whole, got another or no README\.md"):
            read_bundle(tmp_path / "b")


def test_an_inventory_that_points_out_of_its_folder_is_not_followed(sweep, tmp_path):
    folder = write_alone(sweep, tmp_path / "b").folder
    (tmp_path / "secret").write_text("x")
    written = json.loads((folder / "bundle.json").read_text())
    written["files"].append({"path": "../secret", "bytes": 1, "sha256": ""})
    (folder / "bundle.json").write_text(json.dumps(written))
    with pytest.raises(RunError, match=r"must be whole, .*\.\./secret"):
        read_bundle(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bundle_version": 1}', '{"files": []}'])
def test_another_bundle_json_is_not_ours(sweep, tmp_path, content):
    to = tmp_path / "web"
    to.mkdir()
    (to / "bundle.json").write_text(content)
    assert not is_bundle(to)
    with pytest.raises(RunError, match=r"got one with bundle\.json"):
        check_target(to, sweep=sweep)


FILE = {"path": "a", "bytes": 1, "sha256": "x"}


@pytest.mark.parametrize(
    "file", ["a", None, {}, {"path": "a"}, FILE | {"bytes": "1"}, FILE | {"sha256": None}, FILE | {"path": 1}]
)
def test_a_damaged_bundle_json_is_not_ours(sweep, tmp_path, file):
    to = tmp_path / "bad"
    to.mkdir()
    found = {"bundle_version": 1, "name": "n", "files": [FILE, FILE]}
    (to / "bundle.json").write_text(json.dumps(found))
    assert is_bundle(to)
    (to / "bundle.json").write_text(json.dumps(found | {"files": [FILE, file]}))
    assert read_bundle(to) is None
    with pytest.raises(RunError, match=r"--to \S+bad: .*got one with bundle"):
        check_target(to, sweep=sweep)


def test_a_file_of_a_bundle_that_may_not_be_read_is_one_message(sweep, tmp_path, monkeypatch):
    folder = write_alone(sweep, tmp_path / "b").folder

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(inventory, "hash_file", refuse)
    with pytest.raises(RunError, match=r"\S+b: cannot be looked into: \S+README\.md: Permission denied"):
        read_bundle(folder)


def test_a_folder_that_may_not_be_listed_is_not_an_empty_one(sweep, tmp_path, monkeypatch):
    (tmp_path / "b" / "private").mkdir(parents=True)
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RunError, match=r"--to \S+b: cannot be looked into: \S+private: Permission denied"):
        check_target(tmp_path / "b", sweep=sweep)


def test_a_path_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must be a path in UTF-8"):
        check_target(tmp_path / "b\udcff", sweep=tmp_path / "sweep")
