"""One step of the pack: every trial that trains takes exactly one optimizer step of its own.

Shapes: B rows of a pass, T tokens, N predicted tokens, M members that step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qlora_ray.modeling.heads import SplitModel
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterBank
from qlora_ray.modeling.multi_lora.dropout import Counters, DropoutMasks, row_key
from qlora_ray.modeling.multi_lora.layout import TrainingLayout, make_segments
from qlora_ray.modeling.multi_lora.wrapped_base import FusedBase
from qlora_ray.scoring.inference import AUTOCAST_DTYPES
from qlora_ray.training.packed.batching import StepRow, cut_passes, padding_of
from qlora_ray.training.packed.loss import backward_losses
from qlora_ray.training.packed.member import Member
from qlora_ray.training.packed.meter import PeakMeter

if TYPE_CHECKING:
    from qlora_ray.data import TokenizedSplit


@dataclass(frozen=True)
class StepOutcome:
    """What came of a step.

    Attributes:
        problems: Why a member diverged, by its position; it has taken no step.
        without_room: Why a member's optimizer found no room for its moments; it has taken no step either.
        num_passes: Forwards and backwards.
    """

    problems: dict[int, str]
    without_room: dict[int, str]
    num_passes: int


class StepRunner:
    """Runs steps on one base.

    Args:
        fused: The base with its fused layers.
        rows: Training rows.
        meter: Measures every pass.
    """

    def __init__(self, fused: FusedBase, rows: TokenizedSplit, *, meter: PeakMeter) -> None:
        self._meter = meter
        # Whether the last step recomputed activations: one trial that asks for it does so for all.
        self.checkpoints = False
        self._fused = fused
        self._base: LoadedBase = fused.base
        self._model = SplitModel(fused.base.model)
        self._counters = Counters(fused.base.device)
        self._ids = [np.asarray(ids, dtype=np.int64) for ids in rows.input_ids]
        # Positions whose successor is an answer token: a row's first token has nothing before it.
        self._predicting = [np.flatnonzero(np.asarray(mask[1:], dtype=bool)) for mask in rows.completion_mask]
        self._pad = int(fused.base.tokenizer.pad_token_id)
        self._vocab_size = fused.base.model.get_output_embeddings().weight.shape[0]

    def longest_row(self, members: Sequence[Member]) -> int:
        """Tokens of the longest row of the members' next step."""
        return max(len(self._ids[row]) for member in members for row in member.next_rows())

    def run(self, members: Sequence[Member], *, max_tokens: int) -> StepOutcome:
        """Trains every member by one step.

        Raises:
            torch.OutOfMemoryError: A pass did not fit. Nothing is lost: no optimizer has stepped.
        """
        banks = list({id(member.bank): member.bank for member in members}.values())
        rows = [
            StepRow(position, index, row, len(self._ids[row]))
            for position, member in enumerate(members)
            for index, row in enumerate(member.next_rows())
        ]
        answer_tokens = [0] * len(members)
        for row in rows:
            answer_tokens[row.member] += len(self._predicting[row.row])
        passes = cut_passes(rows, max_tokens=max_tokens)
        for bank in banks:
            bank.gradients_SP.zero_()
        sums_M = torch.zeros(len(members), device=self._base.device)
        checkpoints = any(member.spec.training.gradient_checkpointing for member in members)
        with self._training(checkpoints=checkpoints):
            for rows_of_pass in passes:
                self._meter.begin()
                sums_M += self._run_pass(rows_of_pass, members, answer_tokens)
                self._meter.end(len(rows_of_pass) * max(row.num_tokens for row in rows_of_pass))
        losses, norms = self._read(sums_M, members, banks, answer_tokens)
        problems: dict[int, str] = {}
        without_room: dict[int, str] = {}
        for position, member in enumerate(members):
            problem = _find_problem(losses[position], norms[position], member)
            if problem:
                problems[position] = problem
                continue
            try:
                member.finish_step(norms[position])
            except torch.OutOfMemoryError as error:
                without_room[position] = str(error).splitlines()[0]
                continue
            member.interval.losses.append(losses[position])
        for rows_of_pass in passes:
            for row, num_padding in zip(rows_of_pass, padding_of(rows_of_pass), strict=True):
                interval = members[row.member].interval
                interval.num_tokens += row.num_tokens
                interval.num_padding += num_padding
        return StepOutcome(problems, without_room, len(passes))

    def _run_pass(self, rows: Sequence[StepRow], members: Sequence[Member], answer_tokens: Sequence[int]) -> Tensor:
        """Forward and backward of one pass; returns each member's summed loss in it, [M]."""
        device = self._base.device
        owners = [members[row.member].owner(training=True) for row in rows]
        layout = TrainingLayout(
            make_segments(owners, device=device),
            DropoutMasks(
                [row_key(members[r.member].spec.training.seed, members[r.member].step, r.index) for r in rows],
                [owner.dropout for owner in owners],
                counters=self._counters,
            ),
        )
        longest = max(row.num_tokens for row in rows)
        ids_BT = np.full((len(rows), longest), self._pad, dtype=np.int64)
        positions, labels, owners_of_tokens = [], [], []
        for at, row in enumerate(rows):
            ids = self._ids[row.row]
            ids_BT[at, : len(ids)] = ids
            predicting = self._predicting[row.row]
            positions.append(predicting + at * longest)
            labels.append(ids[predicting + 1])
            owners_of_tokens.append(np.full(len(predicting), row.member))
        members_N = np.concatenate(owners_of_tokens)
        weights_M = [
            (member.loss_scale.scale if member.loss_scale else 1.0) / max(1, count)
            for member, count in zip(members, answer_tokens, strict=True)
        ]
        weights_N = np.asarray(weights_M, dtype=np.float32)[members_N]
        with self._fused.switch.routing(layout):
            hidden_BTD = self._model.hidden(torch.from_numpy(ids_BT).to(device))
            return backward_losses(
                hidden_BTD,
                positions_N=torch.from_numpy(np.concatenate(positions)).to(device),
                labels_N=torch.from_numpy(np.concatenate(labels)).to(device),
                members_N=torch.from_numpy(members_N).to(device),
                weights_N=torch.from_numpy(weights_N).to(device),
                num_members=len(members),
                vocab_size=self._vocab_size,
                logits_of=self._model.logits,
            )

    def _read(
        self, sums_M: Tensor, members: Sequence[Member], banks: Sequence[AdapterBank], answer_tokens: Sequence[int]
    ) -> tuple[list[float], list[float]]:
        """Each member's loss and gradient norm, in one copy from the device."""
        norms = torch.cat([bank.gradients_SP.norm(dim=1) for bank in banks])
        numbers = torch.cat([sums_M, norms]).cpu().tolist()
        losses = [numbers[at] / max(1, count) for at, count in enumerate(answer_tokens)]
        offsets, start = {}, len(members)
        for bank in banks:
            offsets[id(bank)] = start
            start += len(bank)
        return losses, [numbers[offsets[id(member.bank)] + member.slot] for member in members]

    def _training(self, *, checkpoints: bool) -> torch.autocast:
        """Sets the base to train; autocast on a GPU, as TRL trains, and none on a CPU."""
        model = self._base.model
        model.train()
        if checkpoints != self.checkpoints:
            self.checkpoints = checkpoints
            if checkpoints:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                model.gradient_checkpointing_disable()
        dtype = AUTOCAST_DTYPES.get(self._base.precision) if self._base.device != "cpu" else None
        return torch.autocast("cpu" if self._base.device == "cpu" else "cuda", dtype=dtype, enabled=dtype is not None)


def _find_problem(loss: float, norm: float, member: Member) -> str | None:
    """Why a member has diverged, or None. A norm that overflowed under fp16 is its loss scale's business."""
    step = member.step + 1
    if not math.isfinite(loss):
        return f"training loss is {loss} at step {step}"
    if not math.isfinite(norm) and member.loss_scale is None:
        return f"gradient norm is {norm} at step {step}"
    return None
