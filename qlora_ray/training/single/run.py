"""One trial in TRL's SFTTrainer, on a thread of its own that stops at every report and waits."""

from __future__ import annotations

import math
import queue
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from peft import LoraConfig
from transformers import PrinterCallback

from qlora_ray.errors import TrialDiverged, first_line
from qlora_ray.hardware.plan import largest_divisor
from qlora_ray.modeling.adapters import attach_adapter, count_parameters, detach_adapter
from qlora_ray.modeling.auxiliary_heads import HeadRows, TrainedHead, attach_heads, attached_heads
from qlora_ray.modeling.device_memory import as_out_of_memory, peak_memory_bytes
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.scoring.heads import HeadScorer
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.training.admission import Phase
from qlora_ray.training.budget import sample_order
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import (
    UNEVALUATED,
    EngineEvent,
    Failure,
    Preemption,
    Report,
    TrainedListener,
    TrialProgress,
    TrialSpec,
)
from qlora_ray.training.report_metrics import PEAK_METRIC, reported_peak_bytes, thin_losses
from qlora_ray.training.simulated_memory import SimulatedMemory
from qlora_ray.training.single.head_loss import HeadLoss
from qlora_ray.training.single.sft_arguments import make_sft_config, sft_arguments
from qlora_ray.training.single.trainer import OrderedTrainer, load_trainable

if TYPE_CHECKING:
    from peft import PeftModel

    from qlora_ray.data import TokenizedSplit

# Trainers insist on a folder, and nothing is ever saved there: one for all, so that a killed process leaves none.
SCRATCH = Path(tempfile.gettempdir()) / "qlora_ray_trainer"
# Arguments that say nothing about the result.
UNRECORDED_ARGUMENTS = ("output_dir", "dataset_kwargs", "report_to")


def labelled_rows(split: TokenizedSplit) -> Dataset:
    """Rows as SFTTrainer takes them: labels are the ids where the answer is, and -100 (ignored) elsewhere.

    They stay in the split's table, and labels are made as rows are read.
    """
    # SFTTrainer asks for a column of that name, which holds the masks until it is read.
    table = split.table.select(["input_ids", "completion_mask"]).rename_columns(["input_ids", "labels"])
    # The fingerprint is given, as datasets would read all rows to make one.
    rows = Dataset(InMemoryTable(table), fingerprint=f"{split.name}-{uuid.uuid4().hex}")
    return rows.with_transform(_label)


