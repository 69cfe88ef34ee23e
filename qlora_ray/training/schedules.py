"""Learning-rate schedules by transformers' names, and the options that each takes: the same for both engines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from qlora_ray.config.schema import Training
from qlora_ray.errors import ConfigError, first_line
from qlora_ray.training.budget import warmup_steps

# What get_scheduler gives every schedule by itself.
GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
# Those that any warm-up and rate make, where they have no options: then transformers need not be imported to see it.
PLAIN = ("linear", "cosine", "constant")


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
    """Raises ConfigError for a schedule that lacks an option that it needs, or steps to fall in, or that cannot be.

    Found in a trial it would end the step of all trials that share its executor.
    """
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
    if not options and training.lr_scheduler_type in PLAIN:
        return
    try:
        factor = make_factor(training, num_steps=num_steps)
        for position in {0, 1, warmup_steps(training, num_steps), num_steps - 1, num_steps}:
            float(factor(position))
    except (ValueError, TypeError, ArithmeticError) as error:
        why = first_line(error).rstrip(".")
        raise ConfigError(
            f"training.lr_scheduler_kwargs: must make a schedule {training.lr_scheduler_type} of a trial with "
            f"learning_rate {training.learning_rate:g} and {num_steps} steps, got: {why}. "
            "Correct the option, or the search space."
        ) from None


def make_factor(training: Training, *, num_steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied with after so many optimizer steps: transformers' own function of it.

    Raises:
        ValueError, TypeError, ArithmeticError: As transformers does, for options that make no schedule together.
    """
    options = tuple(sorted(schedule_options(training).items()))
    return _make_factor(
        scheduler_name(training), options, training.learning_rate, warmup_steps(training, num_steps), num_steps
    )


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


@functools.cache
def _options_of(name: str) -> frozenset[str]:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    parameters = inspect.signature(function).parameters
    return frozenset(parameters) - frozenset(GIVEN)
