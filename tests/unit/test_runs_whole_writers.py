"""Writers of one folder that are killed at any point, or meet: the old folder or the new one is there, whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from qlora_ray.errors import RunError
from qlora_ray.runs.whole import restore_folder, whole_folder
from tests.unit.whole_folders import FILES, read_whole, write_folder

# Replaces `a` by a folder of the FILES "new", and dies before the n-th thing that it does to the disk.
DYING_WRITER = """
import os, sys
from pathlib import Path
from qlora_ray.runs.whole import whole_folder

num_left = int(sys.argv[2])

def dying(real):
    def call(*args, **settings):
        global num_left
        num_left -= 1
        if num_left < 0:
            os._exit(9)
        return real(*args, **settings)
    return call

with whole_folder(Path(sys.argv[1])) as folder:
    for name in "123":
        (folder / name).write_text("new")
    for name in ("replace", "rename", "unlink", "rmdir", "fsync", "open"):
        setattr(os, name, dying(getattr(os, name)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("heir", ["reader", "writer", "failing writer"])
def test_a_writer_killed_at_any_point_leaves_the_old_folder_or_the_new_one_whole(tmp_path, heir):
    seen = []
    for num_calls in range(100):
        path = tmp_path / str(num_calls) / "a"
        write_folder(path, "old")
        ended = subprocess.run([sys.executable, "-c", DYING_WRITER, str(path), str(num_calls)], check=False)
        if heir == "reader":
            restore_folder(path)
        else:
            with contextlib.suppress(ValueError), whole_folder(path) as folder:
                for name in FILES:
                    (folder / name).write_text("heir's")
                if heir == "failing writer":
                    raise ValueError
        seen.append(read_whole(path))
        assert list(path.parent.iterdir()) == [path]
        if ended.returncode == 0:
            break
        assert ended.returncode == 9
    # First it is killed before its folder has taken the place, then after.
    num_old = seen.count("old")
    expected = ["heir's"] * len(seen) if heir == "writer" else ["old"] * num_old + ["new"] * (len(seen) - num_old)
    assert seen == expected
    assert len(seen) > 2 * len(FILES) and (heir == "writer" or 0 < num_old < len(seen) - 1)


DEADLOCK_S = 200


class Meeting:
    """Lets a second writer work at the n-th thing that a first one does to the disk.

    The first goes on when the second has ended, or waits for it.
    """

    def __init__(self, monkeypatch, second, *, at):
        self._num_left = at
        self._rests = threading.Event()
        self._first = threading.current_thread()
        self._second = threading.Thread(target=self._run, args=(second,))
        self.has_met = False
        real_flock = fcntl.flock

        def flock(descriptor, operation):
            if threading.current_thread() is self._second and not operation & fcntl.LOCK_NB:
                with contextlib.suppress(BlockingIOError):
                    return real_flock(descriptor, operation | fcntl.LOCK_NB)
                self._rests.set()
            return real_flock(descriptor, operation)

        for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "open", "scandir", "listdir"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))
        monkeypatch.setattr(fcntl, "flock", self._noting(flock))

    def _noting(self, real):
        def call(*args, **settings):
            if threading.current_thread() is self._first and not self.has_met:
                self._num_left -= 1
                if self._num_left < 0:
                    self.has_met = True
                    self._second.start()
                    # No bound on speed: a disk that others write to takes its time. It ends a deadlock.
                    assert self._rests.wait(DEADLOCK_S)
            return real(*args, **settings)

        return call

    def _run(self, second):
        try:
            second()
        finally:
            self._rests.set()

    def end(self):
        if self.has_met:
            self._second.join()


@pytest.mark.parametrize("taken", [None, "taken"])
@pytest.mark.parametrize("is_left", [False, True])
def test_of_two_writers_that_meet_anywhere_each_succeeds_or_is_refused_and_one_is_whole(tmp_path, taken, is_left):
    outcomes = set()
    for at in range(200):
        path = tmp_path / str(at) / "a"
        write_folder(path, "old")
        if is_left:
            # Of one that was killed between the two renames.
            path.rename(path.parent / ".a.qlora_ray-0abc_xyz.old")
        ends = {}

        def write(who, path=path, ends=ends):
            try:
                write_folder(path, who, taken=taken)
                ends[who] = "done"
            except BaseException as error:
                ends[who] = repr(error)

        with pytest.MonkeyPatch.context() as patch:
            meeting = Meeting(patch, lambda write=write: write("second"), at=at)
            write("first")
            meeting.end()
        refused = repr(RunError("taken"))
        done = [who for who, end in ends.items() if end == "done"]
        assert done and set(ends.values()) <= {"done", refused}, f"met at {at}: {ends}"
        assert taken or refused not in ends.values()
        assert read_whole(path) in done
        assert list(path.parent.iterdir()) == [path]
        outcomes.add(tuple(done))
        if not meeting.has_met:
            break
    assert not meeting.has_met
    # The first alone; both; and where that is asked for, one of them alone.
    assert len(outcomes) >= (3 if taken else 2)
