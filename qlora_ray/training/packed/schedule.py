"""Learning-rate schedules and loss scales, a number per trial: no trial's steps move another's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from qlora_ray.config.schema import Training
from qlora_ray.training.budget import warmup_steps
from qlora_ray.training.schedules import schedule_options, scheduler_name

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
    options = tuple(sorted(schedule_options(training).items()))
    factor = _make_factor(
        scheduler_name(training), options, training.learning_rate, warmup_steps(training, num_steps), num_steps
    )
    return factor(position)


@functools.lru_cache(maxsize=4096)  # it is asked for at every step of every trial
def _make_factor(
    name: str, options: tuple[tuple[str, float | str], ...], learning_rate: float, warmup: int, num_steps: int
) -> Callable[[int], float]:
    import torch
    from transformers import get_scheduler

    # Some schedules read the rate that they begin with.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=num_steps,
        scheduler_specific_kwargs=dict(options),
    )
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


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
