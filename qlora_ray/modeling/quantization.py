"""How the frozen base is stored, said in full: what goes to bitsandbytes, and what goes into every record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Precision, Quantization

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

# bitsandbytes' block size for 4-bit weights, and for the scales under double quantization
# (QLoRA, arXiv 2305.14314, section 3). int8 scales rows, not blocks.
BLOCK_SIZE = 64
DOUBLE_BLOCK_SIZE = 256


@dataclass(frozen=True)
class QuantizationSpec:
    """A quantization as it really is in memory.

    Attributes:
        method: nf4, fp4, int8 or none.
        bits: Bits per quantized weight; 16 or 32 when nothing is quantized.
        backend: The library that holds the weights.
        block_size: Weights that share a scale; None where scales are per row.
        double_quantization: Whether the scales themselves are quantized.
        compute_dtype: bf16, fp16 or fp32: what products are computed in.
    """

    method: str
    bits: int
    backend: str
    block_size: int | None
    double_quantization: bool
    compute_dtype: Precision

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return asdict(self)


def specify_quantization(quantization: Quantization, *, compute_dtype: Precision) -> QuantizationSpec:
    """The full spec behind a config's few words.

    Args:
        quantization: The config section `model.quantization`.
        compute_dtype: bf16, fp16 or fp32, from the precision rule of the device.
    """
    if quantization.method == "none":
        return QuantizationSpec("none", 32 if compute_dtype == "fp32" else 16, "torch", None, False, compute_dtype)
    if quantization.method == "int8":
        # bitsandbytes computes LLM.int8() in fp16 on the GPU; double quantization is a 4-bit notion.
        return QuantizationSpec("int8", 8, "bitsandbytes", None, False, compute_dtype)
    return QuantizationSpec(
        quantization.method, 4, "bitsandbytes", BLOCK_SIZE, quantization.double_quantization, compute_dtype
    )


def make_bitsandbytes_config(spec: QuantizationSpec) -> BitsAndBytesConfig | None:
    """What transformers loads the base with; None where nothing is quantized."""
    if spec.method == "none":
        return None
    from transformers import BitsAndBytesConfig

    if spec.method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.method,
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=torch_dtype(spec.compute_dtype),
    )


def torch_dtype(name: str) -> Any:
    """The torch dtype of bf16, fp16 or fp32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
