"""How the frozen base is stored, said in full: what goes to bitsandbytes, and what goes into every record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Lora, Precision, Quantization
from qlora_ray.errors import ModelError
from qlora_ray.hardware.stored import BLOCK_SIZE, StoredQuantization

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

# bitsandbytes' block size for the scales under double quantization (QLoRA, arXiv 2305.14314, section 3).
DOUBLE_BLOCK_SIZE = 256
# What trains LoRA on GPTQ and AWQ weights (peft 0.21, import_utils.is_gptqmodel_available; transformers 5.23,
# quantizers/quantizer_gptq.py and quantizer_awq.py), with the least versions.
GPTQMODEL_LIBRARIES = (("gptqmodel", (7, 0)), ("optimum", (1, 24)))


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


def specify_stored(stored: StoredQuantization, *, compute_dtype: Precision, where: str) -> QuantizationSpec:
    """The full spec of a base that is stored quantized.

    Args:
        stored: What its config.json says.
        compute_dtype: bf16, fp16 or fp32, from the precision rule of the device.
        where: What the message begins with: the config's key and the base's name.

    Raises:
        ModelError: If no library that is used here can train it, or one that could is not installed.
    """
    if stored.backend is None or stored.bits is None:
        raise ModelError(
            f"{where} must be unquantized, or stored by bitsandbytes, GPTQ or AWQ, got {stored.describe()}. "
            "Name the base that it was made of, or one of these."
        )
    if stored.backend == "gptqmodel":
        wanted = {name: f"{name}>={least[0]}.{least[1]}" for name, least in GPTQMODEL_LIBRARIES}
        missing = [wanted[name] for name, least in GPTQMODEL_LIBRARIES if not _has_version(name, least)]
        if missing:
            packages = " ".join(f"'{name}'" for name in wanted.values())
            raise ModelError(
                f"{where} is stored in {stored.describe()}, which gptqmodel and optimum must be there for, got no "
                f"{' and no '.join(missing)}. Install them on every node (pip install {packages}), or name a base "
                "that is not quantized."
            )
    return QuantizationSpec(
        stored.method,
        stored.bits,
        stored.backend,
        stored.block_size,
        stored.double_quantization,
        compute_dtype,
        is_stored=True,
        symmetric=stored.symmetric,
        desc_act=stored.desc_act,
        layout=stored.layout,
    )


def check_adapters(stored: StoredQuantization | None, choices: list[Lora]) -> None:
    """Raises ModelError for an adapter that PEFT does not train on a base that is stored so."""
    # peft 0.21, tuners/lora/gptq.py and awq.py.
    if stored is not None and not stored.is_bitsandbytes and any(choice.use_dora for choice in choices):
        raise ModelError(
            f"lora.use_dora must be false on a base that is stored in {stored.method}, got true: PEFT has no DoRA "
            "there. Drop it, or name a base that is not quantized."
        )


def _has_version(package: str, least: tuple[int, int]) -> bool:
    try:
        parts = version(package).split(".")[:2]
    except PackageNotFoundError:
        return False
    return tuple(int(part) if part.isdigit() else 0 for part in parts) >= least


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
