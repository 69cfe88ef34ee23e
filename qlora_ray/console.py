"""What the user sees: one line per event, and below them a block that lives on a terminal only."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from qlora_ray.formats import format_duration
from qlora_ray.platforms import BINARY, NO_FOLLOW

DEFAULT_COLUMNS, DEFAULT_ROWS = 80, 24
# What a terminal that moves no cursor calls itself.
DUMB_TERMINALS = ("dumb", "unknown")


class Console:
    """Writes the user's lines to one stream; on a terminal, the last lines may be a live block.

    Any thread may write. On a terminal that cannot move its cursor there is no block, as in a pipe.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._is_terminal = self._stream.isatty() and os.environ.get("TERM", "").lower() not in DUMB_TERMINALS
        self._block: Sequence[str] = ()
        self._started = time.monotonic()
        self._lock = threading.RLock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the console was made."""
        return time.monotonic() - self._started

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal for a block, as far as one has been written to yet."""
        return self._is_terminal

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal; a terminal of unknown size (some containers) says 0."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return DEFAULT_COLUMNS, DEFAULT_ROWS
        return size.columns or DEFAULT_COLUMNS, size.lines or DEFAULT_ROWS

    def line(self, text: str = "") -> None:
        """Prints lines above the block."""
        with self._lock:
            self._write(self._erasure() + text + "\n" + "\n".join(self._block))

    def event(self, text: str) -> None:
        """Prints one line with the time since the start in front."""
        self.line(f"{format_duration(self.elapsed_s):>7}  {text}")

    def progress(self, text: str) -> None:
        """Replaces the block by one line, cut to the terminal's width; off a terminal it is dropped."""
        columns, _ = self.size
        self.show([text[: max(0, columns - 1)]])

    def show(self, lines: Sequence[str]) -> None:
        """Replaces the block; off a terminal it is dropped.

        Args:
            lines: Each narrower than the terminal, and together fewer than it has rows; escape codes for colours may
                be in them.
        """
        with self._lock:
            if not self._is_terminal or lines == self._block:
                return
            erasure = self._erasure()
            self._block = list(lines)
            # In one write: a terminal that draws in between would flicker.
            self._write(erasure + "\n".join(lines))

    def end_progress(self) -> None:
        """Takes the block away."""
        with self._lock:
            erasure = self._erasure()
            self._block = ()
            if erasure:
                self._write(erasure)

    def _erasure(self) -> str:
        """What takes the block away and leaves the cursor where it began."""
        if not self._block:
            return ""
        return "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (len(self._block) - 1)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            # `sweep | head` closed our reader, or the terminal hung up: the sweep goes on, its events are in
            # events.jsonl. The descriptor is turned away, not the stream: closing the stream flushes it again.
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)
            self._is_terminal = False
            self._block = ()


class _LossyFile(io.FileIO):
    """A file that drops what it has no room for."""

    def write(self, content: Any) -> int:
        with suppress(OSError):
            super().write(content)
        return len(content)


def _open_lossy(descriptor: int) -> TextIO:
    raw = _LossyFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


@contextmanager
def noise_to(log: Path) -> Iterator[Console]:
    """Sends everything this process prints, from C++ too, to a log file, and yields a console on the old stdout.

    Ray, Tune and transformers print boxes, tracebacks and warnings from several languages; only file
    descriptors catch all of it. What the log has no room for is dropped: a full disk is told of by who needs it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_FOLLOW | BINARY, 0o644)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    stream = os.fdopen(saved_out, "w", encoding="utf-8", errors="replace")
    out, err = sys.stdout, sys.stderr
    try:
        with redirect_stdout(_open_lossy(1)), redirect_stderr(_open_lossy(2)):
            yield Console(stream)
    finally:
        # Libraries may have kept them from before.
        for held in (out, err):
            with suppress(OSError):
                held.flush()
        os.dup2(saved_out, 1)
        os.dup2(saved_err, 2)
        os.close(saved_err)
        stream.close()
