"""AdamW's moments in a form that both engines read: per parameter, in fp32.

32-bit moments are stored by parameter name by either engine. 8-bit ones are stored as they are, so that the same engine
goes on bit for bit: by name by single, whose optimizer has one tensor per parameter, and as one flat row by packed,
with the row's layout beside it. Between the engines they are dequantized and quantized again, in other blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlora_ray.modeling.multi_lora.flat_adapter import Piece

# Where bitsandbytes 0.50 nests the tensors of an 8-bit optimizer, its block size, and the size below which it keeps
# a parameter's moments in 32 bits (optim/optimizer.py).
QUANTIZED = "__bnb_optimizer_quant_state__"
BLOCK_SIZE = 256
MIN_8BIT_SIZE = 4096

FLAT = "flat"
LAYOUT = f"{FLAT}/layout"


@dataclass(frozen=True)
class Moments:
    """The first and second moment of one parameter, fp32, in its shape where that is known; and its step count."""

    first: Tensor
    second: Tensor
    step: int


def is_flat(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state's moments are those of one flat row."""
    return any(name.startswith(f"{FLAT}/") for name in tensors)


def read_moments(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Moments]:
    """The moments of a state by parameter name, whichever engine wrote them."""
    entries: dict[str, dict[str, Any]] = {}
    for path, value in {**tensors, **facts}.items():
        if path != LAYOUT:
            name, _, rest = path.partition("/")
            entries.setdefault(name, {})[rest] = value
    moments = {name: _dequantize(values) for name, values in entries.items()}
    if FLAT not in moments:
        return moments
    flat = moments[FLAT]
    pieces = [Piece(*fields) for fields in facts[LAYOUT]]
    return {piece.name: Moments(piece.cut(flat.first), piece.cut(flat.second), flat.step) for piece in pieces}


def quantized_state(moments: Moments, *, always: bool = False) -> dict[str, Any]:
    """bitsandbytes' 8-bit state of a parameter with these moments.

    Args:
        moments: Of the parameter, in its shape.
        always: Whether small ones are quantized too, as they are within a flat row.
    """
    if moments.first.numel() < MIN_8BIT_SIZE and not always:
        return {"step": moments.step, QUANTIZED: {"state1": moments.first, "state2": moments.second}}
    from bitsandbytes import functional

    nested: dict[str, Tensor] = {}
    for number, (moment, signed) in enumerate(((moments.first, True), (moments.second, False)), start=1):
        code = functional.create_dynamic_map(signed=signed)
        quantized, state = functional.quantize_blockwise(moment.contiguous(), code=code, blocksize=BLOCK_SIZE)
        nested |= {f"state{number}": quantized, f"qmap{number}": code, f"absmax{number}": state.absmax}
    return {"step": moments.step, QUANTIZED: nested}


def _dequantize(values: Mapping[str, Any]) -> Moments:
    step = int(values["step"])
    if "exp_avg" in values:
        return Moments(values["exp_avg"], values["exp_avg_sq"], step)
    return Moments(_dequantize_one(values, 1), _dequantize_one(values, 2), step)


def _dequantize_one(values: Mapping[str, Any], number: int) -> Tensor:
    stored: Tensor = values[f"{QUANTIZED}/state{number}"]
    if stored.dtype != torch.uint8:
        return stored
    from bitsandbytes import functional

    return functional.dequantize_blockwise(
        stored,
        absmax=values[f"{QUANTIZED}/absmax{number}"],
        code=values[f"{QUANTIZED}/qmap{number}"],
        blocksize=BLOCK_SIZE,
    )
