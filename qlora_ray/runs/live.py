"""live.json: what a running sweep does right now. Written by its driver every few seconds, read by the dashboard.

Everything in it is a snapshot that the next one replaces; what must last is in the records and events.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from qlora_ray.errors import RunError
from qlora_ray.runs.files import read_json, write_text
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.typed_json import parse_record, to_json

# Figures come every 2 s. A file server may hold them back for some seconds more, and clocks of nodes differ.
FRESH_S = 30.0


class LivePhase(StrEnum):
    """How far a sweep is."""

    STARTING = "starting"  # Ray, the nodes, the executors with their base
    SEARCH = "search"
    SCORING = "scoring"
    REPORT = "report"
    ENDED = "ended"


class LiveTrialState(StrEnum):
    """What a trial that has not ended does right now."""

    WAITING = "waiting"  # for a slot, or for its adapter to enter the engine
    TRAINING = "training"
    EVALUATING = "evaluating"
    REPORTED = "reported"  # it waits to be told to go on


@dataclass(frozen=True, kw_only=True)
class LiveTrial:
    """A trial that has not ended.

    Attributes:
        step: Optimizer steps it has taken.
        num_steps: Optimizer steps of its whole budget; 0 if unknown.
        train_loss: Of its last step, in nats per answer token.
        eval_loss: Of its last report, in nats per answer token.
        tokens_per_s: Non-padding tokens trained, per second of training since its last report.
        executor: Number of the executor that it is on.
    """

    state: LiveTrialState = LiveTrialState.WAITING
    step: int = 0
    num_steps: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None
    executor: int | None = None


@dataclass(frozen=True, kw_only=True)
class LiveExecutor:
    """An executor and its device.

    Attributes:
        executor: Its number, as in the events.
        device: The device's name, as in the records.
        gpu_ids: Indices of its GPUs on its node.
        state: `starting`, `ready`, `draining`, `aside` or `failed`, as the pool has it.
        slots: Trials that it takes at once.
        trials: Ids of the trials that are on it.
        memory_bytes: In use by its process now: of the GPU, or resident memory on a CPU.
        planned_memory_bytes: What the plan estimates that it needs.
        total_memory_bytes: Of its device.
        busy_share: The share of its time since its first step in which it trained or evaluated.
    """

    executor: int = 0
    device: str = ""
    device_class: str = ""
    hostname: str = ""
    node_id: str = ""
    gpu_ids: tuple[int, ...] = ()
    state: str = ""
    slots: int = 0
    trials: tuple[str, ...] = ()
    memory_bytes: int | None = None
    planned_memory_bytes: int | None = None
    total_memory_bytes: int | None = None
    busy_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class LiveScoring:
    """How far the scoring of the best trials and the base is.

    Attributes:
        what: What is scored, such as `0003 on test`; several, with commas, where executors score at once.
        done: Rows scored, of all that this sweep scores.
        total: Rows that it scores altogether.
        eta_s: Seconds to the end of scoring.
    """

    what: str = ""
    done: int = 0
    total: int = 0
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class LiveFigures:
    """live.json.

    Attributes:
        time: When it was written, in seconds since 1970.
        eta_s: Seconds to the end of the whole sweep; None while nothing can be said.
        search_eta_s: Seconds to the end of the search; 0 after it.
        scoring_eta_s: Seconds that scoring takes from its beginning, or from now once it has begun.
        num_planned: Trials of the sweep.
        gpu_hours: Hours that executors have held devices, idle or not; of CPU devices where `device_kind` is `cpu`.
        slots: Slots of the executors that are ready.
        slots_used: Those that hold a trial.
        waiting: Trials that wait for a slot.
        trials: Trials that have not ended, by id.
    """

    time: float = 0.0
    phase: LivePhase = LivePhase.STARTING
    eta_s: float | None = None
    search_eta_s: float | None = None
    scoring_eta_s: float | None = None
    num_planned: int = 0
    gpu_hours: float = 0.0
    device_kind: str = "cpu"
    slots: int = 0
    slots_used: int = 0
    waiting: int = 0
    trials: Mapping[str, LiveTrial] = field(default_factory=dict)
    executors: tuple[LiveExecutor, ...] = ()
    scoring: LiveScoring | None = None


def write_live(paths: SweepPaths, figures: LiveFigures) -> None:
    """Replaces a sweep's live.json; it is not forced to the disk, since the next one follows within seconds.

    Raises:
        RunError: If it cannot be written.
    """
    write_text(paths.live, json.dumps(to_json(figures), allow_nan=False) + "\n", is_synced=False)


def read_live(paths: SweepPaths) -> LiveFigures | None:
    """A sweep's live figures; None if there are none, or none that can be read.

    Those of a sweep that was killed stay: ask `is_running`.
    """
    try:
        data = read_json(paths.live)
    except RunError:
        return None
    return parse_record(LiveFigures, data) if isinstance(data, dict) else None


def is_running(paths: SweepPaths) -> bool:
    """Whether a process runs the sweep: by its lock, or on another node, whose locks may not be seen here, by new
    figures."""
    if paths.is_held():
        return True
    holder = paths.read_holder()
    if holder is None or holder[0] == socket.gethostname():
        return False
    live = read_live(paths)
    return live is not None and live.phase is not LivePhase.ENDED and abs(time.time() - live.time) < FRESH_S
