"""Linear layers of the frozen base that add each adapter's low-rank update to that adapter's own rows.

PEFT has no such layer for training: `adapter_names` raises in training mode, and its mixed-batch forward gathers and
scatters adapter by adapter (peft 0.21, tuners/lora/layer.py).

Shapes: B rows, T tokens, D inputs, O outputs, G groups of rows (see layout.py), N = B / G * T tokens of a group,
R padded rank, S slots of a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlora_ray.modeling.multi_lora.layout import Layout, Segment


class Switch:
    """Tells all wrapped layers of a base whose rows are passing; None: the bare base."""

    def __init__(self) -> None:
        self.layout: Layout | None = None

    @contextmanager
    def routing(self, layout: Layout) -> Iterator[None]:
        """Rows belong to `layout`'s adapters for the length of the block."""
        self.layout = layout
        try:
            yield
        finally:
            self.layout = None


class MultiLoraLinear(nn.Module):
    """A frozen linear layer, and the updates of the adapters that adapt it.

    Args:
        frozen: nn.Linear, or bitsandbytes' Linear4bit or Linear8bitLt.
        number: The layer's number in the base: part of its dropout masks' coordinates.
        switch: Where the micro-batch's layout is found.
        dense_OD: The frozen weight in the compute dtype, where it is held so; else `frozen` makes its own product.
    """

    def __init__(self, frozen: nn.Module, *, number: int, switch: Switch, dense_OD: Tensor | None) -> None:
        super().__init__()
        self.frozen = frozen
        self.number = number
        self._switch = switch
        # Not a buffer: it must not be saved, counted or moved as part of the base.
        self._dense_OD = dense_OD

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The frozen product, and to each adapted row its adapter's update."""
        layout = self._switch.layout
        every = layout.segments(len(x_BTD)) if layout is not None else ()
        segments = [segment for segment in every if self.number in segment.stack]
        if not segments:
            return self._frozen_product(x_BTD)
        # Gradients of A and B are summed into their stacks, so that no parameter takes part in autograd; the anchor
        # makes it record the layer also where nothing before it needs a gradient.
        anchor = torch.empty(0, requires_grad=torch.is_grad_enabled())
        if self._dense_OD is None:
            y_BTO = self._frozen_product(x_BTD)
            if y_BTO._is_view():
                # What another autograd function gives back as a view cannot be changed in place.
                y_BTO = y_BTO.clone()
            return _AddUpdates.apply(x_BTD, y_BTO, anchor, self.number, layout, segments)
        bias = getattr(self.frozen, "bias", None)
        return _LinearWithUpdates.apply(x_BTD, self._dense_OD, bias, anchor, self.number, layout, segments)

    def _frozen_product(self, x_BTD: Tensor) -> Tensor:
        if self._dense_OD is None:
            return self.frozen(x_BTD)
        bias = getattr(self.frozen, "bias", None)
        return _dense_product(x_BTD, self._dense_OD, bias)


