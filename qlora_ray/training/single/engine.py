"""The `single` engine: one trial at a time through TRL's SFTTrainer and PEFT, on a base loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import Evaluate
from qlora_ray.hardware import Placement
from qlora_ray.modeling.adapters import save_adapter, saved_adapter
from qlora_ray.modeling.auxiliary_heads import HeadRows, load_heads, save_heads
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.scoring.metrics.metric import Metric
from qlora_ray.scoring.model_scoring import score_model
from qlora_ray.scoring.progress import RowProgress
from qlora_ray.scoring.scores import Scores
from qlora_ray.scoring.split import EvaluationSplit
from qlora_ray.training.admission import Phase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import (
    EngineEvent,
    Preemption,
    TrainedListener,
    TrainingData,
    TrialProgress,
    TrialSpec,
)
from qlora_ray.training.simulated_memory import SimulatedMemory
from qlora_ray.training.single.run import SingleRun, labelled_rows


class SingleEngine:
    """Trains one trial at a time; the next one finds the base as the last one found it.

    Args:
        base: The frozen base.
        data: Training and validation rows.
        max_micro_batch: Rows per forward that fit the device in training.
        max_eval_batch: Rows per forward that fit it in evaluation; None for no bound.
        gradient_checkpointing: Whether activations are recomputed for trials that leave it open.
        memory: The memory of the device that this one stands for; None on a real one.
        evaluate: How `score` generates answers.
        metrics: What `score` measures besides the loss.
    """

    def __init__(
        self,
        base: LoadedBase,
        data: TrainingData,
        *,
        max_micro_batch: int,
        max_eval_batch: int | None = None,
        gradient_checkpointing: bool = False,
        memory: SimulatedMemory | None = None,
        evaluate: Evaluate | None = None,
        metrics: list[Metric] | None = None,
    ) -> None:
        self._base = base
        self._rows = labelled_rows(data.train)
        self._head_rows = HeadRows(data.train)
        self._validation = data.validation
        self._max_micro_batch = max_micro_batch
        self._max_eval_batch = max_eval_batch
        self._plans_checkpoints = gradient_checkpointing
        self._memory = memory
        self._evaluate = evaluate or Evaluate()
        self._metrics = metrics or []
        self._run: SingleRun | None = None
        self._on_trained: TrainedListener = lambda trial_id, is_final: None

    @property
    def slots(self) -> int:
        """One: SFTTrainer trains one model."""
        return 1

    def admit(self, spec: TrialSpec, state: TrialState | None = None) -> None:
        """Takes a trial in and starts training it; raises RuntimeError if another one is here."""
        if self._run is not None:
            raise RuntimeError(
                f"single engine: has one slot, held by trial {self._run.spec.trial_id}, got {spec.trial_id}"
            )
        self._run = SingleRun(
            spec,
            base=self._base,
            rows=self._rows,
            head_rows=self._head_rows,
            validation=self._validation,
            max_micro_batch=self._max_micro_batch,
            max_eval_batch=self._max_eval_batch,
            recomputes=spec.training.recomputes(planned=self._plans_checkpoints),
            memory=self._memory,
            state=state,
            on_trained=self._on_trained,
        )
        self._run.start()

    def proceed(self, trial_id: str) -> None:
        """Lets a trial that waits at a report train on."""
        run = self._run
        if run is not None and run.spec.trial_id == trial_id and run.phase is Phase.REPORTED:
            run.proceed()

    def request_preemption(self, trial_id: str, reason: str) -> None:
        """Has the trial put off after the step that it is in, with its state there."""
        run = self._run
        if run is not None and run.spec.trial_id == trial_id:
            run.leave_reason = reason

    def advance(self) -> list[EngineEvent]:
        """Trains until the trial reports, ends or is preempted; an empty list if none can train."""
        run = self._run
        if run is None or run.phase in (Phase.REPORTED, Phase.ENDED, Phase.PREEMPTED):
            return []
        event = run.next_event()
        if event is None:
            return []
        # Of the run that it came from: meanwhile it may have been evicted, and another trial admitted.
        if isinstance(event, Preemption):
            run.phase = Phase.PREEMPTED
        else:
            run.phase = Phase.ENDED if event.is_final else Phase.REPORTED
        return [event] if self._run is run else []

    def progress(self) -> list[TrialProgress]:
        """How far the trial is, if one is here."""
        run = self._run
        return [] if run is None else [run.progress()]

    def on_trained(self, listener: TrainedListener) -> None:
        """Sets who is told of a trial, admitted from now on, that has trained to a report."""
        self._on_trained = listener

    def snapshot(self, trial_id: str) -> TrialState | None:
        """The trial's state at its last report, also a pending one, or at its preemption; None before the first."""
        return self._admitted(trial_id).state

    def save_adapter(self, trial_id: str, folder: Path) -> None:
        """Writes the adapter of a trial at a report in PEFT's format."""
        run = self._admitted(trial_id)
        if run.model is None or run.phase in (Phase.ENTERING, Phase.TRAINING):
            raise RuntimeError(f"single engine: trial {trial_id} is training; its adapter can be saved at a report")
        save_adapter(run.model, folder)
        save_heads(run.heads, folder)

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees the slot."""
        run = self._run
        if run is not None and run.spec.trial_id == trial_id:
            run.stop()
            self._run = None

    def score(
        self,
        models: Mapping[str, Path | None],
        split: EvaluationSplit,
        *,
        with_answers: bool = True,
        progress: RowProgress | None = None,
    ) -> dict[str, Scores]:
        """Scores saved adapters, and the bare base, on these rows, one after another."""
        if self._run is not None:
            raise RuntimeError(f"single engine: cannot score while trial {self._run.spec.trial_id} is here")
        scores = {}
        for name, adapter in models.items():
            on_base: AbstractContextManager[Any] = (
                nullcontext(self._base.model) if adapter is None else saved_adapter(self._base, adapter)
            )
            with on_base as model:
                scores[name] = score_model(
                    model,
                    self._base.tokenizer,
                    split,
                    metrics=self._metrics if with_answers else [],
                    evaluate=self._evaluate,
                    precision=self._base.precision,
                    loss_batch_size=self._evaluate.batch_size,
                    name=name,
                    heads=[] if adapter is None else load_heads(adapter, device=self._base.device),
                    progress=progress,
                )
        return scores

    def _admitted(self, trial_id: str) -> SingleRun:
        if self._run is None or self._run.spec.trial_id != trial_id:
            raise RuntimeError(f"single engine: trial {trial_id} is not here")
        return self._run


def make_engine(
    placement: Placement,
    base: LoadedBase,
    data: TrainingData,
    *,
    memory_limit_bytes: int | None,
    memory: SimulatedMemory | None,
    evaluate: Evaluate,
    metrics: list[Metric],
) -> SingleEngine:
    """Returns the engine with a placement's sizes; arguments as in `training.engines.make_engine`.

    torch alone holds `memory_limit_bytes` here: the engine plans nothing by it.
    """
    return SingleEngine(
        base,
        data,
        max_micro_batch=placement.max_micro_batch,
        max_eval_batch=placement.eval_batch,
        gradient_checkpointing=placement.gradient_checkpointing,
        memory=memory,
        evaluate=evaluate,
        metrics=metrics,
    )
