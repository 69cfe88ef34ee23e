"""A sweep's figures as gauges of Ray's metrics, which Prometheus collects from every Ray node (ray.util.metrics).

Ray puts `ray_` before the names. cluster/grafana.json is a board of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from qlora_ray.runs.live import LiveFigures, LiveTrialState
from qlora_ray.runs.records import TrialStatus

# Every gauge has the sweep's name; trials are counted by state too.
SWEEP, STATE = "sweep", "state"
# What a running trial does stands in place of the one word `running`.
STATES = (*LiveTrialState, *(status for status in TrialStatus if status is not TrialStatus.RUNNING))


class GaugeName(StrEnum):
    """The gauges, as Ray is given them."""

    SLOTS_USED = "qlora_ray_slots_used"
    WAITING_TRIALS = "qlora_ray_waiting_trials"
    TOKENS_PER_S = "qlora_ray_tokens_per_second"
    BEST_VALUE = "qlora_ray_best_value"
    TRIALS = "qlora_ray_trials"
    GPU_HOURS = "qlora_ray_gpu_hours"


DESCRIPTIONS = {
    GaugeName.SLOTS_USED: "Slots that hold a trial.",
    GaugeName.WAITING_TRIALS: "Trials that wait for a slot.",
    GaugeName.TOKENS_PER_S: "Tokens that all running trials train per second.",
    GaugeName.BEST_VALUE: "The first objective of the best complete trial.",
    GaugeName.TRIALS: "Trials by state.",
    GaugeName.GPU_HOURS: "Hours that executors have held devices; of CPUs where there is no GPU.",
}


class Gauge(Protocol):
    """What a gauge of Ray's does."""

    def set(self, value: float, tags: dict[str, str]) -> None:
        """Sets its value for these tags."""


class SweepGauges:
    """The gauges of one sweep. Ray must be up.

    Args:
        sweep: The sweep's name.
        make: Makes a gauge of a name, a description and the names of its tags; tests give their own.
    """

    def __init__(self, sweep: str, *, make: Callable[..., Gauge] | None = None) -> None:
        self._sweep = sweep
        make = make or _make_gauge
        self._gauges = {
            name: make(name.value, DESCRIPTIONS[name], (SWEEP, STATE) if name is GaugeName.TRIALS else (SWEEP,))
            for name in GaugeName
        }

    def publish(self, figures: LiveFigures, *, counts: Mapping[str, int], best: float | None) -> None:
        """Sets all gauges; takes no time worth naming, since Ray sends them on a thread of its own.

        Args:
            figures: What the sweep does right now.
            counts: Trials by state, as the ledger has them.
            best: The first objective of the best complete trial; None while there is none.
        """
        running = figures.trials.values()
        self._set(GaugeName.SLOTS_USED, figures.slots_used)
        self._set(GaugeName.WAITING_TRIALS, figures.waiting)
        self._set(GaugeName.TOKENS_PER_S, sum(trial.tokens_per_s or 0.0 for trial in running))
        self._set(GaugeName.GPU_HOURS, figures.gpu_hours)
        if best is not None:
            self._set(GaugeName.BEST_VALUE, best)
        # The empty ones too: a gauge keeps its last value.
        by_state: dict[str, int] = {**dict.fromkeys(STATES, 0), **{s: counts[s] for s in STATES if s in counts}}
        for trial in running:
            by_state[trial.state] += 1
        for state in STATES:
            self._set(GaugeName.TRIALS, by_state[state], **{STATE: state.value})

    def _set(self, name: GaugeName, value: float, **tags: str) -> None:
        self._gauges[name].set(float(value), {SWEEP: self._sweep, **tags})


def _make_gauge(name: str, description: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge as RayGauge

    return RayGauge(name, description, tag_keys=tags)
