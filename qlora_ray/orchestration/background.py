"""A function called on a thread, whose result is asked for later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

AnyResult = TypeVar("AnyResult")


class BackgroundCall(Generic[AnyResult]):
    """One call under way. Unlike a future's, its thread is a daemon: a process that is stopped does not wait for it.

    Args:
        function: What is called, at once.
    """

    def __init__(self, function: Callable[[], AnyResult]) -> None:
        self._function = function
        self._results: list[AnyResult] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="background-call", daemon=True)
        self._thread.start()

    def result(self) -> AnyResult:
        """Waits for the function to return; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:
            self._error = error
