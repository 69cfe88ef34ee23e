"""Hands a sweep's trials to its trackers on a thread of its own, so that none of them holds up the search."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_ray.errors import first_line
from qlora_ray.tracking.table import make_tracker
from qlora_ray.tracking.tracker import TrackedSweep, Tracker

# A tracker's server that does not answer must not keep the sweep from ending; what is left then is dropped, and said.
CLOSE_TIMEOUT_S = 60.0
# Calls that may wait: beyond it the oldest figures of steps are worth less than the driver's memory.
MAX_WAITING = 100_000


class TrackerReporter:
    """All trackers of a sweep. A tracker whose library raises is left out from then on, and the user told once.

    Args:
        names: The trackers of `results.report_to`.
        sweep: The sweep.
        tell: Takes a line for the user; called on the reporter's thread.
    """

    def __init__(self, names: Sequence[str], sweep: TrackedSweep, *, tell: Callable[[str], None]) -> None:
        self._names = list(names)
        self._sweep = sweep
        self._tell = tell
        self._trackers: dict[str, Tracker] = {}
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MAX_WAITING)
        self._num_dropped = 0
        # A daemon: see CLOSE_TIMEOUT_S.
        self._thread = threading.Thread(target=self._run, name="trackers", daemon=True)
        self._thread.start()

    def start_trial(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._put(lambda tracker: tracker.start_trial(trial_id, config))

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        self._put(lambda tracker: tracker.log(trial_id, step, metrics))

    def end_trial(self, trial_id: str, state: str, reason: str, results: Mapping[str, float]) -> None:
        """See Tracker."""
        self._put(lambda tracker: tracker.end_trial(trial_id, state, reason, results))

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Waits until everything is handed over, or says that it was not."""
        self._put(lambda tracker: tracker.close())
        try:
            self._calls.put(None, timeout=timeout_s)
        except queue.Full:
            pass
        else:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._tell(f"note: {', '.join(self._trackers)} did not take everything within {timeout_s:g} s")
        elif self._num_dropped:
            self._tell(f"note: {self._num_dropped} figures were not reported: the trackers were too slow")

    def _put(self, call: Callable[[Tracker], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._num_dropped += 1

    def _run(self) -> None:
        for name in self._names:
            self._try(name, lambda name=name: self._trackers.update({name: make_tracker(name, self._sweep)}))  # type: ignore[misc]
        while (call := self._calls.get()) is not None:
            for name, tracker in list(self._trackers.items()):
                self._try(name, lambda call=call, tracker=tracker: call(tracker))  # type: ignore[misc]

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            traceback.print_exc()
            self._trackers.pop(name, None)
            self._tell(f"note: nothing more goes to {name}: {type(error).__name__}: {first_line(error)}")
