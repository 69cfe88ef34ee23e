"""When each slot of each executor held a trial, and when it held none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qlora_ray.reporting.trials import Trial
from qlora_ray.runs.typed_json import parse_number

SLOT = " · slot "
RUN_STARTS = ("sweep_started", "sweep_resumed")


@dataclass(frozen=True)
class Span:
    """A trial in a slot, from `start_s` to `end_s` on the sweep's own clock, which stands still between two runs.

    `is_open` means that no end was written: the sweep runs, or was killed. `run` is 0 until the first resume.
    """

    trial: str
    executor: str
    start_s: float
    end_s: float
    is_open: bool = False
    lane: int = 0
    run: int = 0


@dataclass(frozen=True)
class Timeline:
    """Slots as lanes.

    Attributes:
        lanes: Each lane's name, executors together. An executor that was ready and never held a trial has its lanes.
        spans: Every trial in its lane.
        slot_s: Seconds of all slots: of those that a run had, from its first lease to its last release.
        end_s: Time of the last release; lanes begin at `start_s`, the first lease.
        resumed_s: Times at which the sweep was resumed.
        source: `leases`, or `records` for older sweeps whose events know no leases.
    """

    lanes: tuple[str, ...]
    spans: tuple[Span, ...]
    slot_s: float
    start_s: float
    end_s: float
    resumed_s: tuple[float, ...]
    source: Literal["leases", "records"]

    @property
    def idle_share(self) -> float | None:
        """Of all slots' time, the share without a trial; not counted is what a run does before and after its trials."""
        busy_s = sum(span.end_s - span.start_s for span in self.spans)
        return max(0.0, 1.0 - busy_s / self.slot_s) if self.slot_s > 0 else None


class _Clock:
    """Seconds since the sweep began, without the time between its runs.

    A run ends with its last release: the winner is scored after it, which needs no slot.
    """

    def __init__(self, events: Sequence[Mapping[str, Any]]) -> None:
        self.runs = [(_time_of(run[0]), _end_of(run)) for run in _split_runs(events)]
        self.last = max((end for _, end in self.runs), default=0.0)

    def at(self, time: float) -> float:
        """The clock at a time since 1970; between two runs it stands."""
        passed = 0.0
        for start, end in self.runs:
            passed += min(max(time, start), end) - start
        return passed

    def run_of(self, time: float) -> int:
        """The number of the run that a time belongs to, from 0; before the first one, 0."""
        return max(0, sum(start <= time for start, _ in self.runs) - 1)

    def resumes(self) -> tuple[float, ...]:
        """The clock at each resume."""
        return tuple(self.at(start) for start, _ in self.runs[1:])

    def run_end(self, time: float) -> float:
        """The end of the run that a time belongs to."""
        return next((end for _, end in self.runs if time <= end), self.last)


def read_timeline(
    events: Sequence[Mapping[str, Any]], trials: Sequence[Trial], *, num_slots: int = 1
) -> Timeline | None:
    """The slots' timeline; None if no trial ever had a slot.

    Args:
        num_slots: Of an executor that was ready, and of which no trial says how many it had.
    """
    clock = _Clock(events)
    spans = list(_spans_of_leases(events, clock))
    source: Literal["leases", "records"] = "leases"
    if not spans:
        spans, source = list(_spans_of_records(events, trials, clock)), "records"
    if not spans:
        return None
    ready = _ready_executors(events, clock)
    slots = _slots_by_executor(spans, trials)
    idle = {name: num_slots for names in ready.values() for name in names if name not in slots}
    lanes, placed = _pack(spans, {**slots, **idle}, is_exact=source == "leases")
    return Timeline(
        slot_s=_slot_seconds(placed, lanes, ready),
        lanes=tuple(lanes),
        spans=tuple(placed),
        start_s=min(span.start_s for span in placed),
        end_s=max(span.end_s for span in placed),
        resumed_s=clock.resumes(),
        source=source,
    )


def _split_runs(events: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    runs: list[list[Mapping[str, Any]]] = []
    for event in events:
        if parse_number(event.get("time")) is None:
            continue
        if not runs or event.get("event") in RUN_STARTS:
            runs.append([])
        runs[-1].append(event)
    return runs


def _end_of(run: Sequence[Mapping[str, Any]]) -> float:
    """The last release of a run; its last event where there is none, or where a trial still holds a slot."""
    held: set[Any] = set()
    last_release = None
    for event in run:
        if event.get("event") == "trial_leased":
            held.add(event.get("trial"))
        elif event.get("event") == "trial_released":
            held.discard(event.get("trial"))
            last_release = _time_of(event)
    return max(map(_time_of, run)) if held or last_release is None else last_release


def _time_of(event: Mapping[str, Any]) -> float:
    return parse_number(event.get("time")) or 0.0


def _ready_executors(events: Iterable[Mapping[str, Any]], clock: _Clock) -> dict[int, set[str]]:
    """The executors that were ready, by the number of the run."""
    found: dict[int, set[str]] = defaultdict(set)
    for event in events:
        if event.get("event") == "executor_ready":
            name = executor_name(event.get("hostname"), event.get("executor"))
            found[clock.run_of(_time_of(event))].add(name)
    return found


def _slot_seconds(spans: Sequence[Span], lanes: Sequence[str], ready: Mapping[int, set[str]]) -> float:
    """Seconds of the slots of each run's executors, from its first lease to its last release."""
    total_s = 0.0
    for run in {span.run for span in spans}:
        held = [span for span in spans if span.run == run]
        executors = {span.executor for span in held} | ready.get(run, set())
        num_slots = sum(lane.rpartition(SLOT)[0] in executors for lane in lanes)
        total_s += num_slots * (max(span.end_s for span in held) - min(span.start_s for span in held))
    return total_s


def _spans_of_leases(events: Iterable[Mapping[str, Any]], clock: _Clock) -> Iterable[Span]:
    held: dict[str, tuple[str, float]] = {}
    for event in events:
        name, trial, time = event.get("event"), str(event.get("trial")), parse_number(event.get("time"))
        if name not in ("trial_leased", "trial_released", *RUN_STARTS) or time is None:
            continue
        if name in RUN_STARTS:
            # What an earlier run left open ended with it.
            yield from (_span(lease, clock, is_open=False) for lease in _close_all(held, clock))
            held.clear()
            continue
        if trial in held:
            executor, start = held.pop(trial)
            yield _span((trial, executor, start, time), clock, is_open=False)
        if name == "trial_leased":
            held[trial] = (executor_name(event.get("hostname"), event.get("executor")), time)
    yield from (_span(lease, clock, is_open=True) for lease in _close_all(held, clock))


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
        name = executor_name(trial.hostname, executors.get(trial.id))
        if end > start:
            yield _span((trial.id, name, start, end), clock, is_open=trial.closed_at is None)


def _span(held: tuple[str, str, float, float], clock: _Clock, *, is_open: bool) -> Span:
    trial, executor, start, end = held
    return Span(trial, executor, clock.at(start), clock.at(end), is_open, run=clock.run_of(start))


def executor_name(hostname: Any, executor: Any) -> str:
    """What an executor is called: its host and its number."""
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
        lanes += [f"{executor}{SLOT}{index + 1}" for index in range(len(free_at))]
    return lanes, placed