class _AddUpdates(torch.autograd.Function):
    """y + scale * B A (mask x), group by group, added to y in place."""

    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, y_BTO: Tensor, anchor: Tensor, layer: int, layout: Layout, segments: Sequence[Segment]
    ) -> Tensor:
        ctx.mark_dirty(y_BTO)
        ctx.work = (layer, segments)
        with _no_autocast(x_BTD):
            ctx.save_for_backward(x_BTD, *_add_updates(x_BTD, y_BTO, layer, layout, segments))
        return y_BTO

    @staticmethod
    def backward(ctx: Any, gy_BTO: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, *kept = ctx.saved_tensors
        gx_BTD = x_BTD.new_zeros(x_BTD.shape) if ctx.needs_input_grad[0] else None
        with _no_autocast(x_BTD):
            _sum_gradients(gy_BTO, x_BTD, kept, gx_BTD, *ctx.work)
        return gx_BTD, gy_BTO, None, None, None, None


class _LinearWithUpdates(torch.autograd.Function):
    """The same on a dense frozen weight, whose own products need no pass of their own over x and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        weight_OD: Tensor,
        bias: Tensor | None,
        anchor: Tensor,
        layer: int,
        layout: Layout,
        segments: Sequence[Segment],
    ) -> Tensor:
        y_BTO = _dense_product(x_BTD, weight_OD, bias)
        ctx.work = (layer, segments)
        with _no_autocast(x_BTD):
            ctx.save_for_backward(x_BTD, weight_OD, *_add_updates(x_BTD, y_BTO, layer, layout, segments))
        return y_BTO

    @staticmethod
    def backward(ctx: Any, gy_BTO: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, weight_OD, *kept = ctx.saved_tensors
        gx_BTD = None
        if ctx.needs_input_grad[0]:
            gx_BTD = (gy_BTO.to(weight_OD.dtype) @ weight_OD).to(x_BTD.dtype)
        with _no_autocast(x_BTD):
            _sum_gradients(gy_BTO, x_BTD, kept, gx_BTD, *ctx.work)
        return gx_BTD, None, None, None, None, None, None


def _no_autocast(x_BTD: Tensor) -> AbstractContextManager[Any]:
    """Types are cast by hand here: autocast would cast some of the operations below, and not those in place."""
    device_type = x_BTD.device.type
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


def _dense_product(x_BTD: Tensor, weight_OD: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in the weight's dtype, as bitsandbytes computes it after dequantizing."""
    bias = None if bias is None else bias.to(weight_OD.dtype)
    return F.linear(x_BTD.to(weight_OD.dtype), weight_OD, bias).to(x_BTD.dtype)


def _add_updates(
    x_BTD: Tensor, y_BTO: Tensor, layer: int, layout: Layout, segments: Sequence[Segment]
) -> list[Tensor | None]:
    """Adds each segment's update to y in place; returns what the backward needs of each.

    That is its scaled low-rank product [G, N, R], and its dropout mask [B, T, D], a byte an element, or None.
    """
    kept: list[Tensor | None] = []
    for segment in segments:
        a_GRD, b_GOR = _weights(segment, layer, y_BTO.dtype)
        mask_BTD = _find_mask(x_BTD, layer, layout, segment)
        x_GND = _grouped(_masked(x_BTD[segment.rows], mask_BTD), segment).to(y_BTO.dtype)
        low_GNR = torch.bmm(x_GND, a_GRD.mT).mul_(segment.scales_G11)
        # view, not reshape: a copy would take the update and be lost.
        y_BTO[segment.rows].view(len(low_GNR), -1, y_BTO.shape[-1]).baddbmm_(low_GNR, b_GOR.mT)
        kept += [low_GNR, mask_BTD]
    return kept


def _sum_gradients(
    gy_BTO: Tensor,
    x_BTD: Tensor,
    kept: Sequence[Tensor | None],
    gx_BTD: Tensor | None,
    layer: int,
    segments: Sequence[Segment],
) -> None:
    """Sums the gradients of A and B into their stacks, and adds the updates' share to x's, in place."""
    gy_BTO = gy_BTO.contiguous()
    for segment, low_GNR, mask_BTD in zip(segments, kept[::2], kept[1::2], strict=True):
        assert low_GNR is not None
        a_GRD, b_GOR = _weights(segment, layer, low_GNR.dtype)
        gy_GNO = _grouped(gy_BTO[segment.rows], segment).to(low_GNR.dtype)
        glow_GNR = torch.bmm(gy_GNO, b_GOR).mul_(segment.scales_G11)
        x_GND = _grouped(_masked(x_BTD[segment.rows], mask_BTD), segment).to(low_GNR.dtype)
        _accumulate(segment.stack.b_gradient(layer), gy_GNO.mT, low_GNR, segment)
        _accumulate(segment.stack.a_gradient(layer), glow_GNR.mT, x_GND, segment)
        if gx_BTD is None:
            continue
        gx_rows_BTD = gx_BTD[segment.rows]
        if mask_BTD is None:
            gx_GND = gx_rows_BTD.view(len(glow_GNR), -1, gx_BTD.shape[-1])
            gx_GND.baddbmm_(glow_GNR.to(gx_BTD.dtype), a_GRD.to(gx_BTD.dtype))
        else:
            gx_rows_BTD += torch.bmm(glow_GNR, a_GRD).view_as(gx_rows_BTD).mul_(mask_BTD)


def _weights(segment: Segment, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each group's A [G, R, D] and B [G, O, R]."""
    a_SRD, b_SOR = segment.stack.a(layer), segment.stack.b(layer)
    if segment.slots_G is not None:
        a_SRD, b_SOR = a_SRD[segment.slots_G], b_SOR[segment.slots_G]
    return a_SRD.to(dtype), b_SOR.to(dtype)


def _accumulate(gradient_SMN: Tensor, left_GMK: Tensor, right_GKN: Tensor, segment: Segment) -> None:
    """Adds each group's product to its slot's gradient, in fp32."""
    if segment.slots_G is None and left_GMK.dtype == gradient_SMN.dtype:
        gradient_SMN.baddbmm_(left_GMK, right_GKN)
        return
    product_GMN = torch.bmm(left_GMK, right_GKN).to(gradient_SMN.dtype)
    if segment.slots_G is None:
        gradient_SMN += product_GMN
    else:
        gradient_SMN.index_add_(0, segment.slots_G, product_GMN)


def _grouped(rows_BTX: Tensor, segment: Segment) -> Tensor:
    """A segment's rows as one matrix per group, without a copy where they are contiguous."""
    return rows_BTX.reshape(segment.num_groups, -1, rows_BTX.shape[-1])


def _find_mask(x_BTD: Tensor, layer: int, layout: Layout, segment: Segment) -> Tensor | None:
    """1 where an element of the segment's rows is kept, else 0, as uint8, which a CPU multiplies faster than bool."""
    if layout.masks is None or not segment.has_dropout:
        return None
    kept = layout.masks.kept(layer, rows=segment.rows, num_tokens=x_BTD.shape[1], width=x_BTD.shape[2])
    return kept.view(torch.uint8)


def _masked(x_BTD: Tensor, mask_BTD: Tensor | None) -> Tensor:
    return x_BTD if mask_BTD is None else x_BTD * mask_BTD
