"""The `wrapped` engine: many trials at once on one frozen base, joining and leaving at step boundaries."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import QloraRayError, TrialDiverged
from qlora_ray.hardware import Placement
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack, StackKey
from qlora_ray.modeling.multi_lora.adapters import answering, draw_adapter
from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase
from qlora_ray.scoring.metrics.metric import Metric
from qlora_ray.scoring.scores import Scores, score_model
from qlora_ray.scoring.split import EvaluationSplit
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import UNEVALUATED, FailureCause, Report, TrainedListener, TrainingData, TrialSpec
from qlora_ray.training.packed.meter import PeakMeter
from qlora_ray.training.packed.reporting import Reporter
from qlora_ray.training.packed.roster import Roster, Seat
from qlora_ray.training.packed.step import StepOutcome, StepRunner
from qlora_ray.training.packed.trial import PackedTrial


class PackedEngine:
    """Trains up to `slots` trials at once.

    `admit`, `proceed` and `evict` may come from any thread at any time; what they ask for happens at the next step
    boundary. All other methods are called from the one thread that calls `advance`.

    Args:
        base: The frozen base.
        data: Training and validation rows.
        slots: Trials at once.
        max_tokens_per_micro_batch: Padded tokens that fit the device in one forward and backward.
        hold_dequantized: Whether 4-bit weights are also kept in the compute dtype.
        max_eval_batch: Rows per forward that fit it in evaluation; None for no bound.
        memory_limit_bytes: What this process may reserve on a GPU; measured micro-batches are held against it.
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
        evaluate: Evaluate | None = None,
        metrics: list[Metric] | None = None,
    ) -> None:
        self._base = base
        self._data = data
        self._planned_tokens = max_tokens_per_micro_batch
        # What running out of memory has taught, and the cap of the step that runs.
        self._token_bound = self._max_tokens = max_tokens_per_micro_batch
        self._slot_bound = slots
        self._evaluate = evaluate or Evaluate()
        self._metrics = metrics or []
        self._wrapped = WrappedBase(base, hold_dequantized=hold_dequantized)
        self._meter = PeakMeter(memory_limit_bytes if base.device != "cpu" else None)
        self._runner = StepRunner(self._wrapped, data.train, meter=self._meter)
        self._reporter = Reporter(self._wrapped, data.validation, max_eval_batch=max_eval_batch)
        self._stacks: dict[StackKey, AdapterStack] = {}
        self._roster = Roster(slots)
        # Those whose adapters are in memory, oldest first. Only who holds `_training` touches them and the base: the
        # training thread, or an eviction between two advances.
        self._seated: list[Seat] = []
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

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; its adapter's memory goes now, or at the next step boundary."""
        self._roster.evict(trial_id)
        if self._training.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._training.release()

    def advance(self) -> list[Report]:
        """Trains until at least one trial reports or ends; an empty list if none can train."""
        with self._training:
            while True:
                self._let_go()
                reports = self._take_in()
                running = self._running()
                owing = [seat for seat in running if seat.trial is not None and seat.trial.has_pending_report]
                if owing:
                    reports += self._report(owing)
                elif running and not reports:
                    reports = self._step(running)
                if reports or not running:
                    return reports

    def on_trained(self, listener: TrainedListener) -> None:
        """Sets who is told of a trial that has trained to a report, before it is evaluated there."""
        self._on_trained = listener

    def snapshot(self, trial_id: str) -> TrialState | None:
        """The trial's state at its last report, which it may owe, or when it was put out; None before the first."""
        seat = self._roster.find(trial_id)
        return seat.trial.state if seat.trial is not None else seat.state

    def save_adapter(self, trial_id: str, folder: Path) -> None:
        """Writes the adapter of a trial at a report in PEFT's format."""
        seat = self._roster.find(trial_id)
        if seat.trial is None or not (seat.is_waiting or seat.is_reporting):
            raise RuntimeError(f"packed engine: trial {trial_id} is training; its adapter can be saved at a report")
        seat.trial.adapter.save(folder)

    def score(self, adapter: Path | None, split: EvaluationSplit) -> Scores:
        """Scores a saved adapter, or the bare base, on these rows."""
        with self._training:
            self._let_go()
            if self._seated:
                here = ", ".join(seat.spec.trial_id for seat in self._seated)
                raise RuntimeError(f"packed engine: cannot score while trials {here} are here")
            with answering(self._wrapped, adapter):
                return score_model(
                    self._base.model,
                    self._base.tokenizer,
                    split,
                    metrics=self._metrics,
                    evaluate=self._evaluate,
                    precision=self._base.precision,
                    loss_batch_size=self._evaluate.batch_size,
                )

    def _running(self) -> list[Seat]:
        """Those that train, stacks together and slots in order."""
        order = {key: number for number, key in enumerate(self._stacks)}

        def place(seat: Seat) -> tuple[int, int]:
            assert seat.trial is not None
            return order[seat.trial.stack.key], seat.trial.slot

        return sorted(self._roster.running(), key=place)

    def _let_go(self) -> None:
        """Takes those out who have left, and the wrapped layers with the last one."""
        leaving = [seat for seat in self._seated if not self._roster.holds(seat)]
        for seat in leaving:
            self._seated.remove(seat)
            assert seat.trial is not None
            self._clear(seat.trial.stack, seat.spec.trial_id)
            self._meter.forget()
        if leaving:
            self._bind()
        if not self._seated:
            self._wrapped.unwrap()

    def _take_in(self) -> list[Report]:
        """Takes in those who have come; a report for each who cannot be."""
        reports = []
        coming = self._roster.coming()
        for seat in coming:
            try:
                seat.trial = self._make_trial(seat)
                self._seated.append(seat)
                self._meter.forget()
            except QloraRayError as error:
                reports.append(self._roster.fail(seat, "error", str(error)))
            except torch.OutOfMemoryError as error:
                reports.append(self._refuse_for_memory(seat, str(error).splitlines()[0]))
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                reports.append(self._roster.fail(seat, "error", message, traceback.format_exc()))
        if coming:
            self._bind()
        if self._seated:
            self._wrapped.wrap()
        return reports

    def _bind(self) -> None:
        """Points every trial at its row, also those that wait: what they pointed at before is free memory again."""
        for seat in self._seated:
            assert seat.trial is not None
            seat.trial.bind()

    def _make_trial(self, seat: Seat) -> PackedTrial:
        spec = seat.spec
        blueprint, tensors = draw_adapter(self._wrapped, spec.lora, seed=spec.training.seed)
        key = blueprint.key
        if key not in self._stacks:
            self._stacks[key] = AdapterStack(key, self._wrapped.widths, device=self._base.device)
        stack = self._stacks[key]
        try:
            return PackedTrial(
                spec,
                blueprint,
                tensors,
                stack=stack,
                num_rows=len(self._data.train),
                state=seat.state,
                scales_loss=self._base.precision == "fp16",
            )
        except BaseException:
            # A state that does not fit the trial, or no memory for its moments: no half of it stays.
            self._clear(stack, spec.trial_id)
            raise

    def _clear(self, stack: AdapterStack, trial_id: str) -> None:
        if trial_id in stack.names:
            stack.remove(trial_id)
        if not len(stack):
            del self._stacks[stack.key]

    def _step(self, seats: Sequence[Seat]) -> list[Report]:
        """One step of these trials, and the reports of those that are due or have ended."""
        trials = [seat.trial for seat in seats if seat.trial is not None]
        self._correct(trials)
        started = time.perf_counter()
        try:
            outcome = self._runner.run(trials, max_tokens=self._max_tokens)
        except torch.OutOfMemoryError as error:
            failure = str(error).splitlines()[0]
        else:
            return self._take_note(seats, outcome, time.perf_counter() - started)
        # Outside the handler: there the traceback would still hold the failed micro-batch's tensors.
        return self._make_room(trials, failure)

    def _take_note(self, seats: Sequence[Seat], outcome: StepOutcome, elapsed_s: float) -> list[Report]:
        reports, due = [], []
        for position, seat in enumerate(seats):
            assert seat.trial is not None
            seat.trial.interval.add_step(elapsed_s, num_trials=len(seats))
            if position in outcome.problems:
                reports.append((seat, self._fail(seat, "diverged", outcome.problems[position])))
            elif position in outcome.without_room:
                reports.append((seat, self._put_out(seat, outcome.without_room[position])))
            elif seat.trial.is_due and self._roster.holds(seat):
                due.append(seat)
        told = [report for seat, report in reports if self._roster.holds(seat)]
        return told + self._report(due)

    def _report(self, seats: Sequence[Seat]) -> list[Report]:
        """Reports of trials that have trained to one; they wait from now on."""
        for seat in seats:
            seat.is_reporting = True
        reports = [(seat, self._keep(seat)) for seat in seats]
        reports = [(seat, report or self._report_one(seat)) for seat, report in reports if self._roster.holds(seat)]
        for seat in seats:
            seat.is_reporting = False
        # One that was evicted meanwhile, and may have come again, has nothing to say.
        return [report for seat, report in reports if report is not None and self._roster.holds(seat)]

    def _keep(self, seat: Seat) -> Report | None:
        """Keeps a trial's state, all trials' before the first evaluation begins; a report only where it cannot."""
        trial = seat.trial
        assert trial is not None
        try:
            if not trial.has_pending_report:
                self._reporter.keep_state(trial, max_tokens=self._max_tokens, checkpoints=self._runner.checkpoints)
            self._on_trained(seat.spec.trial_id, trial.step == seat.spec.budget.num_steps)
        except Exception as error:
            return self._roster.fail(seat, "error", f"{type(error).__name__}: {error}", traceback.format_exc())
        return None

    def _report_one(self, seat: Seat) -> Report:
        """The report of a trial whose state is kept."""
        assert seat.trial is not None
        try:
            report = self._reporter.report(seat.trial)
        except TrialDiverged as error:
            return self._fail(seat, "diverged", str(error))
        except torch.OutOfMemoryError as error:
            failure = f"{UNEVALUATED}: {str(error).splitlines()[0]}"
        except Exception as error:
            # Its own: the others have taken their steps, and their reports are worth as much as ever.
            message = f"{type(error).__name__}: {error}"
            return self._roster.fail(seat, "error", message, traceback.format_exc())
        else:
            self._roster.wait(seat, has_ended=report.is_final)
            return report
        if len(self._seated) == 1:
            return self._fail(seat, "unevaluated", failure)
        return self._put_out(seat, failure)

    def _fail(self, seat: Seat, cause: FailureCause, message: str) -> Report:
        """The last report of a trial that has trained here: what ran is told, also where it never reported."""
        trial = seat.trial
        assert trial is not None
        if trial.state is not None and trial.has_pending_report:
            # It has not trained since: what ran is what was kept with its state, also in another process.
            facts = trial.state.facts
        else:
            facts = self._reporter.describe(trial, max_tokens=self._max_tokens, checkpoints=self._runner.checkpoints)
        return self._roster.fail(seat, cause, message, facts=facts)

    def _correct(self, trials: Sequence[PackedTrial]) -> None:
        """Holds slots and tokens per micro-batch against what micro-batches were measured to take."""
        fitting = min(self._token_bound, self._meter.max_tokens(self._planned_tokens))
        self._max_tokens = max(self._runner.longest_row(trials), fitting)
        self._roster.num_slots = self._meter.max_trials(
            now=len(self._seated),
            bytes_per_trial=max(trial.num_bytes for trial in trials),
            num_tokens=self._max_tokens,
            planned=self._slot_bound,
        )

    def _make_room(self, trials: Sequence[PackedTrial], failure: str) -> list[Report]:
        """After a micro-batch that did not fit. No optimizer has stepped, so nothing is lost: the step is taken again.

        Passes are halved first, for it is their tokens that fill a device, and all trials go on; where one row is
        already a micro-batch, the newest trial is put out with its state; a trial alone has failed.
        """
        if self._base.device != "cpu":
            torch.cuda.empty_cache()
        longest = self._runner.longest_row(trials)
        if self._max_tokens > longest:
            self._token_bound = max(longest, self._max_tokens // 2)
            return []
        return [self._put_out(next(seat for seat in reversed(self._seated) if seat.trial in trials), failure)]

    def _put_out(self, seat: Seat, failure: str) -> Report:
        """Puts a trial out with its state of this very step; one that is alone here has failed."""
        if len(self._seated) == 1:
            return self._fail(seat, "oom", failure)
        self._slot_bound = self._roster.num_slots = len(self._seated) - 1
        assert seat.trial is not None
        if not seat.trial.has_pending_report:
            seat.trial.state = seat.trial.take_state()
        return self._roster.fail(seat, "evicted", failure)

    def _refuse_for_memory(self, seat: Seat, failure: str) -> Report:
        """A trial whose adapter finds no room: it goes on elsewhere or later, unless it is alone here."""
        if not self._seated:
            return self._roster.fail(seat, "oom", failure)
        self._slot_bound = self._roster.num_slots = len(self._seated)
        return self._roster.fail(seat, "evicted", failure)


def make_engine(
    placement: Placement,
    base: LoadedBase,
    data: TrainingData,
    *,
    memory_limit_bytes: int | None,
    evaluate: Evaluate,
    metrics: list[Metric],
) -> PackedEngine:
    """Returns the engine with a placement's sizes, see `training.engines`."""
    assert placement.max_tokens_per_micro_batch is not None
    return PackedEngine(
        base,
        data,
        slots=placement.slots_per_executor,
        max_tokens_per_micro_batch=placement.max_tokens_per_micro_batch,
        hold_dequantized=placement.hold_dequantized,
        max_eval_batch=placement.eval_batch,
        memory_limit_bytes=memory_limit_bytes,
        evaluate=evaluate,
        metrics=metrics,
    )
