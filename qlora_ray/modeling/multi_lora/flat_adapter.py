"""One adapter of a stack as one flat row: where each parameter lies in it, and its values by PEFT's names.

Shapes: P parameters of one adapter, padding of the rank bucket included; r rank, D inputs, O outputs of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack
from qlora_ray.modeling.multi_lora.adapters import Blueprint, LayerTensors, parameter_names
from qlora_ray.modeling.multi_lora.layout import RowOwner
from qlora_ray.runs.paths import ADAPTER_WEIGHTS


@dataclass(frozen=True)
class Piece:
    """Where a parameter lies in a flat row: a [rows, columns] matrix, of which the first so many are its own."""

    name: str
    start: int
    rows: int
    columns: int
    own_rows: int
    own_columns: int

    def cut(self, flat: Tensor) -> Tensor:
        """The parameter's values, [own_rows, own_columns]."""
        matrix = flat[self.start : self.start + self.rows * self.columns].view(self.rows, self.columns)
        return matrix[: self.own_rows, : self.own_columns].contiguous()


@dataclass(frozen=True)
class FlatAdapter:
    """An adapter that is in a stack.

    Attributes:
        name: What it is called there.
        blueprint: Its layers, rank and scaling.
        stack: The stack that holds its row.
    """

    name: str
    blueprint: Blueprint
    stack: AdapterStack

    @property
    def slot(self) -> int:
        """Its row in the stack, which moves when adapters before it are removed."""
        return self.stack.names.index(self.name)

    @property
    def weights_P(self) -> Tensor:
        """A view of its row of weights; stale once an adapter was added to the stack or removed from it."""
        return self.stack.weights_SP[self.slot]

    @property
    def gradients_P(self) -> Tensor:
        """A view of its row of gradients; stale as `weights_P` is."""
        return self.stack.gradients_SP[self.slot]

    def owner(self, *, dropout: float = 0.0) -> RowOwner:
        """Returns what marks rows as this adapter's.

        Args:
            dropout: The drop probability of the rows' inputs; 0 in evaluation.
        """
        return RowOwner(self.stack, self.slot, self.blueprint.scaling / (1 - dropout), dropout)

    def pieces(self) -> list[Piece]:
        """Returns where each parameter lies in the flat row, by PEFT's names."""
        pieces = []
        r, bucket = self.blueprint.config.r, self.stack.key.bucket
        for layer in self.blueprint.layers:
            start_a, start_b = self.stack.starts(layer.number)
            name_a, name_b = parameter_names(layer.path)
            pieces.append(Piece(name_a, start_a, bucket, layer.width_in, r, layer.width_in))
            pieces.append(Piece(name_b, start_b, layer.width_out, bucket, layer.width_out, r))
        for matrix in self.blueprint.matrices:
            start, shape = self.stack.matrix_start(matrix.name), (matrix.rows, matrix.columns)
            pieces.append(Piece(matrix.name, start, *shape, *shape))
        return pieces

    def matrix(self, name: str) -> Tensor:
        """A view of what is trained with the adapter under this name; stale as `weights_P` is."""
        return self.stack.cut_matrix(self.weights_P, name)

    def named_tensors(self, flat_P: Tensor) -> dict[str, Tensor]:
        """Returns copies on the CPU of all that a flat row holds: layers by PEFT's names in a model, and matrices."""
        matrices = {
            matrix.name: self.stack.cut_matrix(flat_P, matrix.name).to("cpu", copy=True)
            for matrix in self.blueprint.matrices
        }
        return {**self.layer_tensors(flat_P), **matrices}

    def layer_tensors(self, flat_P: Tensor, *, adapter_name: str = ".default") -> dict[str, Tensor]:
        """Returns copies on the CPU of A [r, D] and B [O, r] of every layer in a flat row, by PEFT's names.

        Args:
            flat_P: Weights, or moments that lie as the weights do.
            adapter_name: What PEFT has between `lora_A` and `weight`: `.default` in a model, nothing in a file.
        """
        named: dict[str, Tensor] = {}
        for layer in self.blueprint.layers:
            a_rD, b_Or = self.stack.cut(flat_P, layer.number, r=self.blueprint.config.r)
            name_a, name_b = parameter_names(layer.path, adapter_name)
            named[name_a] = a_rD.to("cpu", copy=True).contiguous()
            named[name_b] = b_Or.to("cpu", copy=True).contiguous()
        return named

    def flatten(self, named: dict[str, Tensor]) -> Tensor:
        """Returns the flat row, [P], of what `named_tensors` returns: weights, or their moments."""
        return self.stack.flatten(read_layers(self.blueprint, named), read_matrices(self.blueprint, named))

    def save(self, folder: Path) -> None:
        """Writes the adapter in PEFT's format."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = self.blueprint.config
        config.inference_mode = True
        config.save_pretrained(str(folder))
        save_file(
            self.layer_tensors(self.weights_P.detach(), adapter_name=""),
            folder / ADAPTER_WEIGHTS,
            metadata={"format": "pt"},
        )


def read_matrices(blueprint: Blueprint, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns what is trained with an adapter, out of tensors by name."""
    return {matrix.name: named[matrix.name] for matrix in blueprint.matrices}


def read_layers(blueprint: Blueprint, named: dict[str, Tensor]) -> LayerTensors:
    """Returns A and B by layer number from tensors by PEFT's names."""
    tensors = {}
    for layer in blueprint.layers:
        name_a, name_b = parameter_names(layer.path)
        tensors[layer.number] = (named[name_a], named[name_b])
    return tensors
