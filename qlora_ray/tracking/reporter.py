"""Hands a sweep's trials to its trackers on a thread of its own, so that none of them holds up the search."""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_ray.errors import first_line
from qlora_ray.tracking.table import make_tracker
from qlora_ray.tracking.tracker import TrackedSweep, Tracker

# A tracker's server that does not answer must not keep the sweep from ending; what is left then is dropped, and said.
CLOSE_TIMEOUT_S = 60.0
# Figures of steps that may wait: more of them are worth less than the driver's memory. Begins and ends always wait.
MAX_WAITING = 100_000
# Libraries quote the address that did not answer, with the password that stands in it.
_PASSWORD_IN_ADDRESS = re.compile(r"(?<=://)[^/\s]+(?=@)")
_SECRET_NAMES = re.compile(r"(?:TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|SECRET_KEY)$")
# A shorter value of such a variable is a word, which may stand anywhere.
MIN_SECRET_CHARS = 8
HIDDEN = "***"


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
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._num_dropped = 0
        # A daemon: see CLOSE_TIMEOUT_S.
        self._thread = threading.Thread(target=self._run, name="trackers", daemon=True)
        self._thread.start()

    def start_trial(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """See Tracker."""
        self._calls.put(lambda tracker: tracker.start_trial(trial_id, config))

    def log(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """See Tracker."""
        if self._calls.qsize() >= MAX_WAITING:
            self._num_dropped += 1
        else:
            self._calls.put(lambda tracker: tracker.log(trial_id, step, metrics))

    def end_trial(self, trial_id: str, state: str, reason: str, results: Mapping[str, float]) -> None:
        """See Tracker."""
        self._calls.put(lambda tracker: tracker.end_trial(trial_id, state, reason, results))

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Waits until everything is handed over, or says that it was not."""
        self._calls.put(lambda tracker: tracker.close())
        self._calls.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            # One that is still being begun is none of the trackers yet.
            names = list(self._trackers) or self._names
            self._tell(f"note: {', '.join(names)} did not take everything within {timeout_s:g} s")
        elif self._num_dropped:
            self._tell(f"note: {self._num_dropped} figures were not reported: the trackers were too slow")

    def _run(self) -> None:
        for name in self._names:
            self._try(name, lambda name=name: self._trackers.update({name: make_tracker(name, self._sweep)}))  # type: ignore[misc]
        while (call := self._calls.get()) is not None:
            for name, tracker in list(self._trackers.items()):
                self._try(name, lambda call=call, tracker=tracker: call(tracker))  # type: ignore[misc]

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:
            # A library that ends the process would end this thread alone, and the other trackers without a word.
            sys.stderr.write(hide_secrets(traceback.format_exc()))
            self._trackers.pop(name, None)
            words = hide_secrets(f"{type(error).__name__}: {first_line(error)}")
            self._tell(f"note: nothing more goes to {name}: {words}")


def hide_secrets(text: str) -> str:
    """A text without passwords in addresses, and without the tokens and keys of the environment."""
    secrets = {value for name, value in os.environ.items() if _SECRET_NAMES.search(name.upper())}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET_CHARS:
            text = text.replace(secret, HIDDEN)
    return _PASSWORD_IN_ADDRESS.sub(HIDDEN, text)
