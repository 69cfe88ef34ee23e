"""CPU seconds of a process and all that it started, and which processes Ray's workers are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

# Workers that Ray starts ahead, its agents, and the actors of the sweep itself.
OWN_WORKERS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::Pool", "ray::FakeExecutor")
SAMPLE_INTERVAL_S = 0.1


def read_tree_cpu_s() -> float:
    """CPU seconds of this process and all its descendants, those that have ended and were waited for included."""
    total = 0.0
    root = psutil.Process()
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class WorkersSeen:
    """Ray's worker processes below this one, as they were seen again and again.

    Attributes:
        others: By process id, the name of each worker that is none of Ray's own and none of the sweep's.
        num_started: Workers of any name that were started meanwhile, by executors too.
        most_at_once: The largest number of `others` at one time.
    """

    def __init__(self) -> None:
        self.others: dict[int, str] = {}
        self.most_at_once = 0
        self._before = set(_list_workers())
        self._started: set[int] = set()

    @property
    def num_started(self) -> int:
        """See the class."""
        return len(self._started)

    def look(self) -> None:
        """Takes note of what runs now."""
        now = _list_workers()
        others = {pid: name for pid, name in now.items() if not name.startswith(OWN_WORKERS)}
        self.others.update(others)
        self.most_at_once = max(self.most_at_once, len(others))
        self._started.update(now.keys() - self._before)


@contextmanager
def watch_workers() -> Iterator[WorkersSeen]:
    """Looks at the workers for the length of the block."""
    seen, ended = WorkersSeen(), threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_INTERVAL_S):
            seen.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        seen.look()
        ended.set()
        thread.join()


def _list_workers() -> dict[int, str]:
    workers = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if title.startswith("ray::"):
            workers[process.pid] = title.split("(")[0].strip()
    return workers
