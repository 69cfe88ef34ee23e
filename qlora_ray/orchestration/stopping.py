"""Ctrl-C and SIGTERM: asked for once, heeded where nothing is half told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qlora_ray.orchestration.ledger import SWEEP_STOPPED, Ledger
from qlora_ray.platforms import interrupt_main_thread

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A search ends between two steps, which takes a second where Ray answers.
SEARCH_END_S = 10.0


class SearchStop:
    """Whether the search is to end, and why. May be asked for from any thread, and from a signal's handler.

    Attributes:
        reason: Why; None while it goes on.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._listener: Callable[[], object] | None = None

    @property
    def is_requested(self) -> bool:
        """Whether the search is to end."""
        return self.reason is not None

    def request(self, reason: str) -> None:
        """Ends the search between two steps; what it cuts off is interrupted."""
        self.reason = self.reason or reason
        if self._listener is not None:
            self._listener()

    def listen(self, listener: Callable[[], object] | None) -> None:
        """Sets who is told of a request; None: nobody any more."""
        self._listener = listener


class StopSignals:
    """Remembers that a stop was asked for.

    Outside the search it interrupts where the program is, and is checked again between two phases: an exception
    raised in a callback of C code is printed and lost. In the search, the first one ends its loop between two steps,
    so that no trial is told to one of record and study only; the second one interrupts.
    """

    def __init__(self) -> None:
        # Why Ray is no more, by the watchdog; None while it is there.
        self.ray_death: str | None = None
        self._requested = False
        self._ignored = False
        self._search: SearchStop | None = None
        self._ledger: Ledger | None = None

    def install(self) -> None:
        """Takes the signals over, from whoever has them now."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raises KeyboardInterrupt if a stop was asked for."""
        if self._requested:
            raise KeyboardInterrupt

    def begin_search(self, search: SearchStop, ledger: Ledger) -> None:
        """From now on a stop ends the search, as it is asked to."""
        self.check()
        self._search, self._ledger = search, ledger

    def end_search(self) -> None:
        """From now on a stop interrupts again."""
        self._search = self._ledger = None

    def ignore(self) -> None:
        """From now on nothing stops: what is left takes a second and makes the results whole."""
        self._ignored = True

    def end_with_ray(self, cause: str) -> None:
        """Ray has died: stops as a signal does. Called once, from any thread.

        A search that does not end by itself, because it waits for an answer of Ray's, is interrupted after a while.
        """
        self.ray_death = cause
        self._signal_main()
        timer = threading.Timer(SEARCH_END_S, self._signal_main)
        timer.daemon = True
        timer.start()

    def _signal_main(self) -> None:
        if not self._ignored:
            interrupt_main_thread()

    def _handle(self, signum: int, frame: Any) -> None:
        if self._ignored:
            return
        is_first = not self._requested
        self._requested = True
        if self._search is not None and self._ledger is not None and is_first:
            self._ledger.is_stopping = True
            self._search.request(self.ray_death or SWEEP_STOPPED)
            return
        raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handles the signals for the length of the block, then gives them back."""
    previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
    stops = StopSignals()
    stops.install()
    try:
        yield stops
    finally:
        # What watches over Ray may still mean to interrupt.
        stops.ignore()
        for signum, handler in previous.items():
            signal.signal(signum, handler)
