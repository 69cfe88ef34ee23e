"""One real training step on a 4-bit layer with an 8-bit optimizer: whether bitsandbytes works on a device."""

from __future__ import annotations

from qlora_ray.config.schema import Precision

# Multiples of bitsandbytes' block sizes (64 for weights, 256 for scales and for the optimizer's moments).
WIDTH, ROWS = 256, 8
LEARNING_RATE = 1e-2
# Of outputs whose mean magnitude is 0.8; NF4 changes them by 0.08 (tests/unit/test_modeling_quantized_step.py).
MAX_ERROR = 0.25
# bitsandbytes keeps the moments of smaller tensors in fp32; these are to be in 8 bits.
MIN_8BIT_SIZE = 1


def try_quantized_step(device: str, *, compute_dtype: Precision) -> str | None:
    """Trains one step of a small adapter on a frozen NF4 layer with 8-bit AdamW.

    Args:
        device: A torch device, as `cpu` or `cuda:0`.
        compute_dtype: What products are computed in, as the precision rule of the device has it.

    Returns:
        What is wrong, in one line; None if nothing is. Whatever bitsandbytes raises is an answer: its build may lack
        the device's kernels, or the CUDA libraries that it looks for.
    """
    try:
        return _train_one_step(device, compute_dtype)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _train_one_step(device: str, compute_dtype: Precision) -> str | None:
    import bitsandbytes
    import torch

    from qlora_ray.modeling.quantization import torch_dtype

    dtype = torch_dtype(compute_dtype)
    generator = torch.Generator().manual_seed(0)
    base = bitsandbytes.nn.Linear4bit(
        WIDTH, WIDTH, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
    )
    weight = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    base.load_state_dict({"weight": weight})
    base.requires_grad_(False)
    # As for every base here: see modeling/loading.py.
    base.support_avx512bf16_for_cpu = False
    base = base.to(device)
    if base.weight.dtype != torch.uint8:
        return f"the layer is {base.weight.dtype} and not packed to 4 bits"
    adapter = torch.nn.Parameter(torch.zeros(WIDTH, WIDTH, device=device))
    inputs = torch.randn(ROWS, WIDTH, generator=generator).to(device)
    # Gradients must also pass through the quantized layer, to the adapters before it.
    hidden = (inputs + inputs @ adapter).to(dtype)
    outputs = base(hidden)
    error = (outputs.float() - inputs @ weight.to(device).T).abs().mean().item()
    loss = outputs.float().pow(2).mean()
    loss.backward()
    if adapter.grad is None or not bool(torch.isfinite(adapter.grad).all()) or not bool(adapter.grad.any()):
        return "no gradient passes through the 4-bit layer"
    if error > MAX_ERROR:
        return f"the 4-bit layer's outputs are off by {error:.2f} on average"
    optimizer = bitsandbytes.optim.AdamW8bit([adapter], lr=LEARNING_RATE, min_8bit_size=MIN_8BIT_SIZE)
    optimizer.step()
    moved = adapter.detach().abs().max().item()
    # AdamW's first step is the learning rate, whatever the gradient.
    if not 0.5 * LEARNING_RATE < moved < 2 * LEARNING_RATE:
        return f"8-bit AdamW's first step moved a weight by {moved:.4f}, not by {LEARNING_RATE}"
    return None