def _label(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    labels = [
        [token if trained else -100 for token, trained in zip(ids, mask, strict=True)]
        for ids, mask in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
    return {**batch, "labels": labels}


class SingleRun:
    """A trial that trains on its own thread and hands over one report at a time.

    SFTTrainer.train() returns only at the end, so the trial stops inside a callback: it puts its report in a
    queue and sleeps on a semaphore until `proceed` or `stop`.

    Attributes:
        leave_reason: Why it was asked to be put off; None where it was not. Any thread may set it.
    """

    def __init__(
        self,
        spec: TrialSpec,
        *,
        base: LoadedBase,
        rows: Dataset,
        head_rows: HeadRows,
        validation: TokenizedSplit,
        max_micro_batch: int,
        max_eval_batch: int | None,
        recomputes: bool = False,
        memory: SimulatedMemory | None = None,
        state: TrialState | None,
        on_trained: TrainedListener,
    ) -> None:
        self.spec = spec
        self.state = state
        # Its own thread's to set, but for REPORTED, ENDED and PREEMPTED: the engine's, once it has taken the event.
        self.phase = Phase.ENTERING
        self.leave_reason: str | None = None
        self._on_trained = on_trained
        self._recomputes = recomputes
        self._memory = memory
        self.model: PeftModel | None = None
        self._trainer: OrderedTrainer | None = None
        self._facts: dict[str, Any] = {}
        self._base = base
        self._rows = rows
        self._head_rows = head_rows
        self._validation = validation
        self._micro_batch = largest_divisor(
            spec.training.effective_batch, at_most=min(max_micro_batch, spec.training.per_device_train_batch_size)
        )
        eval_batch = spec.training.per_device_eval_batch_size
        self._eval_batch = min(eval_batch, max_eval_batch or eval_batch)
        self._events: queue.Queue[EngineEvent | None] = queue.Queue()
        self._go = threading.Semaphore(0)
        self._stopping = False
        self._num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name=f"trial-{spec.trial_id}", daemon=True)

    def start(self) -> None:
        """Begins to train."""
        self._thread.start()

    def next_event(self) -> EngineEvent | None:
        """Waits for the next report, or the preemption; None once the trial was stopped without another."""
        return self._events.get()

    def progress(self) -> TrialProgress:
        """How far the trial is; from any thread."""
        # The trial's own thread replaces these as a whole.
        state, trainer = self.state, self._trainer
        metrics = {**state.metrics, **state.pending_metrics} if state else {}
        return TrialProgress(
            self.spec.trial_id,
            trainer.last_step if trainer else state.step if state else 0,
            train_loss=trainer.last_loss if trainer else None,
            eval_loss=metrics.get("eval_loss"),
            tokens_per_s=(trainer.tokens_per_s if trainer else None) or metrics.get("tokens_per_s"),
        )

    def proceed(self) -> None:
        """Lets the trial train on."""
        self.phase = Phase.TRAINING
        self._go.release()

    def stop(self) -> None:
        """Ends the trial at its next step and gives the base back as it was."""
        self._stopping = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        # OpenMP's thread count belongs to a thread, not to the process.
        torch.set_num_threads(self._num_threads)
        try:
            while not self._stopping:
                pending = self._pending_step
                try:
                    self._train()
                    # Not sooner: who hears of it may evict the trial, and admit another on the base as it was.
                    if self.leave_reason is not None and not self._stopping:
                        self._events.put(Preemption(self.spec.trial_id, self.leave_reason))
                    break
                except torch.OutOfMemoryError as error:
                    problem = first_line(error)
                if not self._makes_room(pending, problem):
                    break
        except TrialDiverged as error:
            self._fail(Failure("diverged", str(error)))
        except Exception as error:
            self._fail(Failure.from_error(error))
        finally:
            self._events.put(None)

    @property
    def _pending_step(self) -> int | None:
        """The step of the trial's pending report; None if there is none."""
        return self.state.step if self.state is not None and self.state.has_pending_report else None

    def _makes_room(self, pending: int | None, problem: str) -> bool:
        """Whether the trial, out of memory, goes on in less of it. Nothing is lost: it does so from its last state.

        Args:
            pending: The step of the report that was pending when it last began.
            problem: What torch said.
        """
        if self._pending_step is not None:
            # It was not training that found no room. Trainer, optimizer and gradients are gone now, so once more.
            if self._pending_step != pending:
                return True
            self._fail(Failure("unevaluated", f"{UNEVALUATED}: {problem}"))
            return False
        if self._micro_batch == 1 and not self._recomputes and self.spec.training.recomputes(planned=True):
            self._recomputes = True
            return True
        if self._micro_batch == 1:
            self._fail(Failure("oom", problem))
            return False
        # Smaller micro-batches of the same effective batch.
        self._micro_batch = largest_divisor(self.spec.training.effective_batch, at_most=self._micro_batch // 2)
        return True

    def _fail(self, failure: Failure) -> None:
        index = self.state.report_index if self.state else 0
        self._events.put(Report(self.spec.trial_id, index, True, {}, failure=failure))

    @as_out_of_memory()
    def _train(self) -> None:
        """Trains to the end, or until the trial is stopped or leaves."""
        if self.leave_reason is not None:
            return
        start_step = self.state.step if self.state else 0
        base_forward = self._base.model.__dict__.get("forward")
        if self._base.device != "cpu":
            # What an earlier trial left cached is not this one's peak.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if self._memory is not None:
            self._memory.hold_trial(self.spec.lora, optim=self.spec.training.optim)
        self.model = attach_adapter(self._base, self.spec.lora, seed=self.spec.training.seed)
        try:
            attach_heads(self.model, self.spec.heads)
            if self.state:
                load_trainable(self.model, self.state.adapter)
            if self._pending_step is not None:
                self._report_and_wait()
            if self._stopping or self.leave_reason is not None or start_step == self.spec.budget.num_steps:
                return
            arguments = sft_arguments(
                self.spec,
                micro_batch=self._micro_batch,
                precision=self._base.precision,
                device=self._base.device,
                output_dir=SCRATCH,
                gradient_checkpointing=self._recomputes,
                num_steps=self.spec.budget.num_steps - start_step,
            )
            self._facts = self._describe(arguments)
            self._trainer = self._make_trainer(arguments, start_step)
            self.phase = Phase.TRAINING
            self._trainer.train()
        finally:
            # SFTTrainer patches the base's forward for its chunked loss; the next trial gets a clean one.
            if base_forward is None:
                self._base.model.__dict__.pop("forward", None)
            else:
                self._base.model.forward = base_forward
            if self._recomputes and self._trainer is not None:
                self._base.model.gradient_checkpointing_disable()
                self._base.model.disable_input_require_grads()
            detach_adapter(self._base)
            self.model = self._trainer = None
            self.phase = Phase.ENTERING

    @property
    def heads(self) -> list[TrainedHead]:
        """The trial's heads as they are now."""
        assert self.model is not None
        return attached_heads(self.model, self.spec.heads)

    def _make_trainer(self, arguments: dict[str, Any], start_step: int) -> OrderedTrainer:
        assert self.model is not None
        budget = self.spec.budget
        order = sample_order(
            num_rows=len(self._rows),
            num_samples=budget.samples_seen(budget.num_steps),
            data_seed=self.spec.training.data_seed,
        )
        rows = order[budget.samples_seen(start_step) :]
        trainer = OrderedTrainer(
            self.spec,
            state=self.state,
            on_report=self._keep_and_report,
            is_stopping=lambda: self._stopping,
            is_leaving=lambda: self.leave_reason is not None,
            on_leave=self._keep_unreported,
            before_micro_batch=self._take_step,
            head_loss=HeadLoss(self.heads, self._head_rows, rows=rows, effective_batch=budget.effective_batch)
            if self.spec.heads
            else None,
            model=self.model,
            args=make_sft_config(arguments),
            train_dataset=self._rows.select(rows),
            processing_class=self._base.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _take_step(self, num_rows: int, longest: int) -> None:
        """A micro-batch on a simulated device, which may have no room for it."""
        if self._memory is not None:
            self._memory.take_step(num_tokens=num_rows * longest, longest=longest, recomputes=self._recomputes)

    def _describe(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What really runs: every value resolved, none left as an expression."""
        assert self.model is not None
        trainable, total = count_parameters(self.model)
        return {
            "engine": "single",
            "training": {key: value for key, value in arguments.items() if key not in UNRECORDED_ARGUMENTS},
            "lora": {
                **self.spec.lora.model_dump(exclude={"alpha_ratio"}),
                "lora_alpha": self.spec.lora.resolved_alpha,
                "target_modules": sorted(cast(LoraConfig, self.model.peft_config["default"]).target_modules or ()),
            },
            "heads": {spec.name: spec.describe() for spec in self.spec.heads},
            "micro_batch": self._micro_batch,
            "gradient_accumulation_steps": arguments["gradient_accumulation_steps"],
            "effective_batch": self.spec.training.effective_batch,
            "num_samples": self.spec.budget.num_samples,
            "num_steps": self.spec.budget.num_steps,
            "precision": self._base.precision,
            "quantization": self._base.quantization.to_dict(),
            "trainable_parameters": trainable,
            "total_parameters": total,
            "trainable_percent": round(100 * trainable / total, 4),
        }

    def _keep_and_report(self, step: int) -> None:
        """Keeps the state after a step, with its report pending, and makes the report."""
        assert self._trainer is not None
        training = self._trainer.take_metrics()
        state = self._trainer.take_state(step, self.state.report_index if self.state else 0)
        state.metrics = self.state.metrics if self.state else {}
        state.facts = self._facts
        state.train_losses = thin_losses(
            self._trainer.take_losses(), last_step=step, every=self.spec.training.logging_steps
        )
        state.pending_metrics = {
            **training,
            "step": step,
            "samples_seen": self.spec.budget.samples_seen(step),
            PEAK_METRIC: peak_memory_bytes(self._base.device),
        }
        self.state = state
        self._report_and_wait()

    def _keep_unreported(self, step: int) -> None:
        """Keeps the state after a step, where no report has kept it, for the trial to go on from elsewhere."""
        assert self._trainer is not None
        before = self.state
        if before is not None and before.step == step:
            return
        state = self._trainer.take_state(step, before.report_index if before else 0)
        state.interval_losses = self._trainer.take_losses()
        if before is not None:
            state.metrics, state.facts, state.train_losses = before.metrics, before.facts, before.train_losses
        self.state = state

    def _report_and_wait(self) -> None:
        """Evaluates, hands the report over, and sleeps until told go on or stop. Runs on the trial's thread."""
        assert self.model is not None and self.state is not None
        budget, state = self.spec.budget, self.state
        step = state.step
        is_final = step == budget.num_steps
        self.phase = Phase.EVALUATING
        self._on_trained(self.spec.trial_id, is_final)
        started = time.perf_counter()
        if self._memory is not None:
            longest = int(self._validation.input_ids.lengths.max(initial=1))
            self._memory.take_evaluation(num_rows=self._eval_batch, longest=longest)
        scorer = HeadScorer(self.heads, self._validation)
        result = evaluate_loss(
            self.model,
            self._validation,
            batch_size=self._eval_batch,
            pad_token_id=self._base.tokenizer.pad_token_id,
            precision=self._base.precision,
            on_hidden=scorer.observe if self.spec.heads else None,
        )
        if not math.isfinite(result.loss):
            raise TrialDiverged(f"eval_loss is {result.loss} after step {step}")
        index = budget.report_steps.index(step) + 1
        metrics = {
            "eval_loss": result.loss,
            **scorer.metrics(),
            **state.pending_metrics,
            "eval_s": time.perf_counter() - started,
            PEAK_METRIC: reported_peak_bytes(state, device=self._base.device),
        }
        self.state = state.reported(index, metrics=metrics)
        self._events.put(
            Report(self.spec.trial_id, index, is_final, metrics, facts=state.facts, train_losses=state.train_losses)
        )
        self._go.acquire()
