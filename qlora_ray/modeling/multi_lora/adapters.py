"""Adapters as PEFT makes and reads them, on their way into a bank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from qlora_ray.errors import ModelError
from qlora_ray.hardware.memory import pad_rank
from qlora_ray.modeling.adapters import attach_adapter, count_parameters, detach_adapter, saved_adapter
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterBank, BankKey
from qlora_ray.modeling.multi_lora.layout import RowOwner, SoloLayout
from qlora_ray.modeling.multi_lora.wrapped_base import FusedBase, Layer
from qlora_ray.training.engine import TrialSpec

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

PEFT_PREFIX = "base_model.model."
UNPACKABLE = ("use_dora", "modules_to_save")
# A [r, D] and B [O, r] by layer number.
LayerTensors = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Blueprint:
    """What an adapter is, without its values: PEFT's config, scaling, layers, and counts."""

    config: LoraConfig
    scaling: float
    layers: list[Layer]
    trainable_parameters: int
    total_parameters: int

    @property
    def key(self) -> BankKey:
        """Which adapters it can share a bank with."""
        return BankKey(pad_rank(self.config.r), tuple(layer.number for layer in self.layers))


def draw_adapter(fused: FusedBase, spec: TrialSpec) -> tuple[Blueprint, LayerTensors]:
    """Lets PEFT make a trial's adapter on the base, and takes it off again.

    So the initial A is drawn from the trial's own seed, by PEFT's own distribution and in its order.

    Raises:
        ModelError: If the base lacks a target module, or the adapter is of a kind that cannot be packed.
    """
    for name in UNPACKABLE:
        if getattr(spec.lora, name):
            raise ModelError(
                f"lora.{name}: cannot be trained in a pack, got {getattr(spec.lora, name)!r}. "
                "Set cluster.packing: process."
            )
    with fused.unwrapped():
        model = attach_adapter(fused.base, spec.lora, seed=spec.training.seed)
        try:
            return _read_adapter(fused, model)
        finally:
            detach_adapter(fused.base)


@contextmanager
def answering(fused: FusedBase, adapter: Path | None) -> Iterator[None]:
    """The base with a saved adapter on all rows, or bare, for the length of the block.

    PEFT reads the adapter, and the fused layers compute it: a base that is held dequantized need not be dequantized
    for every token that is generated.
    """
    routing: AbstractContextManager[None] = nullcontext()
    if adapter is not None:
        with fused.unwrapped(), saved_adapter(fused.base, adapter) as model:
            blueprint, tensors = _read_adapter(fused, model)
        bank = AdapterBank(blueprint.key, fused.widths, device=fused.base.device)
        bank.add(str(adapter), bank.flatten(tensors))
        owner = RowOwner(bank, 0, blueprint.scaling)
        routing = fused.switch.routing(SoloLayout(owner, device=fused.base.device))
    fused.wrap()
    try:
        with routing:
            yield
    finally:
        fused.unwrap()


def parameter_names(path: str, adapter_name: str = ".default") -> tuple[str, str]:
    """PEFT's names of a layer's A and B: in a model, with its adapter's name in them; in a file, without."""
    a, b = (f"{PEFT_PREFIX}{path}.lora_{one}{adapter_name}.weight" for one in "AB")
    return a, b


def _read_adapter(fused: FusedBase, model: PeftModel) -> tuple[Blueprint, LayerTensors]:
    """What PEFT has put on the base, and its values."""
    adapted = {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }
    layers = fused.find_layers(list(adapted))
    tensors = {}
    for layer in layers:
        module = adapted[layer.path]
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        tensors[layer.number] = (a.detach().clone(), b.detach().clone())
    trainable, total = count_parameters(model)
    scaling = float(adapted[layers[0].path].scaling["default"])
    config = cast("LoraConfig", model.peft_config["default"])
    return Blueprint(config, scaling, layers, trainable, total), tensors
