"""What a report says of training besides the loss on validation rows: peak memory, and the curve of the loss."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ray.modeling.device_memory import peak_memory_bytes
from qlora_ray.training.checkpoint import TrialState

# Digits of a point: a curve is looked at, not computed with.
DIGITS = 6

# Of a report's metrics, and of the pending metrics that training leaves for a report.
PEAK_METRIC = "peak_memory_bytes"


def reported_peak_bytes(state: TrialState, *, device: str) -> float:
    """A report's peak: of the training to it and of its evaluation, which may be another process's.

    Args:
        state: The state whose report is pending.
        device: Where it is evaluated.
    """
    return max(state.pending_metrics.get(PEAK_METRIC, 0), peak_memory_bytes(device))


def thin_losses(losses: Sequence[float], *, last_step: int, every: int) -> list[tuple[int, float]]:
    """Means of successive steps' losses, as (step, mean) at each multiple of `every` and at the last step.

    A point is the mean of the steps since the one before, as transformers logs it. A report ends a mean, so that a
    trial that goes on from there has the same points as one that was never interrupted.

    Args:
        losses: Of the steps up to the last one, in nats per answer token.
        last_step: The report's step, counted from 1.
        every: `training.logging_steps`.
    """
    points: list[tuple[int, float]] = []
    since: list[float] = []
    for step, loss in enumerate(losses, start=last_step - len(losses) + 1):
        since.append(loss)
        if step % every == 0 or step == last_step:
            points.append((step, float(f"{sum(since) / len(since):.{DIGITS}g}")))
            since = []
    return points
