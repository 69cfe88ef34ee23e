"""What the user sees: one line per event, and a progress line that lives on a terminal only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from qlora_ray.formats import format_duration

DEFAULT_COLUMNS = 80


class Console:
    """Writes the user's lines to one stream; on a terminal, the last line may be a live progress line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._is_terminal = self._stream.isatty()
        self._progress = ""
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the console was made."""
        return time.monotonic() - self._started

    def line(self, text: str = "") -> None:
        """Prints lines above the progress line."""
        self._erase()
        self._write(text + "\n" + self._progress)

    def event(self, text: str) -> None:
        """Prints one line with the time since the start in front."""
        self.line(f"{format_duration(self.elapsed_s):>7}  {text}")

    def progress(self, text: str) -> None:
        """Replaces the progress line; off a terminal it is dropped."""
        if not self._is_terminal:
            return
        self._erase()
        # A terminal of unknown size (some containers) says 0.
        width = os.get_terminal_size(self._stream.fileno()).columns or DEFAULT_COLUMNS
        self._progress = text[: max(0, width - 1)]
        self._write(self._progress)

    def end_progress(self) -> None:
        """Takes the progress line away."""
        self._erase()
        self._progress = ""

    def _erase(self) -> None:
        if self._progress:
            self._write("\r\x1b[2K")

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
            self._progress = ""


@contextmanager
def noise_to(log: Path) -> Iterator[Console]:
    """Sends everything this process prints, from C++ too, to a log file, and yields a console on the old stdout.

    Ray, Tune and transformers print boxes, tracebacks and warnings from several languages; only file
    descriptors catch all of it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    stream = os.fdopen(saved_out, "w", encoding="utf-8", errors="replace")
    try:
        yield Console(stream)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved_out, 1)
        os.dup2(saved_err, 2)
        os.close(saved_err)
        stream.close()
