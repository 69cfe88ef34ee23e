"""A running sweep's adapters on their way to the hub: on a thread of its own, which holds up nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import QloraRayError, first_line
from qlora_ray.exporting.adapter_hub import can_push
from qlora_ray.exporting.adapter_pushes import AdapterPushes
from qlora_ray.exporting.hub_client import find_token, hide_token
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs import EventLog, SweepPaths
from qlora_ray.runs.record_parts import PushesRecord
from qlora_ray.runs.records import TrialRecord, TrialStatus
from qlora_ray.training.engine import Report


@dataclass(frozen=True)
class PushTerms:
    """How patient the pushes are.

    Attributes:
        interval_s: From the end of one push to the next. The hub counts commits by the hour (huggingface/datasets
            issue 6257): so there are 120 in one at most.
        retry_s: From a push that did not work to the next try.
        end_s: How long the end of a sweep waits for what is left.
        stop_s: How long one that was stopped waits.
    """

    interval_s: float = 30.0
    retry_s: float = 300.0
    end_s: float = 60.0
    stop_s: float = 2.0


TERMS = PushTerms()


class HubPusher:
    """The observer of a sweep's books that has adapters pushed.

    A hub that is away, slow or refuses is told of once, and asked again later.

    Args:
        pushes: What is to be pushed.
        paths: The sweep's folder.
        tell: Takes a line for the user; called on the pusher's thread.
        is_told: Whether the user knows already that nothing can be pushed for now.
        terms: How patient it is.
    """

    def __init__(
        self,
        pushes: AdapterPushes,
        paths: SweepPaths,
        *,
        tell: Callable[[str], None],
        is_told: bool = False,
        terms: PushTerms = TERMS,
    ) -> None:
        self._pushes = pushes
        self._events = EventLog(paths.events)
        self._tell = tell
        self._terms = terms
        self._is_told = is_told
        self._reason: str | None = None
        self._has_work = True
        self._is_closing = self._is_over = False
        self._changed = threading.Condition()
        # Not Thread.join and is_alive: after a join that Ctrl-C has cut off, CPython 3.11 takes the thread for ended.
        self._has_ended = threading.Event()
        # A daemon: an upload that hangs must not keep the process.
        self._thread = threading.Thread(target=self._run, name="hub-pushes", daemon=True)
        self._thread.start()

    def opened(self, entry: TrialEntry, record: TrialRecord) -> None:
        """See TrialsObserver."""

    def reported(self, entry: TrialEntry, report: Report) -> None:
        """See TrialsObserver."""
        if not report.is_final and not _is_simulated(entry):
            self._pushes.add_report(entry.id, report.index)
            self._wake()

    def closed(self, entry: TrialEntry, *, is_best: bool) -> None:
        """See TrialsObserver."""
        if entry.state is TrialStatus.COMPLETE:
            self.add(entry, is_best=is_best)
        else:
            self._pushes.drop_report(entry.id)

    def add(self, entry: TrialEntry, *, is_best: bool) -> None:
        """Has a complete trial's adapter pushed, to the main branch where it is the best so far, or the winner."""
        if not _is_simulated(entry):
            self._pushes.add(entry.id, is_best=is_best)
            self._wake()

    def finish(self, *, is_stopped: bool) -> PushesRecord:
        """Waits for what is left, within limits or until Ctrl-C; returns what came of all of it.

        Args:
            is_stopped: Whether the sweep was stopped, and its user waits.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        limit_s = self._terms.stop_s if is_stopped else self._terms.end_s
        why = f"the hub did not take everything within {limit_s:g} s."
        # A stop of this wait takes nothing from a sweep that has its winner.
        try:
            self._has_ended.wait(limit_s)
        except KeyboardInterrupt:
            why = "the wait for the hub was stopped."
        waiting = self._pushes.waiting
        if not self._has_ended.is_set():
            self._is_over = True
            self._reason = self._reason or why
        return PushesRecord(
            repository=self._pushes.repository,
            num_pushed=self._pushes.num_pushed,
            waiting=tuple(waiting),
            reason=self._reason if waiting else None,
            command=self._pushes.command if waiting else None,
        )

    def end(self) -> None:
        """Waits for nothing any more, and says nothing."""
        with self._changed:
            self._is_closing = self._is_over = True
            self._changed.notify()

    def _wake(self) -> None:
        with self._changed:
            self._has_work = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            self._push_on()
        finally:
            self._has_ended.set()

    def _push_on(self) -> None:
        due = 0.0
        while self._wait(due):
            is_last = self._is_closing
            self._has_work = False
            try:
                line = self._pushes.push_next()
            except Exception as error:
                self._note_failure(error)
                if is_last:
                    return
                self._has_work, due = True, time.monotonic() + self._terms.retry_s
                continue
            if line is not None:
                self._say(line)
                self._has_work, due = True, time.monotonic() + self._terms.interval_s

    def _wait(self, due: float) -> bool:
        """Waits until there is something to push and it is time for it; False where the sweep ends with nothing left.

        What is left at the sweep's end goes at once, one after the other, until nobody waits for it any more: what is
        told to be waiting by then must not be on its way.
        """
        with self._changed:
            while not self._is_closing:
                left_s = due - time.monotonic()
                if self._has_work and left_s <= 0:
                    return True
                self._changed.wait(left_s if self._has_work else None)
            return self._has_work and not self._is_over

    def _note_failure(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, QloraRayError) else _describe(error)
        if reason != self._reason:
            self._events.write("push_failed", reason=reason, waiting=self._pushes.waiting)
        self._reason = reason
        if not self._is_told:
            self._is_told = True
            self._say(f"note: not pushed to the hub: {reason} It is tried again, and the sweep goes on.")

    def _say(self, line: str) -> None:
        # The sweep may have ended without waiting for this thread.
        if not self._is_over:
            self._tell(line)


@contextmanager
def hub_pusher(config: SweepConfig, paths: SweepPaths, *, tell: Callable[[str], None]) -> Iterator[HubPusher | None]:
    """The pusher of a sweep, for the length of the block; None where nothing is to be pushed."""
    if config.export.push_every == "never":
        yield None
        return
    # The plan says what is missing.
    is_told = not can_push()
    pusher = HubPusher(AdapterPushes(config.export, paths), paths, tell=tell, is_told=is_told)
    try:
        yield pusher
    finally:
        pusher.end()


def _is_simulated(entry: TrialEntry) -> bool:
    """Whether a CPU stood for the trial's device: its adapter is not for others."""
    return bool(entry.facts.get("executor", {}).get("simulated"))


def _describe(error: Exception) -> str:
    """An error that is nobody's bad input, in a line without the token."""
    text = f"{type(error).__name__}: {first_line(error)}."
    try:
        token = find_token()
    except QloraRayError:
        token = None
    return text if token is None else hide_token(text, token)
