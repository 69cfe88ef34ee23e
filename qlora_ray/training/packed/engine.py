"""The `packed` engine: many trials at once on one frozen base, joining and leaving at step boundaries."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import first_line
from qlora_ray.hardware import Placement
from qlora_ray.modeling.auxiliary_heads import load_heads, save_heads
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.multi_lora.adapters import answering
from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase
from qlora_ray.scoring.metrics.metric import Metric
from qlora_ray.scoring.model_scoring import score_models
from qlora_ray.scoring.progress import RowProgress
from qlora_ray.scoring.scores import Scores
from qlora_ray.scoring.split import EvaluationSplit
from qlora_ray.training.admission import Phase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import (
    EngineEvent,
    Failure,
    Report,
    TrainedListener,
    TrainingData,
    TrialProgress,
    TrialSpec,
)
from qlora_ray.training.packed.limits import Limits
from qlora_ray.training.packed.meter import PeakMeter
from qlora_ray.training.packed.pack import Pack
from qlora_ray.training.packed.reporting import Reporter
from qlora_ray.training.packed.roster import PackedAdmission, Roster
from qlora_ray.training.packed.step import StepOutcome, StepRunner
from qlora_ray.training.simulated_memory import SimulatedMemory


class PackedEngine:
    """Trains up to `slots` trials at once.

    `admit`, `proceed`, `request_preemption` and `evict` may come from any thread at any time; what they ask for happens
    at the next step boundary. All other methods are called from the one thread that calls `advance`.

    Args:
        base: The frozen base.
        data: Training and validation rows.
        slots: Trials at once.
        max_tokens_per_micro_batch: Padded tokens that fit the device in one forward and backward.
        hold_dequantized: Whether 4-bit weights are also kept in the compute dtype.
        max_eval_batch: Rows per forward that fit it in evaluation; None for no bound.
        memory_limit_bytes: What this process may reserve on a GPU; measured micro-batches are held against it.
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
        slots: int,
        max_tokens_per_micro_batch: int,
        hold_dequantized: bool = False,
        max_eval_batch: int | None = None,
        memory_limit_bytes: int | None = None,
        gradient_checkpointing: bool = False,
        memory: SimulatedMemory | None = None,
        evaluate: Evaluate | None = None,
        metrics: list[Metric] | None = None,
    ) -> None:
        self._base = base
        self._evaluate = evaluate or Evaluate()
        self._metrics = metrics or []
        self._wrapped = WrappedBase(base, hold_dequantized=hold_dequantized)
        self._meter = PeakMeter(memory_limit_bytes if base.device != "cpu" else None)
        self._limits = Limits(slots=slots, max_tokens=max_tokens_per_micro_batch, meter=self._meter)
        self._runner = StepRunner(
            self._wrapped,
            data.train,
            meter=self._meter,
            gradient_checkpointing=gradient_checkpointing,
            memory=memory,
        )
        self._reporter = Reporter(
            self._wrapped,
            data.validation,
            max_eval_batch=max_eval_batch,
            limits=self._limits,
            runner=self._runner,
            memory=memory,
        )
        self._roster = Roster(slots)
        # Only who holds `_training` touches the pack and the base: the training thread, or an eviction between two
        # advances.
        self._pack = Pack(self._wrapped, num_rows=len(data.train), memory=memory)
        self._training = threading.Lock()
        self._on_trained: TrainedListener = lambda trial_id, is_final: None

    @property
    def slots(self) -> int:
        """Trials that can be admitted at once; fewer where the device turned out too small."""
        return self._roster.num_slots

    def admit(self, spec: TrialSpec, state: TrialState | None = None) -> None:
        """Takes a trial in; it trains from the next step on. Raises RuntimeError if no slot is free."""
        self._roster.admit(spec, state)

    def proceed(self, trial_id: str) -> None:
        """Lets a trial that waits at a report train on."""
        self._roster.proceed(trial_id)

    def request_preemption(self, trial_id: str, reason: str) -> None:
        """Has a trial put off at the next step boundary, with its state there."""
        self._roster.request_preemption(trial_id, reason)

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; its adapter's memory goes now, or at the next step boundary."""
        self._roster.evict(trial_id)
        if self._training.acquire(blocking=False):
            try:
                self._release_evicted()
            finally:
                self._training.release()

    def advance(self) -> list[EngineEvent]:
        """Trains until at least one trial reports, ends or is preempted; an empty list if none can train."""
        with self._training:
            while True:
                self._release_evicted()
                events = self._put_off_asked() + self._take_in()
                running = self._pack.in_stack_order(self._roster.in_phase(Phase.TRAINING))
                pending = [admission for admission in running if admission.packed.has_pending_report]
                if pending:
                    events += self._report(pending)
                elif running and not events:
                    events = self._step(running)
                if events or not running:
                    return events

    def progress(self) -> list[TrialProgress]:
        """How far each admitted trial is."""
        return self._roster.progress()

    def on_trained(self, listener: TrainedListener) -> None:
        """Sets who is told of a trial that has trained to a report, before it is evaluated there."""
        self._on_trained = listener

    def snapshot(self, trial_id: str) -> TrialState | None:
        """The trial's state at its last report, made or pending, or at its preemption; None before the first."""
        admission = self._roster.find(trial_id)
        return admission.trial.state if admission.trial is not None else admission.state

    def save_adapter(self, trial_id: str, folder: Path) -> None:
        """Writes the adapter of a trial at a report in PEFT's format."""
        admission = self._roster.find(trial_id)
        if admission.trial is None or admission.phase is Phase.TRAINING:
            raise RuntimeError(f"packed engine: trial {trial_id} is training; its adapter can be saved at a report")
        admission.trial.adapter.save(folder)
        save_heads(admission.trial.heads, folder)

    def score(
        self,
        models: Mapping[str, Path | None],
        split: EvaluationSplit,
        *,
        with_answers: bool = True,
        progress: RowProgress | None = None,
    ) -> dict[str, Scores]:
        """Scores saved adapters, and the bare base, on these rows; those that answer do it in the same batches."""
        with self._training:
            self._release_evicted()
            if self._pack.admissions:
                here = ", ".join(admission.spec.trial_id for admission in self._pack.admissions)
                raise RuntimeError(f"packed engine: cannot score while trials {here} are here")
            # Losses are measured one model after another: then only one adapter need fit beside the base.
            groups: list[Mapping[str, Path | None]] = [models]
            if not with_answers:
                groups = [{name: adapter} for name, adapter in models.items()]
            scores: dict[str, Scores] = {}
            for group in groups:
                with answering(self._wrapped, list(group.values())) as route:
                    scores |= score_models(
                        self._base.model,
                        self._base.tokenizer,
                        split,
                        names=list(group),
                        route=route,
                        metrics=self._metrics if with_answers else [],
                        evaluate=self._evaluate,
                        precision=self._base.precision,
                        loss_batch_size=self._evaluate.batch_size,
                        heads={
                            name: load_heads(adapter, device=self._base.device)
                            for name, adapter in group.items()
                            if adapter is not None
                        },
                        progress=progress,
                    )
            return scores

    def _release_evicted(self) -> None:
        """Frees the memory of evicted trials, and takes the wrapped layers out with the last one."""
        if self._pack.leave(lambda admission: not self._roster.holds(admission)):
            self._meter.forget()

    def _put_off_asked(self) -> list[EngineEvent]:
        """Puts off the trials that were asked to leave and have something to train."""
        events: list[EngineEvent] = []
        for admission in self._roster.in_phase(Phase.ENTERING, Phase.TRAINING):
            if admission.leave_reason is not None and self._roster.holds(admission):
                if admission.trial is not None and not admission.trial.has_pending_report:
                    admission.trial.state = admission.trial.take_state()
                events.append(self._roster.preempt(admission, admission.leave_reason))
        return events

    def _take_in(self) -> list[EngineEvent]:
        """Takes in the admitted trials; an event for each that cannot be."""
        events: list[EngineEvent] = []
        entering = self._roster.in_phase(Phase.ENTERING)
        for admission in entering:
            try:
                self._pack.enter(admission)
            except torch.OutOfMemoryError as error:
                events.append(self._refuse_for_memory(admission, first_line(error)))
            except Exception as error:
                events.append(self._roster.end(admission, Failure.from_error(error)))
            else:
                self._meter.forget()
                self._roster.move(admission, Phase.TRAINING)
        if entering:
            self._pack.settle()
        return events

    def _step(self, admissions: Sequence[PackedAdmission]) -> list[EngineEvent]:
        """One step of these trials, and the events of those that are due or have ended."""
        trials = [admission.packed for admission in admissions]
        longest_row = self._runner.longest_row(trials)
        self._roster.num_slots = self._limits.correct(trials, num_here=len(self._pack), longest_row=longest_row)
        started = time.perf_counter()
        try:
            outcome = self._runner.run(trials, max_tokens=self._limits.max_tokens)
        except torch.OutOfMemoryError as error:
            problem = first_line(error)
        else:
            return self._finish_step(admissions, outcome, time.perf_counter() - started)
        # Outside the handler: there the traceback would still hold the failed micro-batch's tensors.
        return self._make_room(admissions, problem, longest_row=longest_row)

    def _finish_step(
        self, admissions: Sequence[PackedAdmission], outcome: StepOutcome, elapsed_s: float
    ) -> list[EngineEvent]:
        events: list[tuple[PackedAdmission, EngineEvent]] = []
        due = []
        for position, admission in enumerate(admissions):
            admission.packed.interval.add_step(elapsed_s, num_trials=len(admissions))
            if position in outcome.problems:
                events.append((admission, self._fail(admission, Failure("diverged", outcome.problems[position]))))
            elif position in outcome.without_room:
                events.append((admission, self._preempt(admission, outcome.without_room[position])))
            elif admission.packed.is_due and self._roster.holds(admission):
                due.append(admission)
        told = [event for admission, event in events if self._roster.holds(admission)]
        return told + self._report(due)

    def _report(self, admissions: Sequence[PackedAdmission]) -> list[EngineEvent]:
        """What comes of trials that have trained to a report: all states are kept before the first evaluation."""
        for admission in admissions:
            self._roster.move(admission, Phase.EVALUATING)
        kept = [(admission, self._keep_state(admission)) for admission in admissions]
        events = [
            (admission, event or self._evaluate_trial(admission))
            for admission, event in kept
            if self._roster.holds(admission)
        ]
        # One that was evicted meanwhile, and may have come again, has nothing to say.
        return [event for admission, event in events if self._roster.holds(admission)]

    def _keep_state(self, admission: PackedAdmission) -> Report | None:
        """Keeps a trial's state, with its report pending; a report only where that fails."""
        trial = admission.packed
        try:
            if not trial.has_pending_report:
                self._reporter.keep_state(trial)
            self._on_trained(admission.spec.trial_id, trial.step == admission.spec.budget.num_steps)
        except Exception as error:
            return self._roster.end(admission, Failure.from_error(error))
        return None

    def _evaluate_trial(self, admission: PackedAdmission) -> EngineEvent:
        """The report of a trial whose state is kept, or why there is none yet."""
        result = self._reporter.report(admission.packed)
        if isinstance(result, Report):
            self._roster.move(admission, Phase.ENDED if result.is_final else Phase.REPORTED)
            return result
        if result.cause == "unevaluated" and len(self._pack) > 1:
            return self._preempt(admission, result.message)
        return self._fail(admission, result)

    def _fail(self, admission: PackedAdmission, failure: Failure) -> Report:
        """The last report of a trial that has trained here."""
        return self._roster.end(admission, failure, facts=self._reporter.describe_run(admission.packed))

    def _make_room(self, admissions: Sequence[PackedAdmission], problem: str, *, longest_row: int) -> list[EngineEvent]:
        """After a micro-batch that did not fit. No optimizer has stepped, so nothing is lost: the step is taken again.

        Micro-batches are halved first, for it is their tokens that fill a device, and all trials go on; where one row
        is already a micro-batch, activations are recomputed if the trials leave that open; then the newest trial is
        preempted; a trial alone has failed.
        """
        if self._base.device != "cpu":
            torch.cuda.empty_cache()
        if self._limits.halve_tokens(longest_row=longest_row):
            return []
        if self._runner.recompute_activations([admission.packed for admission in admissions]):
            return []
        newest = next(admission for admission in reversed(self._pack.admissions) if admission in admissions)
        return [self._preempt(newest, problem)]

    def _preempt(self, admission: PackedAdmission, problem: str) -> EngineEvent:
        """Puts a trial off the device with its state of this very step; one that is alone here has failed."""
        if len(self._pack) == 1:
            return self._fail(admission, Failure("oom", problem))
        self._roster.num_slots = self._limits.lower_slots(len(self._pack) - 1)
        trial = admission.packed
        if not trial.has_pending_report:
            trial.state = trial.take_state()
        return self._roster.preempt(admission, problem)

    def _refuse_for_memory(self, admission: PackedAdmission, problem: str) -> EngineEvent:
        """A trial whose adapter finds no room is preempted, unless it is alone here."""
        if not self._pack.admissions:
            return self._roster.end(admission, Failure("oom", problem))
        self._roster.num_slots = self._limits.lower_slots(len(self._pack))
        return self._roster.preempt(admission, problem)


def make_engine(
    placement: Placement,
    base: LoadedBase,
    data: TrainingData,
    *,
    memory_limit_bytes: int | None,
    memory: SimulatedMemory | None,
    evaluate: Evaluate,
    metrics: list[Metric],
) -> PackedEngine:
    """Returns the engine with a placement's sizes; arguments as in `training.engines.make_engine`."""
    assert placement.max_tokens_per_micro_batch is not None
    return PackedEngine(
        base,
        data,
        slots=placement.slots_per_executor,
        max_tokens_per_micro_batch=placement.max_tokens_per_micro_batch,
        hold_dequantized=placement.hold_dequantized,
        max_eval_batch=placement.eval_batch,
        memory_limit_bytes=memory_limit_bytes,
        gradient_checkpointing=placement.gradient_checkpointing,
        memory=memory,
        evaluate=evaluate,
        metrics=metrics,
    )
