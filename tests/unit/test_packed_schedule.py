"""Learning rates against transformers' schedulers, and loss scales against torch's GradScaler."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from qlora_ray.config.schema import Training
from qlora_ray.errors import ConfigError
from qlora_ray.training.budget import make_budget, warmup_steps
from qlora_ray.training.packed.schedule import GROWTH_INTERVAL, INITIAL_SCALE, LossScale, rate_factor
from qlora_ray.training.schedules import check_schedule, schedule_options

KINDS = {
    "linear": {},
    "cosine": {"num_cycles": 0.5},
    "constant": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "polynomial": {"power": 2.0, "lr_end": 1e-5},
    "inverse_sqrt": {"timescale": 50},
    "warmup_stable_decay": {"num_decay_steps": 2},
}


def transformers_rates(training: Training, options: dict[str, Any], *, num_steps: int) -> list[float]:
    """The rates of transformers' own scheduler, stepped one by one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    # docs/configuration.md: each after the warm-up. The "constant" of transformers would ignore it.
    kind = training.lr_scheduler_type
    scheduler = get_scheduler(
        "constant_with_warmup" if kind == "constant" else kind,
        optimizer,
        num_warmup_steps=warmup_steps(training, num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=options,
    )
    rates = []
    for _ in range(num_steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [3, 7, 100])
def test_every_steps_rate_is_that_of_transformers(kind: str, warmup_ratio: float, num_steps: int) -> None:
    if kind == "polynomial" and warmup_ratio == 1.0:
        with pytest.raises(ConfigError, match="polynomial needs steps after its warm-up"):
            check_schedule(Training(lr_scheduler_type=kind, warmup_ratio=1.0), num_steps=num_steps)
        return
    # Options of all schedules at once, as where schedules are searched: each takes its own.
    every = {name: value for options in KINDS.values() for name, value in options.items() if name not in KINDS[kind]}
    training = Training(
        lr_scheduler_type=kind,
        lr_scheduler_kwargs={**every, **KINDS[kind]},
        warmup_ratio=warmup_ratio,
        learning_rate=3e-4,
    )
    rates = transformers_rates(training, schedule_options(training), num_steps=num_steps)
    assert KINDS[kind].items() <= schedule_options(training).items()
    for position, rate in enumerate(rates):
        factor = rate_factor(training, position=position, num_steps=num_steps)
        assert training.learning_rate * factor == pytest.approx(rate, rel=1e-12, abs=1e-20)


def test_warmup_steps_override_the_ratio_and_must_leave_steps() -> None:
    training = Training(warmup_ratio=0.5, warmup_steps=2, max_samples=80)
    assert warmup_steps(training, 10) == 2
    assert rate_factor(training, position=1, num_steps=10) == 0.5
    make_budget(training, num_train_rows=80, num_reports=2)
    with pytest.raises(ConfigError, match="fewer than the trial's 10 optimizer steps, got 10"):
        make_budget(training.model_copy(update={"warmup_steps": 10}), num_train_rows=80, num_reports=2)


@pytest.mark.parametrize(
    ("kind", "option"), [("cosine_with_min_lr", "min_lr_rate"), ("warmup_stable_decay", "num_decay_steps")]
)
def test_a_schedule_says_which_option_it_lacks(kind: str, option: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind} needs .*{option}"):
        check_schedule(Training(lr_scheduler_type=kind), num_steps=9)
    check_schedule(Training(lr_scheduler_type=kind, lr_scheduler_kwargs={option: 1}), num_steps=9)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("polynomial", {"lr_end": 2e-4}, "must be smaller than initial lr"),
        ("cosine_with_min_lr", {"min_lr": 1e-6, "min_lr_rate": 0.1}, "Only one of min_lr or min_lr_rate"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "warmup_type": "liner"}, "Unknown warmup type: liner"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "min_lr_ratio": "low"}, "got: "),
    ],
)
def test_options_that_make_no_schedule_are_found_before_a_trial_has_it(
    kind: str, options: dict[str, Any], words: str
) -> None:
    training = Training(lr_scheduler_type=kind, lr_scheduler_kwargs=options, learning_rate=1e-4)
    with pytest.raises(ConfigError, match=f"must make a schedule {kind} .*{words}"):
        check_schedule(training, num_steps=9)


def drive_gradscaler(scaler: torch.amp.GradScaler, *, overflowed: bool) -> None:
    """One step of a GradScaler whose gradient is finite, or is not."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler.scale(parameter.sum()).backward()
    if overflowed:
        parameter.grad.fill_(float("inf"))
    scaler.step(optimizer)
    scaler.update()


def test_a_loss_scale_begins_as_gradscaler_does() -> None:
    scaler = torch.amp.GradScaler("cpu")
    drive_gradscaler(scaler, overflowed=False)
    scale = LossScale()
    assert scale.scale == INITIAL_SCALE == scaler.get_scale()
    scale.update(overflowed=False)
    assert scale.to_dict() == scaler.state_dict()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_scale_follows_gradscaler_step_by_step(seed: int) -> None:
    scaler, scale = torch.amp.GradScaler("cpu"), LossScale()
    draw = random.Random(seed)
    scaler.scale(torch.ones(1))
    # Both a step before they grow, and now and then an overflow.
    scale.growth_tracker = GROWTH_INTERVAL - 1
    scaler.load_state_dict(scale.to_dict())
    for _ in range(200):
        overflowed = draw.random() < 0.2
        drive_gradscaler(scaler, overflowed=overflowed)
        scale.update(overflowed=overflowed)
        assert scale.to_dict() == scaler.state_dict()
        if draw.random() < 0.05:
            scale.growth_tracker = GROWTH_INTERVAL - 1
            scaler.load_state_dict(scale.to_dict())


def test_a_loss_scale_doubles_after_a_whole_interval_and_an_overflow_halves_it() -> None:
    scale = LossScale()
    for _ in range(GROWTH_INTERVAL - 1):
        scale.update(overflowed=False)
    assert scale.scale == INITIAL_SCALE
    scale.update(overflowed=False)
    assert (scale.scale, scale.growth_tracker) == (2 * INITIAL_SCALE, 0)
    scale.update(overflowed=False)
    scale.update(overflowed=True)
    assert (scale.scale, scale.growth_tracker) == (INITIAL_SCALE, 0)


def test_a_loss_scale_goes_on_from_its_own_record_and_from_gradscalers() -> None:
    scale = LossScale(scale=128.0, growth_tracker=17)
    assert LossScale.from_dict(scale.to_dict()) == scale
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    drive_gradscaler(scaler, overflowed=False)
    assert LossScale.from_dict(scaler.state_dict()) == LossScale(scale=512.0, growth_tracker=1)
