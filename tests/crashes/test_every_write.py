"""A sweep that is stopped at any operation on its files, by a kill or a power cut, and then resumed, ends as if it had
not been: same finished trials, values and winner, every file readable, nothing left over."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qlora_ray.errors import QloraRayError
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.derived import rebuild
from tests.crashes.disk import GROWING, STOPPED, Operation, Stop, WatchedDisk
from tests.crashes.sweep import ScriptedSweep, describe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FINISHED, BROKEN, REFUSED = 0, 1, 2


class Undisturbed(NamedTuple):
    """The sweep that nobody stopped: what it did to its files, and what it left."""

    operations: list[Operation]
    described: dict[str, Any]


def in_child(root: Path, stop: Stop | None = None) -> int:
    """Runs the sweep of a folder in a forked process, to its end or to the stop; its exit code.

    What it prints goes to the file `output` beside the folder.
    """
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            output = os.open(root / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            sweep = ScriptedSweep(root / "folder", root / "inputs", pytest.MonkeyPatch())
            disk = WatchedDisk(root / "folder", root / "aside", stop)
            sweep.run()
            disk.close()
            (root / "operations").write_text("\n".join("\t".join(map(str, each)) for each in disk.operations))
            code = FINISHED
        except QloraRayError as error:
            sys.stdout.write(f"{error}\n")
            code = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make_root(root: Path) -> Path:
    """A folder with what the sweeps of one test need, empty."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("folder", "inputs", "aside"):
        (root / name).mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = make_root(tmp_path_factory.mktemp("undisturbed"))
    # Once here: what is imported late is then imported in every child.
    with pytest.MonkeyPatch.context() as patch:
        ScriptedSweep(make_root(root / "first") / "folder", root / "first" / "inputs", patch).run()
    assert in_child(root) == FINISHED, (root / "output").read_text()
    lines = (root / "operations").read_text().splitlines()
    operations = [
        Operation(kind, path, int(size), int(unsynced))
        for kind, path, size, unsynced in (line.split("\t") for line in lines)
    ]
    return Undisturbed(operations, describe(root / "folder"))


def find_faults(root: Path, undisturbed: Undisturbed, stops: Iterable[Stop], *, is_rebuilt: bool = False) -> list[str]:
    """Stops a sweep at each of these, resumes it, and says what is then not as in the undisturbed one.

    Args:
        root: A folder of the test's own.
        undisturbed: The sweep that nobody stopped.
        stops: Where to stop.
        is_rebuilt: Whether what can be made again is, before the resume.
    """
    faults = []
    for stop in stops:
        where = f"{stop}, {undisturbed.operations[stop.at]}"
        code = in_child(make_root(root), stop)
        if code not in ((FINISHED, REFUSED) if stop.is_full else (STOPPED,)):
            faults.append(f"{where}: exited with {code}:\n{(root / 'output').read_text()}")
            continue
        if code == REFUSED:
            faults += [f"{where}: {words}" for words in describe_refusal((root / "output").read_text(), root)]
        paths = SweepPaths(root / "folder" / "s")
        if is_rebuilt and paths.manifest.exists():
            faults += [f"{where}: {file}" for file in rebuild(paths) if not file.is_whole]
        if in_child(root) != FINISHED:
            faults.append(f"{where}: the resume failed:\n{(root / 'output').read_text()}")
            continue
        try:
            found = describe(root / "folder")
        except Exception as error:
            faults.append(f"{where}: {type(error).__name__}: {error}")
            continue
        faults += [
            f"{where}: {key} is {found[key]!r}, not {value!r}"
            for key, value in undisturbed.described.items()
            if found[key] != value
        ]
    return faults


def describe_refusal(output: str, root: Path) -> list[str]:
    """What is wrong with how a sweep on a full disk has ended."""
    last = output.splitlines()[-1]
    # Where nothing has begun there is nothing to go on with.
    advice = (
        f"go on with: python -m qlora_ray.sweep --resume {root}"
        if (root / "folder/s/manifest.json").exists()
        else "Free"
    )
    return [f"said {output!r}"] if "Traceback" in output or advice not in last else []


def test_a_disk_that_is_full_from_any_operation_on_ends_the_sweep_in_one_line_and_loses_nothing(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    growing = [at for at, operation in enumerate(undisturbed.operations) if operation.kind in GROWING]
    assert not find_faults(tmp_path, undisturbed, [Stop(at, is_full=True) for at in growing])


def test_a_kill_before_any_operation_loses_nothing(tmp_path: Path, undisturbed: Undisturbed) -> None:
    stops = [Stop(at) for at in range(len(undisturbed.operations))]
    assert not find_faults(tmp_path, undisturbed, stops)


def test_a_write_that_is_cut_off_loses_nothing(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """In its middle, and before its last byte; the readers of each file are tried at every byte in the unit tier."""
    writes = [(at, operation.size) for at, operation in enumerate(undisturbed.operations) if operation.kind == "write"]
    stops = [Stop(at, written) for at, size in writes for written in (size // 2, size - 1)]
    assert {operation.path for operation in undisturbed.operations if operation.kind == "write"} >= {
        "s/events.jsonl",
        "s/study.journal",
        "s/trials.csv",
        "s/trials/0000/metrics.jsonl",
    }
    assert not find_faults(tmp_path, undisturbed, stops)


def test_renames_that_a_power_cut_undoes_lose_nothing(tmp_path: Path, undisturbed: Undisturbed) -> None:
    stops = [
        Stop(at, undoes_renames=True) for at, operation in enumerate(undisturbed.operations) if operation.num_unsynced
    ]
    assert stops and not find_faults(tmp_path, undisturbed, stops)


def test_a_rebuild_before_the_resume_takes_nothing_from_it(tmp_path: Path, undisturbed: Undisturbed) -> None:
    stops = [Stop(at) for at in range(0, len(undisturbed.operations), 8)]
    assert not find_faults(tmp_path, undisturbed, stops, is_rebuilt=True)
