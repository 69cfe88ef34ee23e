"""Which trial holds which slot when, kept up event by event."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_ray.dashboard.model import Span
from qlora_ray.reporting.timeline import RUN_STARTS, executor_name
from qlora_ray.runs.typed_json import parse_number


class SlotTimes:
    """Leases as spans on the sweep's own clock.

    Attributes:
        changed: Spans that are new or have ended since `take_changed`.
        num_slots: Slots of each executor, as many as were ever held at once; an idle executor has one.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.num_slots: dict[str, int] = {}
        self.changed: dict[int, Span] = {}
        self._open: dict[str, int] = {}
        self._held: dict[str, set[int]] = defaultdict(set)
        self._start: float | None = None
        self._last: float | None = None
        # Time between the runs of a resumed sweep.
        self._paused_s = 0.0

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes one event, in the order of events.jsonl."""
        time = parse_number(event.get("time"))
        if time is None:
            return
        name = event.get("event")
        if name == "sweep_failed":
            # A resume that breaks before it begins says so long after the run before; that run's clock has stopped.
            return
        if self._start is None:
            self._start = time
        elif name in RUN_STARTS and self._last is not None:
            # What an earlier run left open ended with it.
            for trial in list(self._open):
                self._close(trial, self._last)
            self._paused_s += max(0.0, time - self._last)
        self._last = max(time, self._last or time)
        if name == "trial_leased":
            self._lease(event, time)
        elif name == "trial_released":
            self._close(str(event.get("trial")), time)
        elif name == "executor_ready":
            self.num_slots.setdefault(executor_name(event.get("hostname"), event.get("executor")), 1)

    def clock(self, time: float | None = None) -> float:
        """Seconds since the sweep began, at a time since 1970; None: at its last event."""
        at = self._last if time is None else time
        return 0.0 if at is None or self._start is None else round(at - self._start - self._paused_s, 3)

    def take_changed(self) -> list[Span]:
        """The spans that are new or have ended since the last call."""
        changed = list(self.changed.values())
        self.changed = {}
        return changed

    def _lease(self, event: Mapping[str, Any], time: float) -> None:
        trial = str(event.get("trial"))
        self._close(trial, time)
        executor = executor_name(event.get("hostname"), event.get("executor"))
        held = self._held[executor]
        slot = next(number for number in range(len(held) + 1) if number not in held)
        held.add(slot)
        self.num_slots[executor] = max(self.num_slots.get(executor, 1), slot + 1)
        span = Span(key=len(self.spans), trial=trial, executor=executor, slot=slot, start_s=self.clock(time))
        self._open[trial] = span.key
        self.spans.append(span)
        self.changed[span.key] = span

    def _close(self, trial: str, time: float) -> None:
        key = self._open.pop(trial, None)
        if key is None:
            return
        span = replace(self.spans[key], end_s=self.clock(time))
        self._held[span.executor].discard(span.slot)
        self.spans[key] = self.changed[key] = span
