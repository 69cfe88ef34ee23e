"""What the report knows of bundles that lie beside the sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_ray.reporting.evaluations import tell_merges
from qlora_ray.reporting.exports import read_merges
from qlora_ray.reporting.story import read_story
from qlora_ray.runs import SweepPaths, append_line, write_json
from tests.unit.reporting_sweeps import usual_sketches, write_sweep


def note(paths: SweepPaths, to: Path, *, rule: str | None, trial: str = "0003", time: str = "2026-11-21") -> None:
    """A line as export writes it."""
    merge = None if rule is None else {"rule": rule, "reason": "closer", "models": []}
    append_line(paths.exports, {"time": time, "trial": trial, "to": str(to), "name": "n", "merge": merge})


def test_a_merge_beside_the_sweep_is_in_its_report_even_when_the_bundle_was_moved(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    note(paths, tmp_path / "out" / "bundle", rule="dequant")
    story = read_story(paths)
    assert story.merges == {
        "bundle/merged, of trial 0003": {"rule": "dequant", "reason": "closer", "models": []},
    }
    section = tell_merges(story)
    assert section is not None and "bundle/merged, of trial 0003: kept dequant. closer" in str(section.blocks[0])
    # A report goes into bundles and to others.
    assert str(tmp_path) not in str(section)


def test_only_the_last_export_to_a_folder_counts(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "s")
    paths.root.mkdir()
    assert read_merges(paths) == {}
    note(paths, tmp_path / "a", rule="w16")
    note(paths, tmp_path / "b", rule="w16", trial="0004")
    note(paths, tmp_path / "a", rule="dequant")
    note(paths, tmp_path / "b", rule=None)
    assert {name: report["rule"] for name, report in read_merges(paths).items()} == {
        "a/merged, of trial 0003": "dequant"
    }


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "s")
    paths.root.mkdir()
    note(paths, tmp_path / "x" / "a", rule="w16", time="2026-11-20")
    note(paths, tmp_path / "y" / "a", rule="dequant", time="2026-11-21")
    assert list(read_merges(paths)) == ["a/merged, of trial 0003", "a/merged, of trial 0003, 2026-11-21"]


def test_a_bundle_in_the_sweeps_own_folder_is_shown_once(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    (paths.root / "bundle" / "merged").mkdir(parents=True)
    write_json(paths.root / "bundle" / "merged" / "merge_report.json", {"rule": "dequant"})
    note(paths, paths.root / "bundle", rule="dequant")
    assert list(read_story(paths).merges) == ["bundle/merged"]


def test_a_bundle_in_a_sweep_that_was_moved_or_copied_is_shown_once(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    (paths.root / "bundle" / "merged").mkdir(parents=True)
    note(paths, paths.root / "bundle", rule="dequant")
    report = {"rule": "dequant", "reason": "closer", "models": []}
    write_json(paths.root / "bundle" / "merged" / "merge_report.json", report)
    shutil.copytree(paths.root, tmp_path / "copied")
    paths.root.rename(tmp_path / "moved")
    for name in ("copied", "moved"):
        assert list(read_story(SweepPaths(tmp_path / name)).merges) == ["bundle/merged"]
    # One elsewhere that is called the same is another.
    note(SweepPaths(tmp_path / "moved"), tmp_path / "bundle", rule="w16")
    merges = read_story(SweepPaths(tmp_path / "moved")).merges
    assert list(merges) == ["bundle/merged", "bundle/merged, of trial 0003"]


def test_a_bundle_deep_in_the_sweeps_own_folder_is_shown_too(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches(), winner=3)
    note(paths, paths.root / "exports" / "one", rule="dequant")
    assert list(read_story(paths).merges) == ["one/merged, of trial 0003"]


def test_lines_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "s")
    paths.root.mkdir()
    paths.exports.write_text('[1]\n{"to": 3}\n{"to": "/x/a", "merge": "w16"}\n{"to": "/x/a", "mer', encoding="utf-8")
    assert read_merges(paths) == {}
