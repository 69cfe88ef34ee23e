"""The `fused` engine: many trials at once on one frozen base, joining and leaving at step boundaries."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import QloraRayError
from qlora_ray.evaluation.loss import evaluate_loss
from qlora_ray.evaluation.metrics import Metric
from qlora_ray.evaluation.scoring import Scores, score_model
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Failure, FailureCause, Report, TrialSpec
from qlora_ray.training.fused.bank import AdapterBank, BankKey
from qlora_ray.training.fused.layout import SoloLayout
from qlora_ray.training.fused.member import Interval, Member, bank_key, draw_blueprint
from qlora_ray.training.fused.meter import PeakMeter
from qlora_ray.training.fused.step import StepOutcome, StepRunner
from qlora_ray.training.fused.wrapping import FusedBase
from qlora_ray.training.peak import peak_memory_bytes
from qlora_ray.training.rows import TrainingData


@dataclass
class _Seat:
    """A trial from admission to eviction; its member is there once it was taken in, by the training thread."""

    spec: TrialSpec
    state: TrialState | None
    member: Member | None = None
    is_waiting: bool = False
    has_ended: bool = False


class FusedEngine:
    """Trains up to `slots` trials at once.

    `admit`, `proceed` and `evict` may come from any thread at any time; what they ask for happens at the next step
    boundary. All other methods are called from the one thread that calls `advance`.

    Args:
        base: The frozen base.
        data: Training and validation rows.
        slots: Trials at once.
        max_tokens_per_pass: Padded tokens that fit the device in one forward and backward.
        hold_dequantized: Whether 4-bit weights are also kept in the compute dtype.
        max_eval_batch: Rows per forward that fit it in evaluation; None for no bound.
        memory_limit_bytes: What this process may reserve on a GPU; measured passes are held against it.
        evaluate: How `score` generates answers.
        metrics: What `score` measures besides the loss.
    """

    def __init__(
        self,
        base: LoadedBase,
        data: TrainingData,
        *,
        slots: int,
        max_tokens_per_pass: int,
        hold_dequantized: bool = False,
        max_eval_batch: int | None = None,
        memory_limit_bytes: int | None = None,
        evaluate: Evaluate | None = None,
        metrics: list[Metric] | None = None,
    ) -> None:
        self._base = base
        self._data = data
        self._slots = slots
        self._max_tokens = max_tokens_per_pass
        self._planned = (slots, max_tokens_per_pass)
        self._max_eval_batch = max_eval_batch
        self._evaluate = evaluate or Evaluate()
        self._metrics = metrics or []
        self._fused = FusedBase(base, hold_dequantized=hold_dequantized)
        self._holds_dequantized = hold_dequantized
        self._meter = PeakMeter(memory_limit_bytes if base.device != "cpu" else None)
        self._runner = StepRunner(self._fused, data.train, meter=self._meter)
        self._banks: dict[BankKey, AdapterBank] = {}
        # Guards what other threads touch: who is here, who waits, who is to come in.
        self._lock = threading.Lock()
        # Held by whoever changes the base: the training thread, or an eviction between two advances.
        self._training = threading.Lock()
        self._present: dict[str, _Seat] = {}
        self._members: dict[str, Member] = {}

    @property
    def slots(self) -> int:
        """Trials that can be admitted at once; fewer after the device ran out of memory."""
        return self._slots

    def admit(self, spec: TrialSpec, state: TrialState | None = None) -> None:
        """Takes a trial in; it trains from the next step on. Raises RuntimeError if no slot is free."""
        with self._lock:
            if len(self._present) >= self._slots:
                holders = ", ".join(self._present)
                raise RuntimeError(
                    f"fused engine: all {self._slots} slots are held, by trials {holders}, got {spec.trial_id}"
                )
            self._present[spec.trial_id] = _Seat(spec, state)

    def proceed(self, trial_id: str) -> None:
        """Lets a trial that waits at a report train on."""
        with self._lock:
            seat = self._present.get(trial_id)
            if seat is not None and not seat.has_ended:
                seat.is_waiting = False

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; its adapter's memory goes at the next step boundary, or now."""
        with self._lock:
            self._present.pop(trial_id, None)
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
                if not reports and running:
                    reports = self._step(running)
                if reports or not running:
                    return reports

    def snapshot(self, trial_id: str) -> TrialState | None:
        """The trial's state at its last report, or when it was put out; None before the first."""
        with self._lock:
            seat = self._seat(trial_id)
        member = seat.member
        return member.state if member is not None else seat.state

    def save_adapter(self, trial_id: str, folder: Path) -> None:
        """Writes the adapter of a waiting trial in PEFT's format."""
        with self._lock:
            seat = self._seat(trial_id)
        if seat.member is None or not seat.is_waiting:
            raise RuntimeError(f"fused engine: trial {trial_id} is training; its adapter can be saved at a report")
        seat.member.save_adapter(folder)

    def score(self, adapter: Path | None) -> Scores:
        """Scores a saved adapter, or the bare base, on the validation rows."""
        self._let_go()
        if self._members:
            raise RuntimeError(f"fused engine: cannot score while trials {', '.join(self._members)} are here")
        if adapter is None:
            return self._score(self._base.model)
        with saved_adapter(self._base, adapter) as model:
            return self._score(model)

    def _seat(self, trial_id: str) -> _Seat:
        if trial_id not in self._present:
            raise RuntimeError(f"fused engine: trial {trial_id} is not here")
        return self._present[trial_id]

    def _running(self) -> list[Member]:
        """The members that train, banks together and slots in order."""
        with self._lock:
            running = [
                seat.member for seat in self._present.values() if seat.member is not None and not seat.is_waiting
            ]
        order = {id(bank): number for number, bank in enumerate(self._banks.values())}
        return sorted(running, key=lambda member: (order[id(member.bank)], member.slot))

    def _let_go(self) -> None:
        """Takes those out who have left, and the fused layers with the last one."""
        with self._lock:
            staying = [seat.member for seat in self._present.values()]
        for trial_id, member in list(self._members.items()):
            if not any(member is one for one in staying):
                self._drop(trial_id)
        if not self._members:
            self._fused.unwrap()

    def _take_in(self) -> list[Report]:
        """Takes in those who have come; a report for each who cannot be."""
        with self._lock:
            coming = [seat for seat in self._present.values() if seat.member is None and not seat.has_ended]
        reports = [report for seat in coming if (report := self._make_member(seat)) is not None]
        if self._members:
            self._fused.wrap()
        return reports

    def _make_member(self, seat: _Seat) -> Report | None:
        try:
            seat.member = self._members[seat.spec.trial_id] = self._build_member(seat)
            self._meter.forget()
        except QloraRayError as error:
            return self._end(seat, "error", str(error))
        except torch.OutOfMemoryError as error:
            return self._refuse_for_memory(seat, error)
        except Exception as error:
            return self._end(seat, "error", f"{type(error).__name__}: {error}", traceback.format_exc())
        return None

    def _build_member(self, seat: _Seat) -> Member:
        spec = seat.spec
        blueprint = draw_blueprint(self._fused, spec)
        key = bank_key(spec, blueprint)
        bank = self._banks.setdefault(key, AdapterBank(key, self._fused.widths, device=self._base.device))
        try:
            return Member(
                spec,
                blueprint,
                bank=bank,
                num_rows=len(self._data.train),
                state=seat.state,
                scales_loss=self._base.precision == "fp16",
            )
        except BaseException:
            # A state that does not fit the trial, or no memory for its moments: no half of it stays.
            self._clear(bank, spec.trial_id)
            raise

    def _drop(self, trial_id: str) -> None:
        member = self._members.pop(trial_id)
        self._clear(member.bank, trial_id)
        self._meter.forget()

    def _clear(self, bank: AdapterBank, trial_id: str) -> None:
        if trial_id in bank.trial_ids:
            bank.remove(trial_id)
        if not len(bank):
            del self._banks[bank.key]

    def _step(self, members: Sequence[Member]) -> list[Report]:
        """One step of these members, and the reports of those that are due or have ended."""
        self._correct(members)
        started = time.perf_counter()
        try:
            outcome = self._runner.run(members, max_tokens=self._max_tokens)
        except torch.OutOfMemoryError as error:
            failure = str(error).splitlines()[0]
        else:
            return self._take_note(members, outcome, time.perf_counter() - started)
        # Outside the handler: there the traceback would still hold the failed pass's tensors.
        return self._make_room(members, failure)

    def _take_note(self, members: Sequence[Member], outcome: StepOutcome, elapsed: float) -> list[Report]:
        reports = []
        for position, member in enumerate(members):
            interval = member.interval
            interval.train_s += elapsed
            interval.num_trials += len(members)
            interval.num_steps += 1
            if position in outcome.problems:
                reports.append(self._fail(member, "diverged", outcome.problems[position]))
            elif member.is_due:
                reports.append(self._report(member))
        return reports

    def _correct(self, members: Sequence[Member]) -> None:
        """Holds slots and tokens per pass against what passes were measured to take."""
        planned_slots, planned_tokens = self._planned
        self._max_tokens = max(
            self._runner.longest_row(members), min(self._max_tokens, self._meter.max_tokens(planned_tokens))
        )
        self._slots = self._meter.max_trials(
            now=len(self._members),
            bytes_per_trial=max(member.num_bytes for member in members),
            num_tokens=self._max_tokens,
            planned=min(self._slots, planned_slots),
        )

    def _make_room(self, members: Sequence[Member], failure: str) -> list[Report]:
        """After a pass that did not fit. No optimizer has stepped, so nothing is lost: the step is taken again.

        Passes are halved first, for it is their tokens that fill a device, and all trials go on; where one row is
        already a pass, the newest trial is put out with its state; a trial alone has failed.
        """
        if self._base.device != "cpu":
            torch.cuda.empty_cache()
        longest = self._runner.longest_row(members)
        if self._max_tokens > longest:
            self._max_tokens = max(longest, self._max_tokens // 2)
            return []
        newest = list(self._members.values())[-1]
        if len(self._members) == 1:
            return [self._fail(newest, "oom", failure)]
        self._slots = max(1, len(self._members) - 1)
        newest.state = newest.take_state()
        return [self._put_out(newest.spec.trial_id, failure)]

    def _refuse_for_memory(self, seat: _Seat, error: torch.OutOfMemoryError) -> Report:
        """A trial whose adapter finds no room: it goes on elsewhere or later, unless it is alone here."""
        failure = str(error).splitlines()[0]
        if not self._members:
            return self._end(seat, "oom", failure)
        self._slots = len(self._members)
        return self._put_out(seat.spec.trial_id, failure)

    def _put_out(self, trial_id: str, message: str) -> Report:
        with self._lock:
            seat = self._present.get(trial_id)
            if seat is not None:
                seat.is_waiting = seat.has_ended = True
        index = 0 if seat is None or seat.member is None else seat.member.report_index
        return Report(trial_id, index, False, {}, failure=Failure("evicted", message))

    def _report(self, member: Member) -> Report:
        """Evaluates a member, which waits from now on."""
        spec, interval = member.spec, member.interval
        started = time.perf_counter()
        try:
            result = self._evaluate_loss(member)
        except torch.OutOfMemoryError as error:
            return self._fail(member, "oom", f"in evaluation, at one row: {str(error).splitlines()[0]}")
        if not math.isfinite(result):
            return self._fail(member, "diverged", f"eval_loss is {result} after step {member.step}")
        member.report_index = spec.budget.report_steps.index(member.step) + 1
        metrics = {
            "eval_loss": result,
            "train_loss": sum(interval.losses) / len(interval.losses),
            "learning_rate": member.learning_rate,
            "train_s": interval.train_s,
            "tokens_per_s": interval.num_tokens / max(interval.train_s, 1e-9),
            "step": member.step,
            "samples_seen": spec.budget.samples_seen(member.step),
            "eval_s": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(self._base.device),
        }
        facts = {**self._describe(member), "pack": interval.describe()}
        member.interval = Interval()
        state = member.take_state()
        state.metrics, state.facts = metrics, facts
        member.state = state
        is_final = member.step == spec.budget.num_steps
        self._wait(spec.trial_id, has_ended=is_final)
        return Report(spec.trial_id, member.report_index, is_final, metrics, facts=facts)

    def _evaluate_loss(self, member: Member) -> float:
        """Mean loss on the validation rows, through the same layers that train."""
        owner = member.owner(training=False)
        eval_batch = member.spec.training.per_device_eval_batch_size
        with self._fused.switch.routing(SoloLayout(owner, device=self._base.device)):
            return evaluate_loss(
                self._base.model,
                self._data.validation,
                batch_size=min(eval_batch, self._max_eval_batch or eval_batch),
                pad_token_id=self._base.tokenizer.pad_token_id,
                precision=self._base.precision,
            ).loss

    def _describe(self, member: Member) -> dict[str, Any]:
        described = member.describe()
        described["training"] |= {"bf16": self._base.precision == "bf16", "fp16": self._base.precision == "fp16"}
        return {
            "engine": "fused",
            **described,
            "precision": self._base.precision,
            "quantization": self._base.quantization.to_dict(),
            "hold_dequantized": self._holds_dequantized,
            "max_tokens_per_pass": self._max_tokens,
        }

    def _fail(self, member: Member, cause: FailureCause, message: str) -> Report:
        with self._lock:
            seat = self._present.get(member.spec.trial_id) or _Seat(member.spec, None)
        return self._end(seat, cause, message)

    def _end(self, seat: _Seat, cause: FailureCause, message: str, trace: str = "") -> Report:
        """A trial's last report; it stays, waiting, until it is evicted."""
        index = seat.member.report_index if seat.member else seat.state.report_index if seat.state else 0
        with self._lock:
            seat.is_waiting = seat.has_ended = True
        return Report(seat.spec.trial_id, index, True, {}, failure=Failure(cause, message, trace or message))

    def _wait(self, trial_id: str, *, has_ended: bool) -> None:
        with self._lock:
            seat = self._present.get(trial_id)
            if seat is not None:
                seat.is_waiting, seat.has_ended = True, has_ended

    def _score(self, model: Any) -> Scores:
        return score_model(
            model,
            self._base.tokenizer,
            self._data.validation,
            metrics=self._metrics,
            evaluate=self._evaluate,
            precision=self._base.precision,
            loss_batch_size=self._evaluate.batch_size,
        )
