"""How a base that is already quantized is stored, as its config.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_ray.errors import ModelError

# bitsandbytes' block size for 4-bit weights (QLoRA, arXiv 2305.14314, section 3).
BLOCK_SIZE = 64
# transformers 5.23, utils/quantization_config.py: what GPTQConfig, AwqConfig and BitsAndBytesConfig take for missing
# keys. GPTQ's files always have their bits.
DEFAULT_GROUP_SIZE = 128
DEFAULT_AWQ_BITS = 4
DEFAULT_4BIT_TYPE = "fp4"
# GPTQ's word for one scale per output and no groups.
NO_GROUPS = -1
BACKENDS = {
    "nf4": "bitsandbytes",
    "fp4": "bitsandbytes",
    "int8": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
}


@dataclass(frozen=True)
class StoredQuantization:
    """The quantization that a base's files are in.

    Attributes:
        method: nf4, fp4 and int8 of bitsandbytes, gptq or awq; another one by transformers' name.
        bits: Bits of a quantized weight; None for a method that is not known here.
        block_size: Weights that share a scale (`group_size` of GPTQ and AWQ); None where scales are per output.
        double_quantization: Whether the scales are quantized too.
        symmetric: Whether zero lies in the middle, so that no zero points are used; None where the format has none.
        desc_act: Whether GPTQ took columns by their activations, so that groups are scattered; None elsewhere.
        skipped: Names of modules, or of what they are in, that are not quantized.
        skipped_share: Share of the layers' weights that these are; known once the model's modules are.
        layout: The files' layout of packed weights: gptq, gptq_v2, gemm, ...; None for bitsandbytes.
    """

    method: str
    bits: int | None
    block_size: int | None = None
    double_quantization: bool = False
    symmetric: bool | None = None
    desc_act: bool | None = None
    layout: str | None = None
    skipped: tuple[str, ...] = ()
    skipped_share: float = 0.0

    @property
    def backend(self) -> str | None:
        """The library that holds the weights; None for a method that is not known here."""
        return BACKENDS.get(self.method)

    @property
    def is_bitsandbytes(self) -> bool:
        """Whether it is one of the formats that this project quantizes to itself."""
        return self.backend == "bitsandbytes"

    def describe(self) -> str:
        """`gptq with 4 bits in groups of 128`."""
        if self.is_bitsandbytes:
            return self.method + (" with double quantization" if self.double_quantization else "")
        bits = f" with {self.bits} bits" if self.bits else ""
        return f"{self.method}{bits}" + (f" in groups of {self.block_size}" if self.block_size else "")


def read_stored(config: Mapping[str, Any]) -> StoredQuantization | None:
    """The quantization that a config.json has, in itself or in its text_config; None where there is none.

    Raises:
        ModelError: If it is of a known method, and its bits or groups are none.
    """
    nested = config.get("text_config")
    written = config.get("quantization_config") or (isinstance(nested, Mapping) and nested.get("quantization_config"))
    if not isinstance(written, Mapping):
        return None
    if written.get("load_in_4bit") or written.get("_load_in_4bit"):
        kind = str(written.get("bnb_4bit_quant_type") or DEFAULT_4BIT_TYPE)
        double = bool(written.get("bnb_4bit_use_double_quant"))
        return StoredQuantization(kind, 4, BLOCK_SIZE, double, skipped=_read_skipped(written))
    if written.get("load_in_8bit") or written.get("_load_in_8bit"):
        return StoredQuantization("int8", 8, skipped=_read_skipped(written))
    method = str(getattr(written.get("quant_method"), "value", written.get("quant_method")) or "unnamed")
    if method not in ("gptq", "awq"):
        bits = written.get("bits")
        return StoredQuantization(method, bits if isinstance(bits, int) else None)
    is_gptq = method == "gptq"
    layout = written.get("checkpoint_format") or written.get("format") if is_gptq else written.get("version")
    symmetric = written.get("sym", True) if is_gptq else not written.get("zero_point", True)
    return StoredQuantization(
        method,
        _read_bits(written, method),
        _read_group_size(written, method),
        symmetric=bool(symmetric),
        desc_act=bool(written.get("desc_act", False)) if is_gptq else None,
        layout=str(layout or ("gptq" if is_gptq else "gemm")).lower(),
        skipped=_read_skipped(written),
    )


def _read_skipped(written: Mapping[str, Any]) -> tuple[str, ...]:
    names = written.get("llm_int8_skip_modules") or written.get("modules_to_not_convert") or ()
    return tuple(name for name in names if isinstance(name, str))


def _read_bits(written: Mapping[str, Any], method: str) -> int:
    bits = written.get("bits", DEFAULT_AWQ_BITS if method == "awq" else None)
    if isinstance(bits, int) and not isinstance(bits, bool) and bits in (2, 3, 4, 8):
        return bits
    raise ModelError(
        f"model: bits of quantization_config in config.json must be 2, 3, 4 or 8 for {method}, got {bits!r}. "
        "Restore the base's config.json."
    )


def _read_group_size(written: Mapping[str, Any], method: str) -> int | None:
    size = written.get("group_size", DEFAULT_GROUP_SIZE)
    if size in (NO_GROUPS, None):
        return None
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    raise ModelError(
        f"model: group_size of quantization_config in config.json must be a number above 0, or {NO_GROUPS} for none, "
        f"for {method}, got {size!r}. Restore the base's config.json."
    )
