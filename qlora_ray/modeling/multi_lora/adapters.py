"""Adapters as PEFT makes and reads them, on their way into a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from qlora_ray.config.schema import Lora
from qlora_ray.errors import ModelError
from qlora_ray.hardware.memory_counts import pad_rank
from qlora_ray.modeling.adapters import attach_adapter, count_parameters, detach_adapter, saved_adapter
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack, Matrix, StackKey
from qlora_ray.modeling.multi_lora.layout import MixedLayout, RowOwner, SoloLayout
from qlora_ray.modeling.multi_lora.wrapped_base import Layer, WrappedBase

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

PEFT_PREFIX = "base_model.model."
UNPACKABLE = ("use_dora", "modules_to_save")
# A [r, D] and B [O, r] by layer number.
LayerTensors = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Blueprint:
    """What an adapter is, without its values: PEFT's config, scaling, layers, counts, and what is trained with it."""

    config: LoraConfig
    scaling: float
    layers: list[Layer]
    trainable_parameters: int
    total_parameters: int
    matrices: tuple[Matrix, ...] = ()

    def beside(self, matrices: tuple[Matrix, ...]) -> Blueprint:
        """The same adapter with matrices that are trained with it, which count as its parameters."""
        size = sum(matrix.rows * matrix.columns for matrix in matrices)
        return replace(
            self,
            matrices=matrices,
            trainable_parameters=self.trainable_parameters + size,
            total_parameters=self.total_parameters + size,
        )

    @property
    def key(self) -> StackKey:
        """Which adapters it can share a stack with."""
        return StackKey(pad_rank(self.config.r), tuple(layer.number for layer in self.layers), self.matrices)


def draw_adapter(wrapped: WrappedBase, lora: Lora, *, seed: int) -> tuple[Blueprint, LayerTensors]:
    """Lets PEFT make an adapter on the base, and takes it off again.

    So the initial A is drawn from the seed by PEFT's own distribution and in its order.

    Args:
        wrapped: The base; its own layers are put back while PEFT works.
        lora: Rank, alpha, dropout and target modules.
        seed: Seeds the draw of A.

    Raises:
        ModelError: If the base lacks a target module, or the adapter is of a kind that cannot be packed.
    """
    for name in UNPACKABLE:
        if getattr(lora, name):
            raise ModelError(
                f"lora.{name}: cannot be trained in a pack, got {getattr(lora, name)!r}. Set cluster.packing: single."
            )
    with wrapped.unwrapped():
        model = attach_adapter(wrapped.base, lora, seed=seed)
        try:
            return _read_adapter(wrapped, model)
        finally:
            detach_adapter(wrapped.base)


@contextmanager
def answering(
    wrapped: WrappedBase, adapters: Sequence[Path | None]
) -> Iterator[Callable[[Sequence[int]], AbstractContextManager[None]]]:
    """The base with saved adapters, each on rows of its own, and bare on others, for the length of the block.

    PEFT reads the adapters, and the wrapped layers compute them: a base that is held dequantized need not be
    dequantized for every token that is generated.

    Args:
        wrapped: The base, without adapters on it.
        adapters: Their folders; None: the bare base.

    Yields:
        What gives rows to adapters for the length of a block of its own: called with the number of each row's adapter,
        equal ones side by side, or with a single number for however many rows.
    """
    stacks: dict[StackKey, AdapterStack] = {}
    owners: list[RowOwner | None] = []
    device = wrapped.base.device
    for number, adapter in enumerate(adapters):
        if adapter is None:
            owners.append(None)
            continue
        with wrapped.unwrapped(), saved_adapter(wrapped.base, adapter) as model:
            blueprint, tensors = _read_adapter(wrapped, model)
        stack = stacks.setdefault(blueprint.key, AdapterStack(blueprint.key, wrapped.widths, device=device))
        owners.append(RowOwner(stack, len(stack), blueprint.scaling))
        stack.add(str(number), stack.flatten(tensors))

    def route(rows: Sequence[int]) -> AbstractContextManager[None]:
        found = [owners[number] for number in rows]
        if not any(found):
            return nullcontext()
        if len(found) == 1 and found[0] is not None:
            return wrapped.switch.routing(SoloLayout(found[0], device=device))
        return wrapped.switch.routing(MixedLayout(found, device=device))

    wrapped.wrap()
    try:
        yield route
    finally:
        wrapped.unwrap()


def parameter_names(path: str, adapter_name: str = ".default") -> tuple[str, str]:
    """PEFT's names of a layer's A and B: in a model, with its adapter's name in them; in a file, without."""
    a, b = (f"{PEFT_PREFIX}{path}.lora_{letter}{adapter_name}.weight" for letter in "AB")
    return a, b


def _read_adapter(wrapped: WrappedBase, model: PeftModel) -> tuple[Blueprint, LayerTensors]:
    """What PEFT has put on the base, and its values."""
    adapted = {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }
    layers = wrapped.find_layers(list(adapted))
    tensors = {}
    for layer in layers:
        module = adapted[layer.path]
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        tensors[layer.number] = (a.detach().clone(), b.detach().clone())
    trainable, total = count_parameters(model)
    scaling = float(adapted[layers[0].path].scaling["default"])
    config = cast("LoraConfig", model.peft_config["default"])
    return Blueprint(config, scaling, layers, trainable, total), tensors
