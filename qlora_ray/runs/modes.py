"""Who may read what a sweep writes: whoever the user's umask lets, as with any file that a program makes.

`mkstemp`, `mkdtemp` and safetensors 0.8 make theirs for their owner alone, and a sweep's files are read by others: a
colleague, a dashboard, a server.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")
# What the process has by then is what it began with: nothing here changes it.
USUAL = 0o022


def share(path: Path) -> None:
    """Gives a file or folder the mode that `open` and `mkdir` give theirs."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def share_tree(folder: Path) -> None:
    """The same for a folder and all in it; links are left alone."""
    share(folder)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            share(path)


@functools.cache
def _umask() -> int:
    # os.umask can only be read by setting it, which another thread's file would feel.
    with suppress(OSError, StopIteration, ValueError):
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(USUAL)
    os.umask(mask)
    return mask
