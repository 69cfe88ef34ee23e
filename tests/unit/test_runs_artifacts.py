"""artifacts.json names each file that was made, as it is, and nothing that changes afterwards."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from qlora_ray.errors import RunError
from qlora_ray.evaluation.answers.page import export_answers
from qlora_ray.reporting.writing import write_reports
from qlora_ray.runs import append_line, write_json
from qlora_ray.runs import artifacts as module
from qlora_ray.runs.artifacts import write_evaluation_artifacts, write_sweep_artifacts
from tests.sweep_folder import usual_sketches, write_sweep


def read_files(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "artifacts.json").read_text())
    assert found["schema"] == 1
    return {file["path"]: file for file in found["files"]}


def list_made(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def check_hashes(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for path, file in files.items():
        content = (folder / path).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def write_evaluation(folder: Path) -> None:
    line = {"id": "a", "prompt": "p", "answer": "x", "reference": None, "num_tokens": 3, "finish": "stop"}
    append_line(folder / "base" / "red_team.jsonl", line)
    append_line(folder / "base" / "0-shot.losses.jsonl", {"row": 0})
    export_answers(folder, prompt_sets=["red_team"], models=["base"])
    for name in ("settings.json", "evaluation.json", "evaluation.md", "base/lm_eval.json"):
        write_json(folder / name, {})
    (folder / ".lock").touch()


def test_an_evaluations_files_are_all_there_each_with_what_it_is(tmp_path: Path) -> None:
    write_evaluation(tmp_path)
    write_evaluation_artifacts(tmp_path)
    files = read_files(tmp_path)
    assert set(files) == list_made(tmp_path) - {".lock", "artifacts.json"}
    check_hashes(tmp_path, files)
    assert "answer" in files["base/red_team.jsonl"]["what"] and "loss" in files["base/0-shot.losses.jsonl"]["what"]
    # Each kind is one of a file that is made: none is left in the table when a file goes.
    assert {file["what"] for file in files.values()} == set(module.EVALUATION_FILES.values())
    before = (tmp_path / "artifacts.json").read_bytes()
    write_evaluation_artifacts(tmp_path)
    assert (tmp_path / "artifacts.json").read_bytes() == before


def test_a_sweeps_files_are_there_but_for_what_goes_on_changing(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "a sweep é", usual_sketches(), winner=3, has_adapters=True)
    write_reports(paths)
    assert not paths.artifacts.exists()
    changing = (".lock", "live.json", "logs/driver.log", "evaluation/settings.json", "trials/0000/evaluation/a.json")
    for name in changing:
        (paths.root / name).parent.mkdir(exist_ok=True)
        (paths.root / name).write_text("{}")
    (paths.root / "notes.txt").write_text("mine")
    write_sweep_artifacts(paths.root)
    files = read_files(paths.root)
    assert set(files) == list_made(paths.root) - {*changing, "artifacts.json"}
    check_hashes(paths.root, files)
    assert [path for path, file in files.items() if file["what"] is None] == ["notes.txt"]
    assert "winner's adapter" in files["best/adapter/adapter_config.json"]["what"]
    # A page that is made again is listed as it is now.
    (paths.root / "report.md").write_text("old")
    write_reports(paths)
    check_hashes(paths.root, read_files(paths.root))


def test_a_large_file_of_a_trial_has_its_size_and_one_of_the_winners_its_hash_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HASHED_BYTES", 3)
    for folder in ("trials/0000", "best"):
        (tmp_path / folder / "adapter").mkdir(parents=True)
        (tmp_path / folder / "adapter" / "adapter_model.safetensors").write_bytes(b"1234")
    write_sweep_artifacts(tmp_path)
    files = read_files(tmp_path)
    assert {path: (file["bytes"], file["sha256"] is None) for path, file in files.items()} == {
        "best/adapter/adapter_model.safetensors": (4, False),
        "trials/0000/adapter/adapter_model.safetensors": (4, True),
    }


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "closed"))
    monkeypatch.setattr(module, "list_files", Mock(side_effect=error))
    with pytest.raises(RunError, match=r"must be readable, got: Permission denied: .*closed\. Correct"):
        write_sweep_artifacts(tmp_path)
    assert not (tmp_path / "artifacts.json").exists()
