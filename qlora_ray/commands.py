"""What every command does around its work: the token of .env, one message and an exit code for bad input and stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from qlora_ray.env_file import load_token
from qlora_ray.errors import QloraRayError

# As shells have it: 128 and the signal's number.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it: what is half written goes away as on Ctrl-C."""


def run_command(run: Callable[[], int], *, stopped: str = "stopped", has_own_signals: bool = False) -> int:
    """Runs a command's work; returns its exit code, or that of the error that ended it.

    Args:
        run: Does the command's work and returns its exit code.
        stopped: What is said after Ctrl-C or SIGTERM.
        has_own_signals: The work handles SIGTERM itself.
    """
    try:
        load_token()
        if has_own_signals:
            return run()
        with sigterm_as_stop():
            return run()
    except QloraRayError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"{stopped}\n")
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


@contextmanager
def sigterm_as_stop() -> Iterator[None]:
    """Raises Terminated where SIGTERM finds the work; Python takes signals in its main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def as_place(text: str) -> Path:
    """A folder as it was typed, `~` expanded; one without a name of its own, as `.`, by its whole path."""
    path = Path(text)
    try:
        path = path.expanduser()
    except RuntimeError:
        # Of a user that is not there: a name as any other.
        return path
    # Others are not resolved: a link is to be seen as one, and messages have what was typed.
    return path if path.name not in ("", "..") else path.resolve()
