"""Folders that the version before wrote are reported, evaluated, exported and resumed.

tests/assets/version_before was written by commit 42da095 on the embedded task: `finished` with packing: process, its
bundle, and `interrupted` with packing: fused, stopped by Ctrl-C with one trial complete and two in the middle.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qlora_ray import evaluate, export, report
from qlora_ray.evaluation.target.finding import find_target
from qlora_ray.evaluation.target.target import Request
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.records import SCHEMA, Manifest, Summary, TrialRecord, read_record
from tests.e2e.sweeps import run_sweep

ASSETS = Path(__file__).parents[1] / "assets" / "version_before"
WINNER = "0001"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders, where commands run."""
    shutil.copytree(ASSETS, tmp_path / "old")
    # Of which git keeps no empty folder.
    (tmp_path / "old" / "interrupted" / "logs").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_its_records_are_read_in_todays_words(place: Path) -> None:
    for name, engine, packing in (("finished", "single", "single"), ("interrupted", "packed", "packed")):
        paths = SweepPaths(place / name)
        assert "schema" not in read_json(paths.manifest)
        manifest = read_record(paths.manifest, Manifest)
        assert manifest.setting("cluster", "packing") == packing
        assert {placement.engine for placement in manifest.plan.placements} == {engine}
        record = read_record(paths.trial("0000").record, TrialRecord)
        assert record.ran.engine == record.executor.engine == engine
        assert record.ran.quantization is not None and record.ran.quantization.method == "nf4"


def test_its_sweep_is_reported(place: Path) -> None:
    for name, words in (("finished", f"Trial {WINNER} is no different"), ("interrupted", "was interrupted")):
        assert report.main([str(place / name)]) == 0
        page = (place / name / "report.md").read_text()
        assert words in page and "could not be read" not in page and "Not everything" not in page


@pytest.mark.slow
def test_its_winner_is_evaluated(place: Path) -> None:
    assert evaluate.main(["finished", "--set", "evaluate.max_rows=2", "--to", "figures"]) == 0
    scores = read_json(Path("figures") / "evaluation.json")["scores"]
    # What the version before measured on all test rows.
    expected = read_json(place / "finished" / "best" / "scores.json")
    found = {row["model"]: row["loss"] for row in scores}
    assert found["base"] == pytest.approx(expected["base"]["loss"], rel=1e-4)
    assert found["adapter"] == pytest.approx(expected["winner"]["loss"], rel=1e-4)


def test_its_bundle_is_understood(place: Path) -> None:
    target = find_target("bundle", Request())
    assert (target.kind, target.trial, target.config.cluster.packing) == ("bundle", WINNER, "single")
    assert target.quantization is not None and target.quantization_reason == "as its record says"


def test_its_trials_are_exported(place: Path) -> None:
    assert export.main(["finished", "--merge", "none", "--to", "again"]) == 0
    before, again = (read_record(place / name / "record.json", TrialRecord) for name in ("bundle", "again"))
    assert again == before
    assert read_json(place / "again" / "record.json")["schema"] == SCHEMA
    assert read_json(place / "again" / "bundle.json")["name"] == read_json(place / "bundle" / "bundle.json")["name"]
    assert export.main(["interrupted", "--trial", "0000", "--merge", "none", "--to", "other"]) == 0


@pytest.mark.slow
def test_its_interrupted_sweep_goes_on_where_it_was(place: Path) -> None:
    paths = SweepPaths(place / "interrupted")
    untouched = paths.trial("0000").record.read_text()
    ended = run_sweep("--resume", "interrupted", cwd=place)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = read_record(paths.summary, Summary)
    assert (summary.status, summary.counts["complete"], summary.counts["interrupted"]) == ("complete", 3, 2)
    assert paths.trial("0000").record.read_text() == untouched
    records = [read_record(path, TrialRecord) for path in paths.trials.glob("*/record.json")]
    heirs = {record.resumed_from: record for record in records if record.resumed_from}
    # The reports that trial 0001 had made were not made again.
    made = read_record(paths.trial("0001").record, TrialRecord).reports
    assert len(made) == 2 and made.items() <= heirs["0001"].reports.items()
    assert heirs["0001"].ran.restarted is None
    manifest = read_record(paths.manifest, Manifest)
    assert manifest.folder == "/home/ann" and len(manifest.resumes) == 1
