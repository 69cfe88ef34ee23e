"""A sweep's folder: made once, held by one process, and refused with a reason."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_ray.errors import RunError
from qlora_ray.runs.paths import MIN_FREE_BYTES, SweepPaths, TrialPaths, trial_id_of

HOLD_LOCK = """
import fcntl, sys
stream = open(sys.argv[1], "w")
fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def paths(tmp_path):
    return SweepPaths(tmp_path / "results" / "mine")


def test_the_layout_is_the_documented_one(tmp_path):
    paths = SweepPaths(tmp_path / "mine")
    assert paths.name == "mine"
    layout = {
        "manifest": "manifest.json",
        "summary": "summary.json",
        "study": "study.journal",
        "events": "events.jsonl",
        "trials_table": "trials.csv",
        "trials": "trials",
        "best": "best",
        "logs": "logs",
    }
    assert {name: getattr(paths, name) for name in layout} == {name: paths.root / at for name, at in layout.items()}
    trial = paths.trial(trial_id_of(7))
    assert trial == TrialPaths(tmp_path / "mine/trials/0007")
    names = [getattr(trial, name).name for name in ("record", "metrics", "adapter", "state", "error")]
    assert names == ["record.json", "metrics.jsonl", "adapter", "state", "error.txt"]


def test_trial_ids_sort_as_their_numbers_do():
    ids = [trial_id_of(number) for number in (0, 9, 10, 999, 9999)]
    assert ids == sorted(ids) and len(set(map(len, ids))) == 1


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_made_with_its_parents_or_taken_if_it_is_empty(tmp_path, monkeypatch, exists):
    monkeypatch.chdir(tmp_path)
    if exists:
        (tmp_path / "results" / "mine").mkdir(parents=True)
    SweepPaths(Path("results/mine")).create()  # a relative folder is measured where it will be
    assert (tmp_path / "results/mine/trials").is_dir() and (tmp_path / "results/mine/logs").is_dir()


@pytest.mark.parametrize("file", ["manifest.json", "notes.txt", "trials/0000/record.json"])
def test_a_folder_that_holds_anything_is_refused_with_the_way_to_resume_it(paths, file):
    paths.create()
    (paths.root / file).parent.mkdir(exist_ok=True)
    (paths.root / file).write_text("")
    with pytest.raises(RunError, match=r"mine is already used\. .*qlora_ray\.sweep --resume .*mine"):
        paths.create()


def test_a_file_in_the_folders_place_or_above_it_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file is already used"):
        SweepPaths(tmp_path / "file").create()
    with pytest.raises(RunError, match=r"results\.dir: .*file/mine cannot be made: Not a directory"):
        SweepPaths(tmp_path / "file" / "mine").create()


def test_a_name_is_free_again_after_a_sweep_that_was_killed_before_its_manifest_and_not_while_it_plans(paths):
    paths.create()
    with paths.lock():
        (paths.logs / "driver.log").write_text("planning")
        with pytest.raises(RunError, match="another sweep is running there"):
            paths.create()
        assert paths.trials.is_dir()
    (paths.root / ".manifest.json.qlora_ray-a1b2c3d4").write_text("{")
    paths.create()
    assert list(paths.trials.iterdir()) == []


def test_a_disk_without_room_or_rights_is_refused_before_anything_is_made(paths, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=MIN_FREE_BYTES - 1))
    with pytest.raises(RunError, match=r"at least 64 MiB must be free .*mine, got 63 MiB"):
        paths.create()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=MIN_FREE_BYTES))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(RunError, match=r"results\.dir: .* cannot be written"):
            paths.create()
    assert not paths.root.exists()
    paths.create()


def test_a_lock_of_another_process_is_respected_until_that_process_dies(paths):
    paths.create()
    command = [sys.executable, "-c", HOLD_LOCK, str(paths.root / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another sweep is running there"), paths.lock():
            pass
        other.kill()
    with paths.lock():
        pass


def test_a_lock_is_held_once_and_is_free_again_afterwards(paths):
    assert not paths.is_held()
    paths.create()
    assert not paths.is_held()
    busy = pytest.raises(RunError, match=r"mine: another sweep is running there, process \d+ on .*\. Wait for it")
    with paths.lock():
        assert paths.is_held()
        with busy, paths.lock():
            pass
    assert not paths.is_held()
    with paths.lock():
        pass


def test_who_holds_a_lock_is_named_and_what_to_do_where_that_machine_is_gone(paths, monkeypatch):
    paths.create()
    with paths.lock():
        here = rf"another sweep is running there, process {os.getpid()} on {socket.gethostname()}\. Wait for it"
        with pytest.raises(RunError, match=here) as caught, paths.lock():
            pass
        assert "remove" not in str(caught.value)
        monkeypatch.setattr(socket, "gethostname", lambda: "other-head")
        with pytest.raises(RunError, match=r"lease ends.* remove .*mine/\.lock, once you know"), paths.lock():
            pass


def test_a_look_at_the_lock_does_not_stop_a_sweep_from_starting(paths, monkeypatch):
    paths.create()
    with paths.lock():
        pass
    with (paths.root / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("qlora_ray.runs.paths.time.sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        with paths.lock():
            assert paths.is_held()


def test_the_command_that_resumes_can_be_typed_whatever_the_folder_is_called() -> None:
    assert SweepPaths(Path("results/a")).resume_command == "python -m qlora_ray.sweep --resume results/a"
    words = shlex.split(SweepPaths(Path("results/my sweep")).resume_command)
    assert words[-2:] == ["--resume", "results/my sweep"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOLCK])
def test_a_folder_that_cannot_be_locked_is_no_running_sweep(paths, monkeypatch, number):
    def refuse(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("qlora_ray.runs.paths.locked_file", refuse)
    with pytest.raises(RunError, match=rf"mine: .* written and locked, got {os.strerror(number)}\. Free"), paths.lock():
        pass


@pytest.mark.parametrize("name", ["", "trials/0003", "logs/driver.log", "study.journal"])
def test_a_sweep_that_may_only_be_read_is_not_resumed(paths, monkeypatch, name):
    paths.create()
    for path in (paths.trial("0003").root, paths.logs / "driver.log", paths.study):
        path.mkdir()
    paths.check_resumable()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != paths.root / name)
    with pytest.raises(RunError, match=rf"^{paths.root / name}: .* only read\. Free space there, or get write access"):
        paths.check_resumable()


def test_a_sweep_that_runs_is_not_resumed(paths):
    paths.create()
    with paths.lock(), pytest.raises(RunError, match="another sweep is running there"):
        paths.check_resumable()
