"""What the report knows of bundles that lie beside the sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qlora_ray.reporting.evaluations import tell_merges
from qlora_ray.reporting.merges import read_exported_merges
from qlora_ray.reporting.story import read_story
from qlora_ray.runs import SweepPaths, append_line, write_json
from qlora_ray.runs.score_records import MergeRecord


@pytest.fixture
def bare(tmp_path: Path) -> SweepPaths:
    """A folder without anything."""
    (tmp_path / "s").mkdir()
    return SweepPaths(tmp_path / "s")


def note(paths: SweepPaths, to: Path, *, rule: str | None, trial: str = "0003", time: str = "2026-11-21") -> None:
    """A line as export writes it."""
    merge = None if rule is None else {"rule": rule, "reason": "closer", "models": []}
    append_line(paths.exports, {"time": time, "trial": trial, "to": str(to), "name": "n", "merge": merge})


def test_a_merge_beside_the_sweep_is_in_its_report_although_it_was_moved(paths: SweepPaths, tmp_path: Path) -> None:
    note(paths, tmp_path / "out" / "bundle", rule="dequant")
    story = read_story(paths)
    assert story.merges == {
        "bundle/merged, of trial 0003": MergeRecord(rule="dequant", reason="closer"),
    }
    section = tell_merges(story)
    assert section is not None and "kept dequant" in str(section.blocks[0])
    # A report goes into bundles and to others.
    assert str(tmp_path) not in str(section)


def test_only_the_last_export_to_a_folder_counts_and_folders_of_one_name_are_told_apart(bare: SweepPaths) -> None:
    assert read_exported_merges(bare) == {}
    note(bare, Path("/x/a"), rule="w16")
    note(bare, Path("/x/b"), rule="w16", trial="0004")
    note(bare, Path("/x/a"), rule="dequant")
    note(bare, Path("/x/b"), rule=None)
    assert {name: report["rule"] for name, report in read_exported_merges(bare).items()} == {
        "a/merged, of trial 0003": "dequant"
    }
    note(bare, Path("/y/a"), rule="w16", time="2026-11-22")
    assert list(read_exported_merges(bare)) == ["a/merged, of trial 0003", "a/merged, of trial 0003, 2026-11-22"]
    # In the order of the last exports.
    note(bare, Path("/x/a"), rule="dequant", time="2026-11-23")
    assert list(read_exported_merges(bare)) == ["a/merged, of trial 0003", "a/merged, of trial 0003, 2026-11-23"]


def test_a_bundle_in_the_sweeps_own_folder_is_shown_once_wherever_the_sweep_is(
    paths: SweepPaths, tmp_path: Path
) -> None:
    (paths.root / "bundle" / "merged").mkdir(parents=True)
    note(paths, paths.root / "bundle", rule="dequant")
    report = {"rule": "dequant", "reason": "closer", "models": []}
    write_json(paths.root / "bundle" / "merged" / "merge_report.json", report)
    moved = SweepPaths(shutil.copytree(paths.root, tmp_path / "moved"))
    assert list(read_story(paths).merges) == ["bundle/merged"]
    shutil.rmtree(paths.root)
    assert list(read_story(moved).merges) == ["bundle/merged"]
    # One elsewhere that is called the same is another.
    note(moved, tmp_path / "bundle", rule="w16")
    assert list(read_story(moved).merges) == ["bundle/merged", "bundle/merged, of trial 0003"]


def test_a_bundle_deep_in_the_sweeps_own_folder_is_shown_too(paths: SweepPaths) -> None:
    note(paths, paths.root / "exports" / "one", rule="dequant")
    assert list(read_story(paths).merges) == ["one/merged, of trial 0003"]


def test_lines_of_another_kind_are_passed_over(bare: SweepPaths) -> None:
    bare.exports.write_text('[1]\n{"to": 3}\n{"to": "/x/a", "merge": "w16"}\n{"to": "/x/a", "mer', encoding="utf-8")
    assert read_exported_merges(bare) == {}


def test_a_bundle_whose_path_none_can_have_is_passed_over(bare: SweepPaths) -> None:
    append_line(bare.exports, {"to": "/x/a\0b", "merge": {"kind": "w16"}})
    (bare.root / "loop").symlink_to("loop")
    append_line(bare.exports, {"to": str(bare.root / "loop" / "b"), "merge": {}})
    assert read_exported_merges(bare) == {}
