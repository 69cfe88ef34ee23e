"""How much faster a processor trains a base in bf16 than in fp32, measured on one layer and the head of its shape.

The layers are those that a pack trains through (multi_lora), with random weights; attention, norms and the MLP's
activation stand beside them. So the parts that gain nothing from bf16 weigh in as they do in a step.

Shapes: B rows, T tokens, D width, V vocabulary, N predicted tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlora_ray.hardware import ModelShape
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack, StackKey
from qlora_ray.modeling.multi_lora.dropout import Counters, DropoutMasks, row_key
from qlora_ray.modeling.multi_lora.layers import MultiLoraLinear, Switch
from qlora_ray.modeling.multi_lora.layout import RowOwner, TrainingLayout, make_segments

# A pack as it often is: one row of each of four trials of rank 16, with dropout. Choices.
NUM_TRIALS, RANK, DROPOUT = 4, 16, 0.05
# Tokens of a pass: enough that products are as fast as in a whole micro-batch, fewer where the base is wide. Of the
# vocabulary a part stands for all. Choices, by time.
MOST_TOKENS, FEWEST_TOKENS = 512, 64
MOST_VOCABULARY_ROWS = 4096
FLOP_PER_PASS = 1.2e10
# Both formats take turns, and each part's fastest run counts: what else runs on the node only makes it slower.
FEWEST_RUNS, MOST_RUNS = 2, 8
ENOUGH_CPU_S = 0.4
# Random numbers are slow to draw: so many are drawn, and repeated.
NUM_DRAWN = 2**16

Part = Callable[[], None]


@dataclass(frozen=True)
class _Parts:
    """The parts of a step in one format, each forward and backward."""

    layer: Part
    head: Part


def measure_bf16_speedup(shape: ModelShape) -> float:
    """Returns the time of a step in fp32 over that in bf16, with this process's threads.

    Takes about a second of each thread, and a few for the widest bases. Draws from no generator of the process.

    Args:
        shape: The base's.
    """
    num_layer_weights = sum(width_in * width_out for width_in, width_out in shape.linears.values())
    num_tokens = _clamp(FLOP_PER_PASS / (6 * num_layer_weights))
    num_rows = min(shape.vocab_size, MOST_VOCABULARY_ROWS)
    # Half the tokens are predicted ones, about as in the embedded task.
    num_labels = num_tokens // 2
    head_share = shape.vocab_size / num_rows
    formats = {
        dtype: _Parts(
            _make_layer(shape, dtype, num_tokens=num_tokens),
            _make_head(shape.hidden_size, dtype, num_labels=num_labels, num_rows=num_rows),
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    layers: dict[torch.dtype, list[float]] = {dtype: [] for dtype in formats}
    heads: dict[torch.dtype, list[float]] = {dtype: [] for dtype in formats}
    began = time.process_time()
    for run in range(1 + MOST_RUNS):
        for dtype, parts in formats.items():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                layers[dtype].append(_time(parts.layer))
                heads[dtype].append(_time(parts.head))
        if run >= FEWEST_RUNS and time.process_time() - began > ENOUGH_CPU_S * torch.get_num_threads():
            break
    # The first run makes caches and is not counted.
    seconds = {
        dtype: shape.num_layers * min(layers[dtype][1:]) + head_share * min(heads[dtype][1:]) for dtype in formats
    }
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _make_layer(shape: ModelShape, dtype: torch.dtype, *, num_tokens: int) -> Part:
    """One decoder layer: its linears with adapters, attention, norms and the activation, side by side."""
    length = num_tokens // NUM_TRIALS

    def leaf(*sizes: int) -> Tensor:
        return _draw(*sizes).to(dtype).requires_grad_()

    widths = dict(enumerate(shape.linears.values()))
    stack = AdapterStack(StackKey(RANK, tuple(widths)), widths, device="cpu")
    for trial in range(NUM_TRIALS):
        stack.add(str(trial), _draw(stack.num_parameters) * 0.01)
    owners = [RowOwner(stack, slot, 1.0, DROPOUT) for slot in range(NUM_TRIALS)]
    counters = Counters("cpu")
    switch = Switch()
    linears = []
    for number, (width_in, width_out) in widths.items():
        frozen = nn.Linear(width_in, width_out, bias=False, device="meta")
        weight_OD = (_draw(width_out, width_in) / width_in**0.5).to(dtype)
        linears.append(MultiLoraLinear(frozen, number=number, switch=switch, dense_OD=weight_OD))
    inputs = {width_in: leaf(NUM_TRIALS, length, width_in) for width_in, _ in widths.values()}
    heads = [leaf(NUM_TRIALS, count, length, shape.head_dim) for count in _head_counts(shape)]
    hidden_BTD = leaf(NUM_TRIALS, length, shape.hidden_size)
    gates = [leaf(NUM_TRIALS, length, shape.intermediate_size) for _ in range(shape.num_mlp_tensors - 1)]
    norm = nn.RMSNorm(shape.hidden_size, elementwise_affine=False)

    def run() -> None:
        masks = DropoutMasks(
            [row_key(0, 0, row) for row in range(NUM_TRIALS)], [DROPOUT] * NUM_TRIALS, counters=counters
        )
        with switch.routing(TrainingLayout(make_segments(owners, device="cpu"), masks)):
            outputs = [linear(inputs[width_in]) for linear, (width_in, _) in zip(linears, widths.values(), strict=True)]
            query, key, value = heads
            is_grouped = shape.has_grouped_keys
            outputs.append(F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=is_grouped))
            outputs += [norm(hidden_BTD.float()).to(dtype) for _ in range(shape.num_norms_per_layer)]
            activated = F.silu(gates[0])
            outputs.append(activated * gates[1] if len(gates) > 1 else activated)
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    return run


def _head_counts(shape: ModelShape) -> tuple[int, int, int]:
    return shape.num_heads, shape.num_kv_heads, shape.num_kv_heads


def _make_head(hidden_size: int, dtype: torch.dtype, *, num_labels: int, num_rows: int) -> Part:
    """Logits of the predicted tokens and their loss."""
    head_VD = _draw(num_rows, hidden_size).to(dtype)
    features_ND = _draw(num_labels, hidden_size).to(dtype).requires_grad_()
    labels_N = torch.arange(num_labels) % num_rows

    def run() -> None:
        loss = F.cross_entropy(F.linear(features_ND, head_VD).float(), labels_N)
        torch.autograd.grad(loss, features_ND)

    return run


def _draw(*sizes: int) -> Tensor:
    """Normal numbers, from a generator of its own."""
    drawn = torch.randn(NUM_DRAWN, generator=torch.Generator().manual_seed(0))
    number = math.prod(sizes)
    return drawn.repeat(-(-number // NUM_DRAWN))[:number].view(sizes)


def _time(part: Part) -> float:
    """CPU seconds of a run: those of other processes do not count."""
    began = time.process_time()
    part()
    return time.process_time() - began


def _clamp(num_tokens: float) -> int:
    """So many tokens, within what is measured, as equally long rows."""
    return NUM_TRIALS * (int(min(MOST_TOKENS, max(FEWEST_TOKENS, num_tokens))) // NUM_TRIALS)
