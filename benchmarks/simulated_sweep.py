"""A sweep's folder that grows as that of a real one, written by the code that writes real ones; nothing is trained."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from typing import Any

import optuna

from qlora_ray.config.documents import Document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs import SweepPaths, append_line
from qlora_ray.runs.live import LiveExecutor, LiveFigures, LivePhase, LiveTrial, LiveTrialState, write_live
from qlora_ray.runs.records import TrialStatus, write_record
from qlora_ray.search.parsing import parse_space
from qlora_ray.search.study import open_study
from tests.sweep_records import GIB, NUM_STEPS, SAMPLES_PER_STEP, make_facts, make_manifest, make_ran

NUM_REPORTS = 4
STEPS_PER_REPORT = NUM_STEPS // NUM_REPORTS
SLOTS_PER_EXECUTOR = 8
# A point of the training loss every few steps, as training.logging_steps says.
LOGGING_STEPS = 10
OPTUNA_STATES = {TrialStatus.COMPLETE: "COMPLETE", TrialStatus.PRUNED: "PRUNED", TrialStatus.FAILED: "FAIL"}
SPACE = {
    "lora.r": {"choices": [4, 8, 16, 32]},
    "lora.alpha_ratio": {"choices": [0.5, 1.0, 2.0]},
    "lora.lora_dropout": {"low": 0.0, "high": 0.2},
    "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
}


@dataclass
class _Running:
    entry: TrialEntry
    executor: int
    lease: int
    start: float
    reports: int = 0
    points: list[tuple[int, float]] = field(default_factory=list)


class SimulatedSweep:
    """A sweep with many trials at once, on a clock of its own while its past is written, then on the real one.

    Args:
        paths: Its folder, which is made.
        num_planned: Trials that it says it will have; it goes on for as long as it is asked to.
        num_running: Trials at once, as many as there are slots.
        report_s: Seconds between two reports of a trial.
        seed: Of all that is drawn.
    """

    def __init__(
        self, paths: SweepPaths, *, num_planned: int, num_running: int, report_s: float, seed: int = 7
    ) -> None:
        self._paths = paths
        self._random = random.Random(seed)
        self._num_running = num_running
        self._report_s = report_s
        self._config = SweepConfig.model_validate({"search": {"num_trials": num_planned}})
        self._facts = make_facts(self._config)
        self._running: list[_Running] = []
        self._free = list(range(num_running))
        self._num_leases = 0
        self._past: list[optuna.trial.FrozenTrial] = []
        self.num_opened = 0
        self.num_ended = 0
        paths.create()
        write_record(
            paths.manifest,
            make_manifest(self._config, space=SPACE, folder=str(paths.root.parent), facts=self._facts),
        )
        self._space = parse_space(Document("space", dict(SPACE)), self._config)

    def write_past(self, num_trials: int) -> None:
        """Writes what led to `num_trials` trials, of which the last ones still run, as if it had ended just now."""
        duration_s = num_trials / self._num_running * self._report_s * 2.2 + 2 * self._report_s
        now = time.time() - duration_s
        self._event(now, "sweep_started", reason="simulated")
        for executor in range(math.ceil(self._num_running / SLOTS_PER_EXECUTOR)):
            self._event(now, "executor_ready", executor=executor, hostname=f"node-{executor // 4}")
        step_s = self._report_s / 50
        while self.num_opened < num_trials:
            now += step_s
            self.advance(now, limit=num_trials)
        # What is left of the time between its last report and now.
        for trial in self._running:
            trial.start += time.time() - now
        study = open_study(self._paths.study, name="simulated", search=self._config.search, space=self._space)
        study.add_trials(self._past)
        self._past = []
        self.write_live()

    def advance(self, now: float, *, limit: int | None = None) -> None:
        """Brings all trials up to a time: reports, ends, and new trials in the slots that are free."""
        for trial in list(self._running):
            if now - trial.start >= (trial.reports + 1) * self._report_s:
                self._report(trial, now)
        while self._free and (limit is None or self.num_opened < limit):
            self._open(now)

    def write_live(self) -> None:
        """Replaces live.json by how its trials are now."""
        now = time.time()
        trials = {one.entry.id: self._live_trial(one, now) for one in self._running}
        executors = []
        for number in range(math.ceil(self._num_running / SLOTS_PER_EXECUTOR)):
            held = tuple(one.entry.id for one in self._running if one.executor == number)
            executors.append(
                LiveExecutor(
                    executor=number,
                    device="Simulated A100-40",
                    device_class="A100-40",
                    hostname=f"node-{number // 4}",
                    gpu_ids=(number % 4,),
                    state="ready",
                    slots=SLOTS_PER_EXECUTOR,
                    trials=held,
                    memory_bytes=int(GIB * self._random.uniform(18, 31)),
                    planned_memory_bytes=30 * GIB,
                    total_memory_bytes=40 * GIB,
                    busy_share=self._random.uniform(0.9, 0.99),
                )
            )
        figures = LiveFigures(
            time=now,
            phase=LivePhase.SEARCH,
            eta_s=3600.0,
            search_eta_s=3000.0,
            scoring_eta_s=500.0,
            num_planned=self._config.search.num_trials,
            gpu_hours=12.5,
            device_kind="cuda",
            slots=self._num_running,
            slots_used=len(self._running),
            trials=trials,
            executors=tuple(executors),
        )
        write_live(self._paths, figures)

    def _open(self, now: float) -> None:
        entry = TrialEntry(self.num_opened, self._draw(), now)
        self.num_opened += 1
        slot = self._free.pop()
        self._num_leases += 1
        trial = _Running(entry, slot // SLOTS_PER_EXECUTOR, slot, now + self._random.uniform(0, 0.3 * self._report_s))
        self._running.append(trial)
        entry.facts = make_ran(self._config, entry.params, number=entry.number)
        self._event(now, "trial_opened", reason="asked of the study", trial=entry.id, params=entry.params)
        self._write_record(entry)
        self._event(now, "trial_leased", reason="a slot is free", **self._lease_of(trial))

    def _report(self, trial: _Running, now: float) -> None:
        entry = trial.entry
        trial.reports += 1
        loss = self._loss(entry, trial.reports)
        entry.intermediate[trial.reports] = loss
        entry.metrics = {
            "eval_loss": loss,
            "samples_seen": SAMPLES_PER_STEP * STEPS_PER_REPORT * trial.reports,
            "step": STEPS_PER_REPORT * trial.reports,
            "train_s": self._report_s,
            "tokens_per_s": self._random.uniform(1500, 2500),
            "peak_memory_bytes": int(GIB * self._random.uniform(18, 31)),
        }
        entry.train_s += self._report_s
        entry.tokens += self._report_s * entry.metrics["tokens_per_s"]
        first = STEPS_PER_REPORT * (trial.reports - 1)
        points = [
            (first + at, loss * (1.3 - 0.3 * at / STEPS_PER_REPORT)) for at in range(0, STEPS_PER_REPORT, LOGGING_STEPS)
        ]
        line = {"report_index": trial.reports, "time": now, **entry.metrics, "train_losses": points}
        append_line(self._paths.trial(entry.id).metrics, line)
        self._event(now, "trial_reported", trial=entry.id, report_index=trial.reports, executor=trial.executor)
        is_stopped = self._random.random() < (0.75 if loss > 0.6 else 0.1)
        if trial.reports == NUM_REPORTS or is_stopped:
            self._end(trial, now, TrialStatus.COMPLETE if trial.reports == NUM_REPORTS else TrialStatus.PRUNED)

    def _end(self, trial: _Running, now: float, state: TrialStatus) -> None:
        entry = trial.entry
        entry.state = state
        entry.cause = f"stopped by asha at report {trial.reports}" if state is TrialStatus.PRUNED else None
        self._running.remove(trial)
        self._free.append(trial.lease)
        self._write_record(entry, closed_at=now)
        self._event(now, "trial_released", reason="it has ended", **self._lease_of(trial))
        self._event(now, f"trial_{state}", reason=entry.cause or "", trial=entry.id, metrics=entry.metrics)
        self.num_ended += 1
        self._past.append(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[OPTUNA_STATES[state]],
                value=entry.metrics["eval_loss"] if state is TrialStatus.COMPLETE else None,
                params=self._space.encode(entry.params),
                distributions=self._space.distributions(),
                intermediate_values=entry.intermediate,
            )
        )

    def _event(self, now: float, event: str, *, reason: str = "", **facts: Any) -> None:
        # Times of the past: EventLog writes that of now.
        append_line(self._paths.events, {"time": round(now, 3), "event": event, "reason": reason, **facts})

    def _lease_of(self, trial: _Running) -> dict[str, Any]:
        hostname = f"node-{trial.executor // 4}"
        return {"trial": trial.entry.id, "executor": trial.executor, "hostname": hostname, "lease": self._num_leases}

    def _write_record(self, entry: TrialEntry, *, closed_at: float | None = None) -> None:
        paths = self._paths.trial(entry.id)
        paths.root.mkdir(exist_ok=True)
        write_record(paths.record, entry.to_record(adapter=paths.adapter, common=self._facts, closed_at=closed_at))

    def _draw(self) -> dict[str, Any]:
        draw = self._random
        return {
            "lora.r": draw.choice([4, 8, 16, 32]),
            "lora.alpha_ratio": draw.choice([0.5, 1.0, 2.0]),
            "lora.lora_dropout": draw.uniform(0, 0.2),
            "training.learning_rate": 10 ** draw.uniform(-5, -2),
        }

    def _loss(self, entry: TrialEntry, report: int) -> float:
        """Lowest at a learning rate of 1e-3, lower with rank and reports."""
        distance = abs(math.log10(entry.params["training.learning_rate"]) + 3)
        level = 0.08 + 0.25 * distance + 0.02 * (5 - math.log2(entry.params["lora.r"]))
        return level * (1 + 1.5 / report) * self._random.uniform(0.95, 1.05)

    def _live_trial(self, trial: _Running, now: float) -> LiveTrial:
        share = min(1.0, max(0.0, (now - trial.start) / self._report_s - trial.reports))
        return LiveTrial(
            state=LiveTrialState.TRAINING if share < 0.9 else LiveTrialState.EVALUATING,
            step=int(STEPS_PER_REPORT * (trial.reports + share)),
            num_steps=NUM_STEPS,
            train_loss=self._loss(trial.entry, max(1, trial.reports)),
            eval_loss=trial.entry.metrics.get("eval_loss"),
            tokens_per_s=self._random.uniform(1500, 2500),
            executor=trial.executor,
        )
