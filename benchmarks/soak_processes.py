"""The processes of one sweep, whoever their parents are by now: all that inherited a mark in their environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "QLORA_RAY_SOAK"
POLL_S = 0.1
# What Ray itself needs after its driver is gone, on a machine that does other work too. Its agents, left without a
# raylet, wait for 10 s and read its logs.
LEAVE_S = 90.0


@dataclass(frozen=True)
class Found:
    """A process: its id, and its title."""

    pid: int
    title: str


def find_marked(mark: str) -> list[Found]:
    """The living processes whose mark begins so."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        # They come and go.
        with contextlib.suppress(OSError):
            if any(entry.startswith(wanted) for entry in (folder / "environ").read_bytes().split(b"\0")):
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if title and state != "Z":
                    found.append(Found(int(folder.name), title))
    return found


def find_titled(mark: str, title: str) -> list[int]:
    """Those of them whose title, or the name of whose program, begins so."""
    return [one.pid for one in find_marked(mark) if Path(one.title.split()[0]).name.startswith(title)]


def wait_until_gone(mark: str, *, timeout_s: float = LEAVE_S) -> list[Found]:
    """Waits until a sweep has no process any more; returns those that are still there, and ends them."""
    deadline = time.monotonic() + timeout_s
    while (left := find_marked(mark)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for one in left:
        send(one.pid, signal.SIGKILL)
    return left


def kill_all(mark: str) -> None:
    """Ends all processes of a sweep at once, as a power cut does: none may act on another one's death."""
    pids = [one.pid for one in find_marked(mark)]
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            send(pid, signum)


def send(pid: int, signum: int) -> bool:
    """Sends a signal; returns whether the process was there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
        return True
    return False


def poll(timeout_s: float) -> Iterator[None]:
    """Comes back every moment, until the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        yield
        time.sleep(POLL_S)
