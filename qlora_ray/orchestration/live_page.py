"""The live page of a sweep that runs: its server is a process of its own, which ends with the sweep."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from qlora_ray.platforms import without_ctrl_c
from qlora_ray.runs.paths import SweepPaths

# A server that hangs, on a file system that does not answer, does not keep the sweep from its search.
START_S = 30.0
# The server sends its pages the last news first.
END_S = 5.0


class LivePage:
    """The server of a sweep's page.

    Args:
        folder: The sweep's, which need not be there yet.
        has_control: Whether the page has buttons.
    """

    def __init__(self, folder: Path, *, has_control: bool = False) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        # Ctrl-C is for the sweep, whose end the page is to show. That end comes to the server as
        # the end of its stdin, also where the sweep is killed.
        with suppress(OSError):
            # The system has no room for one more process: the sweep goes on without its page.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", "qlora_ray.dashboard", str(folder), "--of-sweep"),
                    *(["--control"] if has_control else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                **without_ctrl_c(),
            )

    def describe(self) -> str:
        """Where the page is, in a line; waits for the server, which starts in under a second, for START_S at most."""
        url = self._read_url()
        if url:
            return f"dashboard: {url}"
        return f"dashboard: it could not be started. Try: {SweepPaths(self._folder).dashboard_command}"

    def end(self) -> None:
        """Ends the server."""
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()

    def _read_url(self) -> str:
        if self._process is None:
            return ""
        # A thread, since Windows waits for sockets only; one that waits in vain ends with the process.
        lines: list[str] = []
        reader = threading.Thread(target=_read_line, args=(self._process.stdout, lines), daemon=True)
        reader.start()
        reader.join(START_S)
        return lines[0].strip() if lines else ""


def _read_line(stream: IO[str] | None, lines: list[str]) -> None:
    assert stream is not None
    # It is closed where nobody waits any more.
    with suppress(ValueError, OSError):
        lines.append(stream.readline())


@contextmanager
def live_page(folder: Path, *, has_control: bool = False) -> Iterator[LivePage]:
    """Serves a sweep's page while the block runs, see LivePage."""
    page = LivePage(folder, has_control=has_control)
    try:
        yield page
    finally:
        page.end()
