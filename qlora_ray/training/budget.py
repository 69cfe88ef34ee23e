"""What a trial may spend: samples, optimizer steps, reports, and the order its samples come in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qlora_ray.config.schema import Training
from qlora_ray.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """A trial's work, fixed before it starts.

    Attributes:
        num_samples: S, samples the sweep grants each trial.
        effective_batch: Samples per optimizer step.
        num_steps: Optimizer steps: S / effective batch, rounded, at least 1.
        report_steps: The steps after which the trial reports: the nearest to S/R, 2S/R, ..., S samples.
    """

    num_samples: int
    effective_batch: int
    num_steps: int
    report_steps: tuple[int, ...]

    def samples_seen(self, step: int) -> int:
        """Samples trained on after a step."""
        return step * self.effective_batch


def make_budget(training: Training, *, num_train_rows: int, num_reports: int) -> Budget:
    """The budget of one trial.

    Args:
        training: The trial's config section `training`.
        num_train_rows: Training rows, which one epoch goes through once.
        num_reports: `search.num_reports`: reports per trial.

    Raises:
        ConfigError: If the trial has fewer optimizer steps than reports.
    """
    num_samples = count_samples(training, num_train_rows=num_train_rows)
    num_steps = max(1, round(num_samples / training.effective_batch))
    if num_steps < num_reports:
        raise ConfigError(
            f"search.num_reports: a trial must have at least as many optimizer steps as reports, got "
            f"{num_steps} steps ({num_samples} samples in batches of {training.effective_batch}) for "
            f"{num_reports} reports. Train for more samples, take smaller batches, or fewer reports."
        )
    if training.warmup_steps is not None and training.warmup_steps >= num_steps:
        raise ConfigError(
            f"training.warmup_steps: must be fewer than the trial's {num_steps} optimizer steps, got "
            f"{training.warmup_steps}. Lower it, or set training.warmup_ratio."
        )
    batches = num_reports * training.effective_batch
    steps = tuple(max(1, round(index * num_samples / batches)) for index in range(1, num_reports + 1))
    return Budget(num_samples, training.effective_batch, num_steps, steps)


def count_samples(training: Training, *, num_train_rows: int) -> int:
    """Samples that a trial trains on if it is not stopped."""
    return training.max_samples or max(1, round(training.num_train_epochs * num_train_rows))


def warmup_steps(training: Training, num_steps: int) -> int:
    """Optimizer steps of warm-up: as given, else warmup_ratio of all, rounded up (as TrainingArguments does)."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil(training.warmup_ratio * num_steps)


def sample_order(*, num_rows: int, num_samples: int, data_seed: int) -> list[int]:
    """Row indices in the order they are seen: whole epochs, each a permutation of its own.

    It depends on the data seed and on nothing else, so that trials of any batch size, on any device, see the
    same samples in the same order.

    Args:
        num_rows: Training rows there are.
        num_samples: Samples that the trial sees.
        data_seed: `training.data_seed`.
    """
    import numpy as np

    order: list[int] = []
    epoch = 0
    while len(order) < num_samples:
        order.extend(np.random.default_rng((data_seed, epoch)).permutation(num_rows).tolist())
        epoch += 1
    return order[:num_samples]
