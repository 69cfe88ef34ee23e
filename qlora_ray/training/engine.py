"""What an engine is: the contract that `single` meets, and `packed` will.

This module imports no torch: trial actors, which only pass specs and reports on, stay light.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qlora_ray.config.schema import Lora, Training
from qlora_ray.training.budget import Budget

if TYPE_CHECKING:
    from qlora_ray.data import TokenizedSplit
    from qlora_ray.scoring.scores import Scores
    from qlora_ray.scoring.split import EvaluationSplit
    from qlora_ray.training.checkpoint import TrialState


FailureCause = Literal["diverged", "oom", "error", "lost", "evicted", "unevaluated"]
UNEVALUATED = "trained, not evaluated: out of memory in evaluation at one row"
# Trial id, and whether it has trained all its samples.
TrainedListener = Callable[[str, bool], None]


@dataclass(frozen=True)
class TrialSpec:
    """One trial, resolved: everything its result depends on besides base and data."""

    trial_id: str
    lora: Lora
    training: Training
    budget: Budget


@dataclass(frozen=True)
class Failure:
    """Why a trial ended without a result: NaN or Inf (`diverged`), out of memory (`oom`), an error, or `lost`:
    no executor was left, which says nothing about the trial. `evicted` is no end: the engine put the trial out to make
    room in memory; its snapshot is of now, and it goes on from there elsewhere or later. `unevaluated`: it has trained
    to a report, and there was no memory to evaluate one row; its snapshot owes that report."""

    cause: FailureCause
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Report:
    """A trial's metrics at a point where it waits to be told go on or stop.

    Attributes:
        index: 1 to R; the last one counted for a failure.
        is_final: Whether the trial has trained all its samples.
        metrics: eval_loss and train_loss in nats per answer token, step, samples_seen, learning_rate,
            tokens_per_s (non-padding, trained), train_s, eval_s, peak_memory_bytes.
        facts: What really ran (resolved arguments, micro-batch, precision, parameter counts).
        failure: Set when the trial ended so; it trains no further.
        train_losses: (step, loss) every `training.logging_steps` steps and at the report itself: the mean training loss
            of the steps since the point before, in nats per answer token.
    """

    trial_id: str
    index: int
    is_final: bool
    metrics: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    train_losses: list[tuple[int, float]] = field(default_factory=list)


class Engine(Protocol):
    """Trains admitted trials in this process.

    A trial that has reported trains no further until `proceed` or `evict`. Calls come from one thread, but for
    `admit`, `proceed` and `evict`, which may come from others while `advance` runs: an engine of several slots lets a
    trial that is admitted or told on then join at its next step. A snapshot is nobody's to change any more.
    """

    @property
    def slots(self) -> int:
        """Trials that can be admitted at once; may become fewer in an `advance`."""

    def admit(self, spec: TrialSpec, state: TrialState | None = None) -> None:
        """Takes a trial in, from its start or from a state; raises RuntimeError if no slot is free."""

    def proceed(self, trial_id: str) -> None:
        """Lets a trial that waits at a report train on; does nothing for one that is training."""

    def advance(self) -> list[Report]:
        """Trains until at least one admitted trial reports or ends; an empty list if none can train."""

    def on_trained(self, listener: TrainedListener) -> None:
        """Sets who is told that a trial has trained to a report, before it is evaluated there.

        Told on the thread that trains it, which must not be held up for long. Meanwhile `snapshot` gives the state that
        owes the report, and `save_adapter` works. The snapshot at the report differs from it in facts, not in tensors.
        """

    def snapshot(self, trial_id: str) -> TrialState | None:
        """The trial's state at its last report, which it may still owe; None before the first."""

    def save_adapter(self, trial_id: str, folder: Path) -> None:
        """Writes the adapter of a trial at a report in PEFT's format."""

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; does nothing for one that is not here."""

    def score(self, adapter: Path | None, split: EvaluationSplit) -> Scores:
        """Scores a saved adapter, or the bare base, on these rows; no trial may be admitted."""


@dataclass(frozen=True)
class TrainingData:
    """Tokens and trained-token masks of the training and validation rows: the same for every engine."""

    train: TokenizedSplit
    validation: TokenizedSplit
