"""The base with wrapped layers in it: put in while adapters are here, taken out without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qlora_ray.errors import ModelError
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.multi_lora.layers import MultiLoraLinear, Switch
from qlora_ray.modeling.quantization import torch_dtype


@dataclass(frozen=True)
class Layer:
    """A linear layer that adapters can be on."""

    number: int
    path: str
    width_in: int
    width_out: int


class WrappedBase:
    """Puts wrapped layers where the base has linear ones, and takes them out again.

    Args:
        base: The frozen base.
        hold_dequantized: Whether 4-bit weights are also kept in the compute dtype. bitsandbytes makes exactly that
            product in every forward and backward, so the numbers stay QLoRA's and dequantizing is paid once.
    """

    def __init__(self, base: LoadedBase, *, hold_dequantized: bool) -> None:
        self.base = base
        self.holds_dequantized = hold_dequantized
        self.switch = Switch()
        self.is_wrapped = False
        head = base.model.get_output_embeddings()
        linears = [
            (path, module)
            for path, module in base.model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        ]
        self.layers = {
            path: Layer(number, path, module.in_features, module.out_features)
            for number, (path, module) in enumerate(linears)
        }
        self.widths = {layer.number: (layer.width_in, layer.width_out) for layer in self.layers.values()}
        self._wrappers = {
            path: MultiLoraLinear(
                module,
                number=self.layers[path].number,
                switch=self.switch,
                dense_OD=_dense_weight(module, base) if hold_dequantized else None,
            )
            for path, module in linears
        }

    def wrap(self) -> None:
        """Puts the wrapped layers in."""
        if not self.is_wrapped:
            for path, wrapper in self._wrappers.items():
                self.base.model.set_submodule(path, wrapper)
            self.is_wrapped = True

    def unwrap(self) -> None:
        """Puts the base's own layers back."""
        if self.is_wrapped:
            for path, wrapper in self._wrappers.items():
                self.base.model.set_submodule(path, wrapper.frozen)
            self.is_wrapped = False

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """The base as it was loaded, for the length of the block."""
        was_wrapped = self.is_wrapped
        self.unwrap()
        try:
            yield
        finally:
            if was_wrapped:
                self.wrap()

    def find_layers(self, paths: list[str]) -> list[Layer]:
        """The layers at these paths.

        Raises:
            ModelError: If one of them is not a linear layer that can be wrapped.
        """
        missing = [path for path in paths if path not in self.layers]
        if missing:
            raise ModelError(
                f"lora.target_modules: {missing[0]} is not a linear layer of the base's body, and cannot be packed. "
                "Leave it out, or set cluster.packing: single."
            )
        return sorted((self.layers[path] for path in paths), key=lambda layer: layer.number)


def _dense_weight(module: Any, base: LoadedBase) -> Tensor | None:
    """The weight whose product the layer makes, in the compute dtype; None where it makes another (LLM.int8())."""
    import bitsandbytes

    dtype = torch_dtype(base.precision)
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        weight: Any = module.weight
        dense: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return dense.to(dtype)
    if isinstance(module, bitsandbytes.nn.Linear8bitLt):
        return None
    plain: Tensor = module.weight.data
    return plain.to(dtype)
