"""When each slot of each executor held a trial, and when it held none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qlora_ray.reporting.trials import Trial, as_number

RUN_STARTS = ("sweep_started", "sweep_resumed")


@dataclass(frozen=True)
class Span:
    """A trial in a slot, from `start_s` to `end_s` on the sweep's own clock, which stands still between two runs.

    `is_open` means that no end was written: the sweep runs, or was killed.
    """

    trial: str
    executor: str
    start_s: float
    end_s: float
    is_open: bool = False
    lane: int = 0


@dataclass(frozen=True)
class Timeline:
    """Slots as lanes.

    Attributes:
        lanes: Each lane's name, executors together.
        spans: Every trial in its lane.
        end_s: Time of the last release; lanes begin at `start_s`, the first lease.
        resumed_s: Times at which the sweep was resumed.
        source: `leases`, or `records` for older sweeps whose events know no leases.
    """

    lanes: tuple[str, ...]
    spans: tuple[Span, ...]
    start_s: float
    end_s: float
    resumed_s: tuple[float, ...]
    source: Literal["leases", "records"]

    @property
    def idle_share(self) -> float | None:
        """Of all slots' time from first lease to last release, the share without a trial."""
        total = len(self.lanes) * (self.end_s - self.start_s)
        return max(0.0, 1.0 - sum(span.end_s - span.start_s for span in self.spans) / total) if total > 0 else None


class _Clock:
    """Seconds since the sweep began, without the time between its runs."""

    def __init__(self, events: Sequence[Mapping[str, Any]]) -> None:
        times = [time for event in events if (time := as_number(event.get("time"))) is not None]
        runs: list[list[float]] = []
        for event in events:
            time = as_number(event.get("time"))
            if time is None:
                continue
            if not runs or event.get("event") in RUN_STARTS:
                runs.append([time, time])
            runs[-1][1] = max(runs[-1][1], time)
        self.runs = runs
        self.last = max(times, default=0.0)

    def at(self, time: float) -> float:
        """The clock at a time since 1970; between two runs it stands."""
        passed = 0.0
        for start, end in self.runs:
            passed += min(max(time, start), end) - start
        return passed

    def resumes(self) -> tuple[float, ...]:
        """The clock at each resume."""
        return tuple(self.at(start) for start, _ in self.runs[1:])

    def run_end(self, time: float) -> float:
        """The end of the run that a time belongs to."""
        return next((end for _, end in self.runs if time <= end), self.last)


def read_timeline(events: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> Timeline | None:
    """The slots' timeline; None if no trial ever had a slot."""
    clock = _Clock(events)
    spans = list(_spans_of_leases(events, clock))
    source: Literal["leases", "records"] = "leases"
    if not spans:
        spans, source = list(_spans_of_records(events, trials, clock)), "records"
    if not spans:
        return None
    lanes, placed = _pack(spans, _slots_by_executor(spans, trials), is_exact=source == "leases")
    return Timeline(
        lanes=tuple(lanes),
        spans=tuple(placed),
        start_s=min(span.start_s for span in placed),
        end_s=max(span.end_s for span in placed),
        resumed_s=clock.resumes(),
        source=source,
    )


def _spans_of_leases(events: Iterable[Mapping[str, Any]], clock: _Clock) -> Iterable[Span]:
    held: dict[str, tuple[str, float]] = {}
    for event in events:
        name, trial, time = event.get("event"), str(event.get("trial")), as_number(event.get("time"))
        if name not in ("trial_leased", "trial_released", *RUN_STARTS) or time is None:
            continue
        if name in RUN_STARTS:
            # What an earlier run left open ended with it.
            yield from (_span(one, clock, is_open=False) for one in _close_all(held, clock))
            held.clear()
            continue
        if trial in held:
            executor, start = held.pop(trial)
            yield _span((trial, executor, start, time), clock, is_open=False)
        if name == "trial_leased":
            held[trial] = (_executor_name(event.get("hostname"), event.get("executor")), time)
    yield from (_span(one, clock, is_open=True) for one in _close_all(held, clock))


def _close_all(held: Mapping[str, tuple[str, float]], clock: _Clock) -> list[tuple[str, str, float, float]]:
    return [(trial, executor, start, clock.run_end(start)) for trial, (executor, start) in held.items()]


def _spans_of_records(events: Iterable[Mapping[str, Any]], trials: Iterable[Trial], clock: _Clock) -> Iterable[Span]:
    reports = [event for event in events if event.get("event") == "trial_reported"]
    executors = {event.get("trial"): event.get("executor") for event in reports}
    for trial in trials:
        if trial.opened_at is None or (not trial.reports and trial.device is None):
            continue
        start = trial.opened_at + trial.waited_s
        end = trial.closed_at if trial.closed_at is not None else clock.run_end(start)
        name = _executor_name(trial.hostname, executors.get(trial.id))
        if end > start:
            yield _span((trial.id, name, start, end), clock, is_open=trial.closed_at is None)


def _span(held: tuple[str, str, float, float], clock: _Clock, *, is_open: bool) -> Span:
    trial, executor, start, end = held
    return Span(trial, executor, clock.at(start), clock.at(end), is_open)


def _executor_name(hostname: Any, executor: Any) -> str:
    where = str(hostname) if hostname else "unknown node"
    return where if executor is None else f"{where} · executor {executor}"


def _slots_by_executor(spans: Iterable[Span], trials: Iterable[Trial]) -> dict[str, int]:
    """The most slots that an executor said it has."""
    slots = {trial.id: trial.num_slots or 1 for trial in trials}
    found: dict[str, int] = defaultdict(int)
    for span in spans:
        found[span.executor] = max(found[span.executor], slots.get(span.trial, 1))
    return found


def _pack(spans: list[Span], slots: Mapping[str, int], *, is_exact: bool) -> tuple[list[str], list[Span]]:
    """Lanes for all spans: a trial goes into the first slot of its executor that is free.

    Records leave out the seconds between a trial's opening and its asking for a slot. So where times come from them, a
    trial that seems to come too soon begins when the next slot is free: there were no more than the executor said.
    """
    lanes: list[str] = []
    placed: list[Span] = []
    for executor in sorted(slots):
        free_at = [0.0] * slots[executor]
        for span in sorted(
            (span for span in spans if span.executor == executor), key=lambda span: (span.start_s, span.trial)
        ):
            lane = next((i for i, time in enumerate(free_at) if time <= span.start_s), None)
            if lane is None and is_exact:
                lane = len(free_at)
                free_at.append(0.0)
            elif lane is None:
                lane = free_at.index(min(free_at))
            start_s = min(max(span.start_s, free_at[lane]), span.end_s)
            free_at[lane] = span.end_s
            placed.append(replace(span, lane=len(lanes) + lane, start_s=start_s))
        lanes += [f"{executor} · slot {index + 1}" for index in range(len(free_at))]
    return lanes, placed
