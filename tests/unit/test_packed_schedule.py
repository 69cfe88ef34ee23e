"""Learning rates against transformers' schedulers, and loss scales against torch's GradScaler."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import get_scheduler

from qlora_ray.config.schema import Training
from qlora_ray.training.budget import warmup_steps
from qlora_ray.training.packed.schedule import GROWTH_INTERVAL, INITIAL_SCALE, LossScale, rate_factor


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_every_steps_rate_is_that_of_transformers(kind: str, warmup_ratio: float, num_steps: int) -> None:
    training = Training(lr_scheduler_type=kind, warmup_ratio=warmup_ratio, learning_rate=3e-4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    # docs/configuration.md: each after the warm-up. The "constant" of transformers would ignore it.
    warmup = warmup_steps(training, num_steps)
    name = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps)
    for position in range(num_steps + 1):
        factor = rate_factor(training, position=position, num_steps=num_steps)
        assert training.learning_rate * factor == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-20)
        optimizer.step()
        scheduler.step()


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
