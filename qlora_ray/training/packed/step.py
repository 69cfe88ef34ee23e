"""One step of the pack: every trial that trains takes exactly one optimizer step of its own.

Shapes: B rows of a micro-batch, T tokens, N predicted tokens, M trials that step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qlora_ray.errors import first_line
from qlora_ray.modeling.auxiliary_heads import HeadRows
from qlora_ray.modeling.device_memory import as_out_of_memory
from qlora_ray.modeling.heads import SplitModel
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack
from qlora_ray.modeling.multi_lora.dropout import Counters, DropoutMasks, row_key
from qlora_ray.modeling.multi_lora.layout import TrainingLayout, make_segments
from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase
from qlora_ray.scoring.inference import computing_in
from qlora_ray.training.packed.batching import StepRow, cut_micro_batches, padding_of
from qlora_ray.training.packed.head_losses import HeadLosses
from qlora_ray.training.packed.loss import backward_losses
from qlora_ray.training.packed.meter import PeakMeter
from qlora_ray.training.packed.trial import PackedTrial
from qlora_ray.training.simulated_memory import SimulatedMemory

if TYPE_CHECKING:
    from qlora_ray.data import TokenizedSplit


@dataclass(frozen=True)
class StepOutcome:
    """What came of a step.

    Attributes:
        problems: Why a trial diverged, by its position; it has taken no step.
        without_room: Why a trial's optimizer found no room for its moments; it has taken no step either.
    """

    problems: dict[int, str]
    without_room: dict[int, str]


class StepRunner:
    """Runs steps on one base.

    Args:
        wrapped: The base with its wrapped layers.
        rows: Training rows.
        meter: Measures every micro-batch.
        gradient_checkpointing: Whether activations are recomputed for trials that leave it open.
        memory: The memory of the device that this one stands for; None on a real one.
    """

    def __init__(
        self,
        wrapped: WrappedBase,
        rows: TokenizedSplit,
        *,
        meter: PeakMeter,
        gradient_checkpointing: bool = False,
        memory: SimulatedMemory | None = None,
    ) -> None:
        self._meter = meter
        self._plans_checkpoints = gradient_checkpointing
        self._memory = memory
        # Whether the last step recomputed activations: one trial that asks for it does so for all.
        self.checkpoints = False
        self._wrapped = wrapped
        self._base: LoadedBase = wrapped.base
        self._model = SplitModel(wrapped.base.model)
        self._counters = Counters(wrapped.base.device)
        self._rows = rows
        self._head_losses = HeadLosses(HeadRows(rows))
        self._lengths = rows.input_ids.lengths
        self._pad = int(wrapped.base.tokenizer.pad_token_id)
        self._vocab_size = wrapped.base.model.get_output_embeddings().weight.shape[0]

    def longest_row(self, trials: Sequence[PackedTrial]) -> int:
        """Tokens of the longest row of the trials' next step."""
        return max(int(self._lengths[row]) for trial in trials for row in trial.next_rows())

    def recompute_activations(self, trials: Sequence[PackedTrial]) -> bool:
        """Recomputes activations from now on, for trials that leave it open; False where nothing would change."""
        is_open = any(not trial.spec.training.recomputes(planned=False) for trial in trials)
        would_change = is_open and all(trial.spec.training.recomputes(planned=True) for trial in trials)
        if self._plans_checkpoints or not would_change:
            return False
        self._plans_checkpoints = True
        return True

    @as_out_of_memory()
    def run(self, trials: Sequence[PackedTrial], *, max_tokens: int) -> StepOutcome:
        """Trains every trial by one step.

        Raises:
            torch.OutOfMemoryError: A micro-batch did not fit. Nothing is lost: no optimizer has stepped.
        """
        stacks = list({id(trial.stack): trial.stack for trial in trials}.values())
        rows = [
            StepRow(position, index, row, int(self._lengths[row]))
            for position, trial in enumerate(trials)
            for index, row in enumerate(trial.next_rows())
        ]
        answer_tokens = [0] * len(trials)
        for row in rows:
            answer_tokens[row.trial] += len(self._predicting(row.row))
        self._head_losses.begin(trials)
        micro_batches = cut_micro_batches(rows, max_tokens=max_tokens)
        for stack in stacks:
            stack.gradients_SP.zero_()
        sums_M = torch.zeros(len(trials), device=self._base.device)
        checkpoints = any(trial.spec.training.recomputes(planned=self._plans_checkpoints) for trial in trials)
        with self._training(checkpoints=checkpoints):
            for micro_batch in micro_batches:
                longest = max(row.num_tokens for row in micro_batch)
                if self._memory is not None:
                    self._memory.take_step(
                        num_tokens=len(micro_batch) * longest, longest=longest, recomputes=checkpoints
                    )
                for trial in trials:
                    trial.largest_micro_batch = max(trial.largest_micro_batch, len(micro_batch) * longest)
                self._meter.begin()
                sums_M += self._run_micro_batch(micro_batch, trials, answer_tokens)
                self._meter.end(len(micro_batch) * longest)
        losses, norms = self._read(sums_M, trials, stacks, answer_tokens)
        problems: dict[int, str] = {}
        without_room: dict[int, str] = {}
        for position, trial in enumerate(trials):
            problem = _find_problem(losses[position], norms[position], trial)
            if problem:
                problems[position] = problem
                continue
            try:
                trial.finish_step(norms[position])
            except torch.OutOfMemoryError as error:
                without_room[position] = first_line(error)
                continue
            trial.last_loss = losses[position]
            trial.interval.losses.append(trial.last_loss)
        for micro_batch in micro_batches:
            for row, num_padding in zip(micro_batch, padding_of(micro_batch), strict=True):
                interval = trials[row.trial].interval
                interval.num_tokens += row.num_tokens
                interval.num_padding += num_padding
        return StepOutcome(problems, without_room)

    def _run_micro_batch(
        self, rows: Sequence[StepRow], trials: Sequence[PackedTrial], answer_tokens: Sequence[int]
    ) -> Tensor:
        """Forward and backward of one micro-batch; returns each trial's summed loss in it, [M]."""
        device = self._base.device
        owners = [trials[row.trial].owner(training=True) for row in rows]
        layout = TrainingLayout(
            make_segments(owners, device=device),
            DropoutMasks(
                [row_key(trials[r.trial].spec.training.seed, trials[r.trial].step, r.index) for r in rows],
                [owner.dropout for owner in owners],
                counters=self._counters,
            ),
        )
        longest = max(row.num_tokens for row in rows)
        ids_BT = np.full((len(rows), longest), self._pad, dtype=np.int64)
        positions, labels, owners_of_tokens = [], [], []
        for at, row in enumerate(rows):
            ids = self._rows.input_ids.array(row.row)
            ids_BT[at, : len(ids)] = ids
            predicting = self._predicting(row.row)
            positions.append(predicting + at * longest)
            labels.append(ids[predicting + 1].astype(np.int64))
            owners_of_tokens.append(np.full(len(predicting), row.trial))
        trials_N = np.concatenate(owners_of_tokens)
        weights_M = [
            (trial.loss_scale.scale if trial.loss_scale else 1.0) / max(1, count)
            for trial, count in zip(trials, answer_tokens, strict=True)
        ]
        weights_N = np.asarray(weights_M, dtype=np.float32)[trials_N]
        with self._wrapped.switch.routing(layout):
            hidden_BTD = self._model.hidden(torch.from_numpy(ids_BT).to(device))
            return backward_losses(
                hidden_BTD,
                positions_N=torch.from_numpy(np.concatenate(positions)).to(device),
                labels_N=torch.from_numpy(np.concatenate(labels)).to(device),
                trials_N=torch.from_numpy(trials_N).to(device),
                weights_N=torch.from_numpy(weights_N).to(device),
                num_trials=len(trials),
                vocab_size=self._vocab_size,
                logits_of=self._model.logits,
                others=self._head_losses.go_back(hidden_BTD, rows),
            )

    def _predicting(self, row: int) -> NDArray[np.int64]:
        """Positions whose successor is an answer token: a row's first token has nothing before it."""
        return np.flatnonzero(self._rows.completion_mask.array(row)[1:])

    def _read(
        self,
        sums_M: Tensor,
        trials: Sequence[PackedTrial],
        stacks: Sequence[AdapterStack],
        answer_tokens: Sequence[int],
    ) -> tuple[list[float], list[float]]:
        """Each trial's loss and gradient norm, in one copy from the device."""
        norms = torch.cat([stack.gradients_SP.norm(dim=1) for stack in stacks])
        numbers = torch.cat([sums_M, norms]).cpu().tolist()
        losses = [numbers[at] / max(1, count) for at, count in enumerate(answer_tokens)]
        offsets, start = {}, len(trials)
        for stack in stacks:
            offsets[id(stack)] = start
            start += len(stack)
        return losses, [numbers[offsets[id(trial.stack)] + trial.slot] for trial in trials]

    def _training(self, *, checkpoints: bool) -> torch.autocast:
        """Sets the base to train; returns the autocast for it, as TRL trains."""
        model = self._base.model
        model.train()
        if checkpoints != self.checkpoints:
            self.checkpoints = checkpoints
            if checkpoints:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()
        return computing_in(self._base.precision, device_type=torch.device(self._base.device).type)


def _find_problem(loss: float, norm: float, trial: PackedTrial) -> str | None:
    """Why a trial has diverged, or None. A norm that overflowed under fp16 is its loss scale's business."""
    step = trial.step + 1
    if not math.isfinite(loss):
        return f"training loss is {loss} at step {step}"
    if not math.isfinite(norm) and trial.loss_scale is None:
        return f"gradient norm is {norm} at step {step}"
    return None
