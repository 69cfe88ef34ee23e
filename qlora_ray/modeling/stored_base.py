"""A base that is stored quantized: its spec, what must be installed for it, and how it is loaded as it is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Lora, Precision
from qlora_ray.errors import ModelError
from qlora_ray.hardware.stored import StoredQuantization
from qlora_ray.modeling.quantization import QuantizationSpec, torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# What trains LoRA on GPTQ and AWQ weights (peft 0.21, import_utils.is_gptqmodel_available; transformers 5.23,
# quantizers/quantizer_gptq.py and quantizers/quantizer_awq.py), with the least versions.
GPTQMODEL_LIBRARIES = (("gptqmodel", (7, 0)), ("optimum", (1, 24)))


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
                f"{where} is stored in {stored.describe()}: gptqmodel and optimum must be installed, got no "
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
    # peft 0.21, tuners/lora/gptq.py and tuners/lora/awq.py.
    if stored is not None and not stored.is_bitsandbytes and any(choice.use_dora for choice in choices):
        raise ModelError(
            f"lora.use_dora must be false on a base that is stored in {stored.method}, got true: PEFT has no DoRA "
            "there. Drop it, or name a base that is not quantized."
        )


def read_stored_config(name: str, source: dict[str, Any], quantization: QuantizationSpec) -> PreTrainedConfig:
    """The base's config with the compute dtype of this device, in place of that of whoever quantized it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, **source)
    holder = config if getattr(config, "quantization_config", None) else config.get_text_config(decoder=True)
    dtype = str(torch_dtype(quantization.compute_dtype)).removeprefix("torch.")
    holder.quantization_config = {**holder.quantization_config, "bnb_4bit_compute_dtype": dtype}
    return config


def compute_in(base: PreTrainedModel, dtype: torch.dtype) -> None:
    """Has a stored base compute in this dtype, and not in that of whoever quantized it.

    transformers 5.23 leaves what is not quantized in the dtype that it is stored in, whatever it is asked for.
    bitsandbytes 0.50 goes forward in the dtype of what comes in, and back, and out of its own dequantization, in the
    one that the weights had before they were quantized, which files keep: the two would not be the same layer.
    """
    import bitsandbytes

    for module in base.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            packed: Any = module.weight
            packed.quant_state.dtype = dtype
        for parameter in module.parameters(recurse=False):
            is_packed = isinstance(parameter, bitsandbytes.nn.Params4bit | bitsandbytes.nn.Int8Params)
            if not is_packed and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def _has_version(package: str, least: tuple[int, int]) -> bool:
    try:
        parts = version(package).split(".")[:2]
    except PackageNotFoundError:
        return False
    return tuple(int(part) if part.isdigit() else 0 for part in parts) >= least
