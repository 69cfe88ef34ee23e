"""A quantization said in full: what goes to bitsandbytes, and what goes into every record."""

from __future__ import annotations

import pytest
import torch

from qlora_ray.config.schema import Quantization
from qlora_ray.modeling.quantization import (
    BLOCK_SIZE,
    DOUBLE_BLOCK_SIZE,
    make_bitsandbytes_config,
    specify_quantization,
    torch_dtype,
)


def spec_of(method, precision="bf16", double=True):
    return specify_quantization(Quantization(method=method, double_quantization=double), compute_dtype=precision)


@pytest.mark.parametrize(
    ("method", "precision", "double", "expected"),
    [
        ("nf4", "bf16", True, ("nf4", 4, "bitsandbytes", 64, True, "bf16")),
        ("nf4", "fp16", False, ("nf4", 4, "bitsandbytes", 64, False, "fp16")),
        ("fp4", "fp32", True, ("fp4", 4, "bitsandbytes", 64, True, "fp32")),
        ("int8", "fp16", True, ("int8", 8, "bitsandbytes", None, False, "fp16")),
        ("none", "bf16", True, ("none", 16, "torch", None, False, "bf16")),
        ("none", "fp16", False, ("none", 16, "torch", None, False, "fp16")),
        ("none", "fp32", True, ("none", 32, "torch", None, False, "fp32")),
    ],
)
def test_a_spec_says_what_is_really_in_memory(method, precision, double, expected):
    # What only bases that are stored quantized have is empty.
    assert tuple(spec_of(method, precision, double).to_dict().values()) == (*expected, False, None, None, None)


@pytest.mark.parametrize("method", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_four_bit_methods_go_to_bitsandbytes_with_all_their_words(method, double):
    config = make_bitsandbytes_config(spec_of(method, "fp16", double))
    assert config.load_in_4bit and not config.load_in_8bit
    assert config.bnb_4bit_quant_type == method
    assert config.bnb_4bit_use_double_quant is double
    assert config.bnb_4bit_compute_dtype is torch.float16


def test_int8_goes_to_bitsandbytes_as_int8_and_no_quantization_not_at_all():
    config = make_bitsandbytes_config(spec_of("int8"))
    assert config.load_in_8bit and not config.load_in_4bit
    assert make_bitsandbytes_config(spec_of("none")) is None


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_a_precision_is_a_torch_dtype(name, dtype):
    assert torch_dtype(name) is dtype


@pytest.mark.parametrize("double", [True, False])
def test_bitsandbytes_uses_the_block_sizes_that_are_recorded(double):
    from bitsandbytes.functional import quantize_4bit

    # The paper counts the scales' bits per weight: 32/64 = 0.5, and 8/64 + 32/(64 * 256) = 0.127 when they are
    # quantized too (arXiv 2305.14314, section 3).
    num_weights = 256 * 256
    _, state = quantize_4bit(torch.randn(256, 256), quant_type="nf4", compress_statistics=double)
    assert state.blocksize == BLOCK_SIZE
    scales = [state.absmax]
    if double:
        assert state.state2.blocksize == DOUBLE_BLOCK_SIZE
        scales.append(state.state2.absmax)
    bits = sum(8 * scale.nbytes for scale in scales) / num_weights
    assert bits == pytest.approx(0.127 if double else 0.5, abs=5e-4)
