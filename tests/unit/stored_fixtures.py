"""Bases that bitsandbytes quantized, as folders, and folders whose config.json says that they are GPTQ's or AWQ's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import Model, Quantization
from qlora_ray.modeling.loading import load_base
from qlora_ray.modeling.quantization import specify_quantization
from tests.unit.model_fixtures import copy_base

GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def save_quantized(folder: Path, method: str, *, source: str = "embedded", double: bool = True) -> Path:
    """A base quantized by bitsandbytes and saved so, with bf16 as its compute dtype."""
    quantization = Quantization.model_validate({"method": method, "double_quantization": double})
    spec = specify_quantization(quantization, compute_dtype="bf16")
    base = load_base(Model(name=source), quantization=spec, device="cpu")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def claim_quantized(folder: Path, written: dict[str, Any]) -> Path:
    """A copy of the embedded base whose config.json has these metadata, and whose weights do not."""
    copy_base(folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "quantization_config": written}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder
