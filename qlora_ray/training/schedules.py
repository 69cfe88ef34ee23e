"""Learning-rate schedules by transformers' names, and the options that each takes: the same for both engines."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from qlora_ray.config.schema import Training
from qlora_ray.errors import ConfigError
from qlora_ray.training.budget import warmup_steps

# What get_scheduler gives every schedule by itself.
GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")


def scheduler_name(training: Training) -> str:
    """transformers' name of the schedule: all of ours have a warm-up, its plain `constant` has none."""
    return "constant_with_warmup" if training.lr_scheduler_type == "constant" else training.lr_scheduler_type


def schedule_options(training: Training) -> dict[str, float | str]:
    """Of `lr_scheduler_kwargs`, what the trial's schedule takes: where schedules are searched, options are of one."""
    if not training.lr_scheduler_kwargs:
        return {}
    known = _options_of(scheduler_name(training))
    return {
        name: int(value) if name.startswith("num_") and name != "num_cycles" else value
        for name, value in training.lr_scheduler_kwargs.items()
        if name in known
    }


def check_schedule(training: Training, *, num_steps: int) -> None:
    """Raises ConfigError for a schedule that lacks an option that it needs, or steps to fall in."""
    options = schedule_options(training)
    if training.lr_scheduler_type == "polynomial" and warmup_steps(training, num_steps) >= num_steps:
        # transformers divides by the steps behind the warm-up.
        raise ConfigError(
            f"training.lr_scheduler_type: polynomial needs steps after its warm-up, got {num_steps} steps of warm-up "
            "alone. Lower training.warmup_ratio, or training.warmup_steps."
        )
    if training.lr_scheduler_type == "cosine_with_min_lr" and not {"min_lr", "min_lr_rate"} & options.keys():
        raise ConfigError(
            "training.lr_scheduler_kwargs: cosine_with_min_lr needs min_lr or min_lr_rate, got neither. "
            "Set training.lr_scheduler_kwargs: {min_lr_rate: 0.1}."
        )
    if training.lr_scheduler_type == "warmup_stable_decay" and "num_decay_steps" not in options:
        raise ConfigError(
            "training.lr_scheduler_kwargs: warmup_stable_decay needs num_decay_steps, got none. "
            "Set it to the last steps in which the rate falls."
        )


@functools.cache
def _options_of(name: str) -> frozenset[str]:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    parameters = inspect.signature(function).parameters
    return frozenset(parameters) - frozenset(GIVEN)
