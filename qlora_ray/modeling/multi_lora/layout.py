"""Which rows of a micro-batch belong to which adapters.

Shapes: B rows of the micro-batch, G groups, S slots of a stack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack
from qlora_ray.modeling.multi_lora.dropout import DropoutMasks


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a micro-batch whose adapters are in one stack, as groups of equally many rows.

    Attributes:
        rows: Where they are in the micro-batch.
        num_groups: G; each group's rows belong to one adapter.
        slots_G: The stack's slot of each group, or None where group g is slot g: then nothing need be gathered.
        scales_G11: What each group's update is multiplied with: alpha / r, and what dropout's mean demands.
        has_dropout: Whether any of the rows drops anything.
    """

    stack: AdapterStack
    rows: slice
    num_groups: int
    slots_G: Tensor | None
    scales_G11: Tensor
    has_dropout: bool


@dataclass(frozen=True)
class RowOwner:
    """Whose row it is: a slot of a stack, its scale, and its dropout rate."""

    stack: AdapterStack
    slot: int
    scale: float
    dropout: float = 0.0


class Layout(Protocol):
    """Whose rows are passing, and what they drop."""

    @property
    def masks(self) -> DropoutMasks | None:
        """Dropout masks; None in evaluation."""

    def segments(self, num_rows: int) -> tuple[Segment, ...]:
        """The segments of so many rows."""


@dataclass(frozen=True)
class TrainingLayout:
    """The rows of one training micro-batch."""

    fixed: tuple[Segment, ...]
    masks: DropoutMasks | None

    def segments(self, num_rows: int) -> tuple[Segment, ...]:
        """What was laid out, for as many rows as that was."""
        assert num_rows == self.fixed[-1].rows.stop, (num_rows, self.fixed[-1].rows)
        return self.fixed


class SoloLayout:
    """All rows are one adapter's, however many come: evaluation."""

    masks = None

    def __init__(self, owner: RowOwner, *, device: torch.device | str) -> None:
        self._owner = owner
        self._device = device
        self._known: dict[int, tuple[Segment, ...]] = {}

    def segments(self, num_rows: int) -> tuple[Segment, ...]:
        """One segment of one group."""
        if num_rows not in self._known:
            self._known[num_rows] = make_segments([self._owner] * num_rows, device=self._device)
        return self._known[num_rows]


class MixedLayout:
    """Rows of several adapters, and of the bare base, in an order that stays: evaluation.

    Args:
        owners: Whose each row is, those of one adapter side by side; None: the bare base's.
        device: Where the rows are computed.
    """

    masks = None

    def __init__(self, owners: Sequence[RowOwner | None], *, device: torch.device | str) -> None:
        self._num_rows = len(owners)
        self._segments = make_segments(owners, device=device)

    def segments(self, num_rows: int) -> tuple[Segment, ...]:
        """What was laid out, for as many rows as that was."""
        assert num_rows == self._num_rows, (num_rows, self._num_rows)
        return self._segments


def make_segments(owners: Sequence[RowOwner | None], *, device: torch.device | str) -> tuple[Segment, ...]:
    """Cuts rows, those of one stack sorted by slot, into segments of as few groups as they allow.

    Rows without an owner are the bare base's: they are in no segment.
    """
    segments: list[Segment] = []
    start = 0
    for _, group in itertools.groupby(owners, key=lambda owner: None if owner is None else id(owner.stack)):
        rows = list(group)
        owned = [owner for owner in rows if owner is not None]
        if owned:
            segments.append(_make_segment(owned, start, device))
        start += len(rows)
    return tuple(segments)


def _make_segment(owners: Sequence[RowOwner], start: int, device: torch.device | str) -> Segment:
    counts: dict[int, int] = {}
    for owner in owners:
        counts[owner.slot] = counts.get(owner.slot, 0) + 1
    group_rows = math.gcd(*counts.values())
    firsts = owners[::group_rows]
    slots = [owner.slot for owner in firsts]
    stack = owners[0].stack
    return Segment(
        stack=stack,
        rows=slice(start, start + len(owners)),
        num_groups=len(firsts),
        slots_G=None if slots == list(range(len(stack))) else torch.tensor(slots, device=device),
        scales_G11=torch.tensor([owner.scale for owner in firsts], device=device)[:, None, None],
        has_dropout=any(owner.dropout > 0 for owner in owners),
    )
