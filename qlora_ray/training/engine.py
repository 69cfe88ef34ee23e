"""What an engine is: the contract that `single` and `packed` meet.

This module imports no torch: the driver, which only passes specs and reports on, stays light.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qlora_ray.config.schema import Lora, Training
from qlora_ray.errors import QloraRayError, is_disk_full
from qlora_ray.training.budget import Budget

if TYPE_CHECKING:
    from qlora_ray.data import TokenizedSplit
    from qlora_ray.modeling.auxiliary_heads import HeadSpec
    from qlora_ray.scoring.progress import RowProgress
    from qlora_ray.scoring.scores import Scores
    from qlora_ray.scoring.split import EvaluationSplit
    from qlora_ray.training.checkpoint import TrialState


FailureCause = Literal["diverged", "oom", "error", "lost", "preempted", "unevaluated", "disk_full"]
UNEVALUATED = "trained, not evaluated: out of memory in evaluation at one row"
# Trial id, and whether it has trained all its samples.
TrainedListener = Callable[[str, bool], None]


@dataclass(frozen=True)
class TrialSpec:
    """One trial, resolved: everything its result depends on besides base and data.

    `heads` are trained beside the language model. The loss of one optimizer step is

        sum over answer tokens of their cross-entropy / number of those tokens
        + for each head: weight * sum over labelled rows of their cross-entropy / number of those rows

    both numbers counted in the whole effective batch, so that micro-batches make no difference. In a step without
    labels a head's gradient is zero: AdamW moves it by its moments and the trial's weight decay alone.
    """

    trial_id: str
    lora: Lora
    training: Training
    budget: Budget
    heads: tuple[HeadSpec, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a trial ended without a result.

    Attributes:
        cause: `diverged` (NaN or Inf), `oom` (out of memory even alone), `error`, `lost` (no executor was left),
            `preempted` (put off its device again and again before its next report), `unevaluated` (it has trained to
            a report, and there was no memory to evaluate one row; its snapshot has that report pending), or `disk_full`
            (which ends the sweep). The last four say nothing about the trial: it goes on in a resume.
    """

    cause: FailureCause
    message: str
    traceback: str = ""

    @classmethod
    def from_error(cls, error: Exception) -> Failure:
        """What an exception that nobody expected ends a trial with; our own errors need no traceback."""
        cause: FailureCause = "disk_full" if is_disk_full(error) else "error"
        if isinstance(error, QloraRayError):
            return cls(cause, str(error))
        return cls(cause, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


@dataclass(frozen=True)
class Report:
    """A trial's metrics at a point where it waits to be told go on or stop.

    Attributes:
        index: 1 to R; the last one counted for a failure.
        is_final: Whether the trial has trained all its samples.
        metrics: eval_loss and train_loss in nats per answer token (the language model's alone), step, samples_seen,
            learning_rate, tokens_per_s (non-padding, trained), train_s, eval_s, peak_memory_bytes; of each auxiliary
            head that validation rows have labels for `heads.<name>.accuracy`, `.macro_f1` and `.loss`.
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


@dataclass(frozen=True)
class Preemption:
    """A trial was put off the device, to make room in memory or since it was asked for, which is no failure.

    Its snapshot is of this moment. It goes on from there on another device, or here when there is room.
    """

    trial_id: str
    reason: str


EngineEvent = Report | Preemption


@dataclass(frozen=True)
class TrialProgress:
    """How far a trial is, in numbers that the process has anyway: asking for them reads nothing from a device.

    Attributes:
        step: Optimizer steps it has taken.
        train_loss: Of its last step here, in nats per answer token; None before it.
        eval_loss: Of its last report, in nats per answer token; None before it.
        tokens_per_s: Non-padding tokens trained, per second of training since its last report, or before it where it
            has not trained since; None before its first step.
    """

    trial_id: str
    step: int
    train_loss: float | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None


class Engine(Protocol):
    """Trains admitted trials in this process.

    A trial that has reported trains no further until `proceed` or `evict`. Calls come from one thread, but for
    `admit`, `proceed`, `evict`, `request_preemption` and `progress`, which may come from others while `advance` runs:
    an engine of several slots lets a trial that is admitted or told on then join at its next step. A snapshot is
    nobody's to change any more.
    """

    @property
    def slots(self) -> int:
        """Trials that can be admitted at once; may become fewer in an `advance`."""

    def admit(self, spec: TrialSpec, state: TrialState | None = None) -> None:
        """Takes a trial in, from its start or from a state; raises RuntimeError if no slot is free."""

    def proceed(self, trial_id: str) -> None:
        """Lets a trial that waits at a report train on; does nothing for one that is training."""

    def request_preemption(self, trial_id: str, reason: str) -> None:
        """Has a trial put off at its next step boundary: a Preemption with this reason, and its snapshot of that step.

        A trial that trains to a report first makes the report, and is put off before it takes another step. Does
        nothing for one that is not here or has ended.
        """

    def advance(self) -> list[EngineEvent]:
        """Trains until at least one admitted trial reports, ends or is preempted; an empty list if none can train."""

    def progress(self) -> list[TrialProgress]:
        """How far each admitted trial is; waits for no step, and holds none up."""

    def on_trained(self, listener: TrainedListener) -> None:
        """Sets who is told that a trial has trained to a report, before it is evaluated there.

        Told on the thread that trains it, which must not be held up for long. Meanwhile `snapshot` gives the state with
        the pending report, and `save_adapter` works. The snapshot at the report has the same tensors and other facts.
        """

    def snapshot(self, trial_id: str) -> TrialState | None:
        """The trial's state at its last report, made or pending, or at its preemption; None before the first."""

    def save_adapter(self, trial_id: str, folder: Path) -> None:
        """Writes the adapter of a trial at a report in PEFT's format, and its auxiliary heads beside it."""

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; does nothing for one that is not here."""

    def score(
        self,
        models: Mapping[str, Path | None],
        split: EvaluationSplit,
        *,
        with_answers: bool = True,
        progress: RowProgress | None = None,
    ) -> dict[str, Scores]:
        """Scores saved adapters, and the bare base, on these rows; no trial may be admitted.

        Args:
            models: The adapter's folder of each model by its name; None: the bare base.
            split: The rows.
            with_answers: Whether answers are generated and measured; without them there is the loss alone.
            progress: Is told of the rows as they are done.

        Returns:
            The scores of each model, by its name.
        """


@dataclass(frozen=True)
class TrainingData:
    """Tokens and trained-token masks of the training and validation rows: the same for every engine."""

    train: TokenizedSplit
    validation: TokenizedSplit
