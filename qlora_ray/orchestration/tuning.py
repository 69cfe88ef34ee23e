"""Ray Tune over light trials: the gate between pool and searcher, and a quiet run."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from qlora_ray.config.schema import Search
from qlora_ray.orchestration.leased_trial import TrialTerms
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.schedulers import make_scheduler
from qlora_ray.orchestration.searcher import StudySearcher
from qlora_ray.orchestration.trial import SweepTrial
from qlora_ray.runs.paths import trial_id_of

# Tune refuses a request of exactly nothing.
TRIAL_CPUS = 0.001
EVENT_POLL_S = 1.0
SNAPSHOT_PERIOD_S = 24 * 3600


class Gate(tune.Callback, tune.Stopper):
    """Where Tune's loop meets the rest: counts live trials for the searcher, enters reports, gives the slots of ended
    trials back, and can stop all."""

    def __init__(self, searcher: StudySearcher, ledger: Ledger, pool: Any) -> None:
        self._searcher = searcher
        self._ledger = ledger
        self._pool = pool
        self.stop_reason: str | None = None
        self.is_interrupted = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Paused trials hold no slot: they do not count."""
        self._searcher.num_live = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in trials)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Enters the report before its trial is judged."""
        self._searcher.enter_report(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Gives the slot back at once: Tune keeps the actor for a next trial, which may never come."""
        self._pool.end.remote(trial_id_of(trial.config["number"]))

    on_trial_error = on_trial_complete

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped from here."""
        return False

    def stop_all(self) -> bool:
        """Whether the whole search ends now."""
        return self.is_interrupted or self.stop_reason is not None


class EventPump:
    """Brings the pool's events into the ledger, and its slots to the searcher, on a thread."""

    def __init__(self, pool: Any, *, ledger: Ledger, searcher: StudySearcher, gate: Gate, num_executors: int) -> None:
        self._pool = pool
        self._ledger = ledger
        self._searcher = searcher
        self._gate = gate
        self._num_executors = num_executors
        self._seen = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pool-events", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stops listening."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._read(EVENT_POLL_S)
            except ray.exceptions.RayError as error:
                self._stop(f"the pool is gone: {error}")
                return
        # What came since the last look.
        with contextlib.suppress(ray.exceptions.RayError):
            self._read(0)

    def _read(self, timeout_s: float) -> None:
        events = ray.get(self._pool.next_events.remote(self._seen, timeout_s))
        self._seen += len(events)
        for event in events:
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        self._searcher.num_slots = max(1, event["ready_slots"])
        name, reason = event.pop("event"), event.pop("reason")
        self._ledger.note(name, reason=reason, line=_line_of(name, reason, event), **event)
        if event["num_failed"] == self._num_executors:
            self._stop(reason)

    def _stop(self, reason: str) -> None:
        """Ends the search; trials it cuts off are interrupted, not pruned."""
        self._ledger.is_stopping = True
        self._gate.stop_reason = reason
        self._ledger.note("search_stopped", reason=reason, line=f"the search ends: {reason}")


def _line_of(name: str, reason: str, event: dict[str, Any]) -> str | None:
    """What the user reads of a pool's event; None for what goes as planned."""
    executor = f"executor {event['executor']}"
    lines = {
        "executor_lost": f"{executor} lost, starting another: {reason}",
        "executor_failed": f"{executor} given up: {reason}",
        "slots_changed": f"{executor} has {event.get('slots')} slots from now on: {reason}",
        "trial_preempted": f"trial {event.get('trial')} preempted on {executor} for memory; "
        "it goes on in the next free slot",
    }
    return lines.get(name)


def run_trials(
    terms: TrialTerms, *, pool: Any, searcher: StudySearcher, gate: Gate, search: Search, logs: Path
) -> None:
    """Runs the search to its end; what came of it is in the ledger and the study.

    Args:
        terms: What each trial actor is told.
        pool: The pool's actor.
        searcher: Asks the study for settings.
        gate: Holds trials back while no slot is free, and stops the search.
        search: The config section `search`.
        logs: Where Tune's own files go.
    """
    os.environ.update(
        {
            # Our ledger writes what Tune's CSV, JSON and TensorBoard loggers would, once.
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            # Ctrl-C is ours: trials are told as interrupted, not as failed.
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            # Actors that start at once, each a second or two of one core. No more than slots: a trial that found its
            # actor first would take the slot of one that was asked for before it.
            "TUNE_MAX_PENDING_TRIALS_PG": str(min(searcher.num_slots, os.cpu_count() or 1)),
            # Nobody restores Tune's own snapshot: a resume reads the study, the records and the trials' states.
            "TUNE_GLOBAL_CHECKPOINT_S": str(SNAPSHOT_PERIOD_S),
            "TUNE_RESULT_BUFFER_LENGTH": "1",
            "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
            "RAY_AIR_NEW_OUTPUT": "0",
        }
    )
    trainable = tune.with_resources(tune.with_parameters(SweepTrial, terms=terms, pool=pool), {"cpu": TRIAL_CPUS})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode=searcher.mode,
            search_alg=searcher,
            scheduler=make_scheduler(search),
            num_samples=-1,
            reuse_actors=True,
            # Tune's default names hold every parameter, and grow too long for a file system.
            trial_dirname_creator=lambda trial: trial_id_of(trial.config["number"]),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(logs.resolve()),
            callbacks=[gate],
            stop=gate,
            # Tune would save each trial at its end, a call that nobody reads the result of.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # A light trial actor that dies with its node is started again; its executor and state are elsewhere.
            failure_config=tune.FailureConfig(max_failures=terms.config.cluster.max_trial_retries),
            verbose=0,
        ),
    )
    tuner.fit()
