"""What kind of folder one is, by its files."""

from __future__ import annotations

import json
from pathlib import Path

from qlora_ray.evaluation.target.folders import (
    describe_folder,
    find_bundle_of,
    find_trial_of,
    read_manifest,
    read_record,
)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_a_manifest_is_a_sweeps_if_it_has_a_config(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    for foreign in ({"short_name": "an app"}, [1], {"config": "x"}):
        write(tmp_path / "manifest.json", foreign)
        assert read_manifest(tmp_path) is None
    write(tmp_path / "manifest.json", {"config": {}})
    assert read_manifest(tmp_path) == {"config": {}}


def test_folders_of_trials_are_known_by_their_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "x"
    for name in ("best", "trials/0005"):
        (sweep / name).mkdir(parents=True)
        assert find_trial_of(sweep / name) is None
    write(sweep / "manifest.json", {"config": {}})
    assert find_trial_of(sweep / "best") == (sweep.resolve(), "best")
    assert find_trial_of(sweep / "trials" / "0005") == (sweep.resolve(), "0005")
    assert find_trial_of(sweep) is None
    assert find_trial_of(sweep / "trials") is None


def test_parts_of_a_bundle_are_known_by_its_files(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "adapter" / "adapter_config.json", {})
    assert find_bundle_of(tmp_path / "mine" / "merged") is None
    write(tmp_path / "mine" / "bundle.json", {})
    assert find_bundle_of(tmp_path / "mine" / "merged") == (tmp_path / "mine").resolve()
    assert find_bundle_of(tmp_path / "mine") is None


def test_the_first_record_counts(tmp_path: Path) -> None:
    write(tmp_path / "b" / "record.json", {"trial": "0002"})
    assert read_record(tmp_path / "a", tmp_path / "b") == {"trial": "0002"}
    write(tmp_path / "a" / "record.json", {"trial": "0001"})
    assert read_record(tmp_path / "a", tmp_path / "b") == {"trial": "0001"}
    assert read_record(tmp_path / "c") is None


def test_a_folder_is_described_by_its_first_files(tmp_path: Path) -> None:
    assert describe_folder(tmp_path / "gone") == "no such folder"
    assert describe_folder(tmp_path) == "an empty folder"
    for number in range(7):
        write(tmp_path / f"{number}.json", {})
    assert describe_folder(tmp_path) == "a folder with 0.json, 1.json, 2.json, 3.json, 4.json and 2 more"
    assert describe_folder(tmp_path / "0.json") == "a file"
