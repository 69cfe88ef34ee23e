"""How the frozen base is stored, said in full: what goes to bitsandbytes, and what goes into every record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Precision, Quantization
from qlora_ray.hardware.stored import BLOCK_SIZE, StoredQuantization

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

# bitsandbytes' block size for the scales under double quantization (QLoRA, arXiv 2305.14314, section 3).
DOUBLE_BLOCK_SIZE = 256


@dataclass(frozen=True)
class QuantizationSpec:
    """A quantization as it really is in memory.

    Attributes:
        method: nf4, fp4, int8 or none; gptq or awq of a base that is stored so.
        bits: Bits per quantized weight; 16 or 32 when nothing is quantized.
        backend: The library that holds the weights.
        block_size: Weights that share a scale, which GPTQ and AWQ call group_size; None where scales are per row.
        double_quantization: Whether the scales themselves are quantized.
        compute_dtype: bf16, fp16 or fp32: what products are computed in.
        is_stored: Whether the base's own files are quantized so, and nothing was quantized when it was loaded.
        symmetric, desc_act, layout: As in StoredQuantization; None where they mean nothing.
    """

    method: str
    bits: int
    backend: str
    block_size: int | None
    double_quantization: bool
    compute_dtype: Precision
    is_stored: bool = False
    symmetric: bool | None = None
    desc_act: bool | None = None
    layout: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """`nf4 with double quantization`; `gptq with 4 bits in groups of 128`; `bf16 weights` where there is none."""
        if self.method == "none":
            return f"{self.compute_dtype} weights"
        return StoredQuantization(self.method, self.bits, self.block_size, self.double_quantization).describe()


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
    """What transformers quantizes the base with as it loads it; None where nothing is to be quantized."""
    if spec.method == "none" or spec.is_stored:
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
