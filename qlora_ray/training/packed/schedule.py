"""Learning-rate schedules and loss scales, a number per trial: no trial's steps move another's."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_ray.config.schema import Training
from qlora_ray.training.schedules import make_factor

# torch.amp.GradScaler's defaults (torch 2.13).
INITIAL_SCALE = 2.0**16
GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5
GROWTH_INTERVAL = 2000


def rate_factor(training: Training, *, position: int, num_steps: int) -> float:
    """What the learning rate is multiplied with at a step: transformers' own function of it.

    Args:
        training: Has the schedule, its options and its warm-up.
        position: Optimizer steps taken so far.
        num_steps: Steps of the whole trial.
    """
    return make_factor(training, num_steps=num_steps)(position)


@dataclass
class LossScale:
    """One trial's loss scale under fp16: halved when its gradients overflow, doubled after a long time without."""

    scale: float = INITIAL_SCALE
    growth_tracker: int = 0

    def update(self, *, overflowed: bool) -> None:
        """Takes note of a step."""
        if overflowed:
            self.scale *= BACKOFF_FACTOR
            self.growth_tracker = 0
            return
        self.growth_tracker += 1
        if self.growth_tracker == GROWTH_INTERVAL:
            self.scale *= GROWTH_FACTOR
            self.growth_tracker = 0

    def to_dict(self) -> dict[str, float]:
        """As GradScaler.state_dict has it, so that either engine can go on from it."""
        return {
            "scale": self.scale,
            "growth_factor": GROWTH_FACTOR,
            "backoff_factor": BACKOFF_FACTOR,
            "growth_interval": GROWTH_INTERVAL,
            "_growth_tracker": self.growth_tracker,
        }

    @classmethod
    def from_dict(cls, values: dict[str, float]) -> LossScale:
        return cls(values["scale"], int(values["_growth_tracker"]))
