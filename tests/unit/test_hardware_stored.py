"""Bases that are already quantized: recognized by what their makers write into config.json, and counted."""

from __future__ import annotations

import dataclasses

import pytest

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.hardware import ModelShape
from qlora_ray.hardware.memory_counts import bytes_per_linear_weight
from qlora_ray.hardware.stored import StoredQuantization, read_stored
from qlora_ray.hardware.workload import Workload
from qlora_ray.modeling.loading import read_config

# As gptqmodel 7.6 wrote it on a CPU.
GPTQ = {
    "bits": 4, "checkpoint_format": "gptq", "desc_act": False, "format": "gptq", "group_size": 32, "lm_head": False,
    "method": "gptq", "pack_dtype": "int32", "quant_method": "gptq", "sym": True,
    "meta": {"quantizer": ["gptqmodel:7.6.0"]},
}  # fmt: skip
# AutoAWQ's, as transformers documents it for TheBloke's and Qwen's AWQ models.
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
# unsloth's, as BitsAndBytesConfig.to_dict writes it.
UNSLOTH = {
    "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": None,
    "load_in_4bit": True, "load_in_8bit": False, "quant_method": "bitsandbytes",
}  # fmt: skip
INT8 = {"load_in_8bit": True, "load_in_4bit": False, "quant_method": "bitsandbytes"}

FOUND = {
    "gptq": (GPTQ, StoredQuantization("gptq", 4, 32, symmetric=True, desc_act=False, layout="gptq")),
    "gptq-act-order": (
        {**GPTQ, "bits": 3, "group_size": -1, "desc_act": True},
        StoredQuantization("gptq", 3, None, symmetric=True, desc_act=True, layout="gptq"),
    ),
    "awq": (AWQ, StoredQuantization("awq", 4, 128, symmetric=False, layout="gemm")),
    "unsloth": (UNSLOTH, StoredQuantization("nf4", 4, 64, double_quantization=True)),
    # BitsAndBytesConfig's own defaults: FP4, and scales that are not quantized.
    "4-bit": ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, StoredQuantization("fp4", 4, 64)),
    "int8": (INT8, StoredQuantization("int8", 8)),
    "fp8": ({"quant_method": "fp8"}, StoredQuantization("fp8", None)),
}


@pytest.mark.parametrize("name", sorted(FOUND))
@pytest.mark.parametrize("nested", [False, True])
def test_a_format_is_recognized_by_its_metadata(name: str, nested: bool) -> None:
    written, expected = FOUND[name]
    config = {"quantization_config": written}
    assert read_stored({"text_config": config} if nested else config) == expected


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"text_config": {}}])
def test_a_base_without_metadata_is_not_quantized(config: dict[str, object]) -> None:
    assert read_stored(config) is None


def test_metadata_are_read_as_transformers_reads_them() -> None:
    from transformers import BitsAndBytesConfig

    written = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    found = read_stored({"quantization_config": written.to_dict()})
    assert found == StoredQuantization("nf4", 4, 64, double_quantization=True)


@pytest.mark.parametrize("bits", [None, 5, "4", True])
def test_bits_that_are_none_are_refused(bits: object) -> None:
    with pytest.raises(ModelError, match=r"must be 2, 3, 4 or 8 for gptq, got .*Restore the base's config"):
        read_stored({"quantization_config": {**GPTQ, "bits": bits}})


@pytest.mark.parametrize("size", [0, -2, "128", "x", True])
def test_groups_that_are_none_are_refused(size: object) -> None:
    with pytest.raises(ModelError, match=r"group_size .* above 0, or -1 .* for gptq, got .*Restore the base's config"):
        read_stored({"quantization_config": {**GPTQ, "group_size": size}})


def test_a_shape_has_how_its_base_is_stored() -> None:
    config = {**read_config(Model()), "quantization_config": GPTQ}
    assert ModelShape.from_hf_config(config).stored == FOUND["gptq"][1]
    assert ModelShape.from_hf_config(read_config(Model())).stored is None


def test_a_weight_takes_the_bytes_of_gptqs_tensors() -> None:
    # gptqmodel's layer of 512 inputs and 192 outputs, 4 bits in groups of 32: qweight int32 [512 * 4 / 32, 192],
    # scales fp16 [16, 192], qzeros int32 [16, 192 * 4 / 32].
    stored_bytes = 4 * (512 * 4 // 32) * 192 + 2 * 16 * 192 + 4 * 16 * (192 * 4 // 32)
    workload = Workload(method="gptq", weight_bits=4, group_size=32)
    assert 512 * 192 * bytes_per_linear_weight(workload) == stored_bytes
    assert bytes_per_linear_weight(dataclasses.replace(workload, weight_bits=8, group_size=None)) == 1.0
