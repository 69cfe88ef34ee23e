"""One admission of a trial to an executor, and where the trial stands between its admission and its eviction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from qlora_ray.training.engine import TrialSpec

if TYPE_CHECKING:
    from qlora_ray.training.checkpoint import TrialState


class Phase(Enum):
    """Where an admitted trial stands. Evicted trials have none: their admission is over."""

    ENTERING = "entering"  # admitted; its adapter is not in the engine's memory yet
    TRAINING = "training"
    EVALUATING = "evaluating"  # it has trained to a report, which is being made
    REPORTED = "reported"  # it waits to be told to go on
    PREEMPTED = "preempted"  # put off the device; it leaves once its state is written, or cannot be
    ENDED = "ended"  # it trains no further, whatever it is told


@dataclass(eq=False)
class Admission:
    """A trial from its admission to its eviction. A trial that comes again has another admission.

    Attributes:
        state: What it enters the engine with; None for one that starts afresh.
    """

    spec: TrialSpec
    state: TrialState | None = None
    phase: Phase = Phase.ENTERING

    @property
    def is_running(self) -> bool:
        """Whether the engine has work to do for it: it trains, or its report is being made."""
        return self.phase in (Phase.TRAINING, Phase.EVALUATING)
