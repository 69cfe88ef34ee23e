"""What differs between operating systems, in one place. Everything runs on Linux; see docs/platforms.md for the others.

Modules that only some systems have are imported where they are used, so that every module of the package can be
imported everywhere. Locks are in runs/locks.py.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Of SIGPIPE, which Windows does not have: shells say 128 and this number where a pipe has lost its reader.
SIGPIPE_NUMBER = 13
# For os.open: without it Windows writes every line end as two characters.
BINARY: int = getattr(os, "O_BINARY", 0)
# For os.open: fails where the name is a link, so that nothing is written elsewhere. Windows has no such flag.
NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
# Windows refuses to rename or remove what a process has open.
CAN_RENAME_OPEN_FILES = os.name != "nt"
# How a process ends that the system has ended for its CPU seconds; None on Windows, which does not.
OVER_CPU_LIMIT: int | None = -signal.SIGXCPU if hasattr(signal, "SIGXCPU") else None
LINUX_MEMINFO, LINUX_STATM = Path("/proc/meminfo"), Path("/proc/self/statm")


def read_ram() -> tuple[int, int]:
    """Returns (total, available) bytes of the machine's RAM."""
    words = {}
    with suppress(OSError):
        for line in LINUX_MEMINFO.read_text().splitlines():
            key, _, rest = line.partition(":")
            words[key] = int(rest.split()[0]) * 1024
    if "MemTotal" in words:
        return words["MemTotal"], words.get("MemAvailable", words["MemTotal"])
    import psutil

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def read_resident_bytes() -> int | None:
    """Returns the memory that this process has in RAM now; None where the system does not say so."""
    with suppress(OSError, ValueError, IndexError, ImportError):
        import resource

        return int(LINUX_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    with suppress(ImportError):
        import psutil

        return int(psutil.Process().memory_info().rss)
    return None


def read_peak_resident_bytes() -> int:
    """Returns the most memory that this process has had in RAM."""
    try:
        import resource
    except ImportError:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    # KiB on Linux, bytes on macOS (getrusage(2) of each).
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_max_open_files() -> int | None:
    """Returns how many files a process may be allowed to have open; None where there is no such limit."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def read_niceness() -> int | None:
    """Returns this process's niceness; None where there is none."""
    return os.nice(0) if hasattr(os, "nice") else None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block when the time is over.

    In the main thread only, and not on Windows: Python hands signals to no other. A signal ends no other call in C.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: Any) -> None:
        raise TimeoutError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt_main_thread() -> None:
    """Sends SIGINT to the main thread, from any thread, also where it waits for an answer of the system's."""
    main = threading.main_thread()
    if hasattr(signal, "pthread_kill"):
        if main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGINT)
        return
    import _thread

    _thread.interrupt_main(signal.SIGINT)


def has_lost_reader(descriptor: int) -> bool:
    """Returns whether it is this pipe whose reader is gone, and not another that broke; true where none can say."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def without_ctrl_c() -> Mapping[str, Any]:
    """Returns the arguments of Popen by which a terminal's Ctrl-C does not reach the process."""
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True}


def open_folder(path: Path) -> int | None:
    """Returns a descriptor of a folder, by which it can be locked and synced; None on Windows, which has none.

    Raises:
        OSError: It is not there, or cannot be read.
    """
    return None if os.name == "nt" else os.open(path, os.O_RDONLY)


def sync_file(path: Path) -> None:
    """Brings a file to the disk."""
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, (os.O_RDWR if os.name == "nt" else os.O_RDONLY) | BINARY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_in(folder: int | None, path: Path) -> int:
    """Opens a file for reading, by its name in a folder that `open_folder` opened, whatever has its path by then."""
    flags = os.O_RDONLY | BINARY
    return os.open(path, flags) if folder is None else os.open(path.name, flags, dir_fd=folder)


def keep_private(descriptor: int) -> None:
    """Takes everybody else's access to an open file; Windows has that from the folder."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o600)
