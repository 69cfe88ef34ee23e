"""A thread that does something every few seconds, and outlives what goes wrong in it once."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable


class RepeatingThread:
    """Calls a function at once and then every `interval_s`, until it is closed.

    An exception is printed, where it goes to the sweep's log, and the function is called again: a cluster that is
    busy for a moment must not end the watch over it.

    Args:
        function: What is called.
        interval_s: Between the end of a call and the next.
        name: The thread's.
    """

    def __init__(self, function: Callable[[], None], *, interval_s: float, name: str) -> None:
        self._function = function
        self._interval_s = interval_s
        self._closing = threading.Event()
        # A daemon: a call that hangs in a dead cluster must not keep the process.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Ends it after the call that is under way, which is waited for no longer than `timeout_s`."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._function()
            except Exception:
                traceback.print_exc()
            self._closing.wait(self._interval_s)
