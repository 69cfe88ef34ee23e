"""The live figures of a sweep, from its ledger and what its pool says of the executors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from qlora_ray.hardware import Plan
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.live.outlook import Outlook, RowCounts, Scene, TimeLeft
from qlora_ray.orchestration.search_budget import SearchBudget
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.preflight.checks import Preflight
from qlora_ray.runs.live import LiveExecutor, LiveFigures, LivePhase, LiveTrial
from qlora_ray.runs.typed_json import parse_record
from qlora_ray.scoring.metrics.choice import resolve_data_metrics
from qlora_ray.training.budget import count_samples

# The pool answers within its own time limit for executors; one that does not is busy or dead, which others find out.
POOL_TIMEOUT_S = 5.0
# States of a seat in which an executor holds its device.
HOLDING = ("starting", "ready", "draining")
SECONDS_PER_HOUR = 3600.0


class LiveCollector:
    """Makes the figures at each look. Used by one thread at a time.

    Args:
        ledger: The books.
        pool: The pool's actor.
        outlook: Estimates the time left.
        device_kind: `cuda` or `cpu`: what the hours are of.
        earlier_hours: Device-hours of the runs that this one goes on with.
        budget: Is told of the hours; None: nobody is.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        pool: Any,
        *,
        outlook: Outlook,
        device_kind: str,
        earlier_hours: float = 0.0,
        budget: SearchBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._pool = pool
        self._outlook = outlook
        self._device_kind = device_kind
        self._hours = earlier_hours
        self._budget = budget
        self._clock = clock
        self._answer: Mapping[str, Any] = {"seats": [], "waiting": []}
        self._looked_at: float | None = None

    def collect(self, phase: LivePhase) -> LiveFigures:
        """The figures of this moment; where the pool does not answer, its last answer stands."""
        with contextlib.suppress(RayError):
            self._answer = ray.get(self._pool.live.remote(), timeout=POOL_TIMEOUT_S)
        return self._make_figures(phase)

    def conclude(self) -> LiveFigures:
        """The figures at the end of the sweep; the pool is asked nothing more."""
        return self._make_figures(LivePhase.ENDED)

    def _make_figures(self, phase: LivePhase) -> LiveFigures:
        seats: Sequence[Mapping[str, Any]] = self._answer["seats"]
        now = self._clock()
        self._count_hours(seats, now)
        # Before the books are copied: a trial that the search opens in between is in both, or in the books alone.
        running = self._ledger.running()
        entries = dict(self._ledger.entries)
        trials = _describe_trials(running, seats)
        executors = tuple(_describe_executor(seat) for seat in seats)
        told = {seat["executor"]: seat["live"].get("scoring") for seat in seats if seat["live"]}
        left = self._outlook.look(
            Scene(
                now=now,
                phase=phase,
                num_planned=self._ledger.num_planned,
                entries=entries,
                trials=trials,
                executors=executors,
                scoring={executor: part for executor, part in told.items() if part},
                is_finishing=self._ledger.is_finishing,
            )
        )
        ready = [seat for seat in seats if seat["state"] == "ready"]
        return LiveFigures(
            time=round(time.time(), 3),
            phase=phase,
            **_round(left),
            num_planned=self._ledger.num_planned,
            gpu_hours=round(self._hours, 6),
            device_kind=self._device_kind,
            slots=sum(seat["slots"] for seat in ready),
            slots_used=sum(seat["used"] for seat in ready),
            waiting=len(self._answer["waiting"]),
            trials=trials,
            executors=executors,
            scoring=self._outlook.scoring.describe(self._outlook.work, eta_s=left.scoring_s),
        )

    def _count_hours(self, seats: Sequence[Mapping[str, Any]], now: float) -> None:
        """Adds the time since the last look for each device that an executor holds now."""
        devices = {(seat["node_id"], seat["device_id"]) for seat in seats if seat["state"] in HOLDING}
        if self._looked_at is not None:
            self._hours += (now - self._looked_at) * len(devices) / SECONDS_PER_HOUR
        self._looked_at = now
        if self._budget is not None:
            self._budget.note_hours(self._hours, num_devices=len(devices))


def make_collector(
    preflight: Preflight,
    plan: Plan,
    *,
    ledger: Ledger,
    pool: Any,
    earlier: LiveFigures | None,
    budget: SearchBudget,
) -> LiveCollector:
    """Returns the collector of a sweep.

    Args:
        preflight: Has the config and the rows.
        plan: Says what the devices are.
        ledger: The books.
        pool: The pool's actor.
        earlier: The figures of the run that this one goes on with.
        budget: What the search may take.
    """
    config, data = preflight.config, preflight.data
    metrics, _ = resolve_data_metrics(config, data)
    num_verdict = len(data.validation if data.test is None else data.test)
    rows = RowCounts(
        trained=count_samples(config.training, num_train_rows=len(data.train)),
        validation=len(data.validation),
        verdict=num_verdict,
        answered=min(config.evaluate.max_rows or num_verdict, num_verdict) if metrics else 0,
    )
    return LiveCollector(
        ledger,
        pool,
        outlook=Outlook(config.search, top_k=config.evaluate.top_k, rows=rows, budget_left=budget.seconds_left),
        device_kind="cuda" if any(placement.device_kind == "cuda" for placement in plan.placements) else "cpu",
        earlier_hours=earlier.gpu_hours if earlier is not None else 0.0,
        budget=budget,
    )


def _describe_trials(running: Sequence[TrialEntry], seats: Sequence[Mapping[str, Any]]) -> dict[str, LiveTrial]:
    told = {
        trial_id: {**trial, "executor": seat["executor"]}
        for seat in seats
        if seat["live"]
        for trial_id, trial in seat["live"]["trials"].items()
    }
    trials = {}
    for entry in sorted(running, key=lambda entry: entry.number):
        known = {"step": entry.metrics.get("step"), "eval_loss": entry.metrics.get("eval_loss")}
        now = {name: value for name, value in told.get(entry.id, {}).items() if value is not None}
        trials[entry.id] = parse_record(LiveTrial, {**known, **now})
    return trials


def _describe_executor(seat: Mapping[str, Any]) -> LiveExecutor:
    live = seat["live"] or {}
    return parse_record(
        LiveExecutor,
        {
            **{name: seat[name] for name in ("executor", "device", "device_class", "hostname", "node_id", "state")},
            "slots": seat["slots"],
            "trials": seat["trials"],
            "planned_memory_bytes": seat["estimated_memory_bytes"],
            **{name: live.get(name) for name in ("gpu_ids", "memory_bytes", "total_memory_bytes", "busy_share")},
        },
    )


def _round(left: TimeLeft) -> dict[str, float | None]:
    named = {"search_eta_s": left.search_s, "scoring_eta_s": left.scoring_s, "eta_s": left.total_s}
    return {name: None if value is None else round(value, 1) for name, value in named.items()}
