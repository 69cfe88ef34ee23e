"""Adapters of one shape, side by side in memory.

Adapters with the same rank bucket and the same target modules share a stack: for each adapted layer one tensor holds
the A of all of them and one the B, so that two batched products serve all. A whole adapter is one flat row, which is
what an optimizer steps, and what clipping takes the norm of.

Shapes: S slots (adapters in the stack), P parameters of one adapter, R rank bucket, D inputs, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """A matrix that is trained with an adapter and is none of its layers' factors; it starts at zero."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True)
class StackKey:
    """What adapters must have in common to share a stack: padded rank, the layers they adapt, by number, and what else
    is trained with them."""

    bucket: int
    layers: tuple[int, ...]
    matrices: tuple[Matrix, ...] = ()


@dataclass(frozen=True)
class _Place:
    """Where a layer's A [R, D] and B [O, R] lie in a flat adapter."""

    a_start: int
    b_start: int
    width_in: int
    width_out: int


class AdapterStack:
    """The adapters with one key, by name.

    Args:
        key: Padded rank and layers.
        widths: (inputs, outputs) of each of the layers.
        device: Where the base is.
    """

    def __init__(self, key: StackKey, widths: Mapping[int, tuple[int, int]], *, device: torch.device | str) -> None:
        self.key = key
        self.names: list[str] = []
        self._places: dict[int, _Place] = {}
        size = 0
        for layer in key.layers:
            width_in, width_out = widths[layer]
            self._places[layer] = _Place(size, size + key.bucket * width_in, width_in, width_out)
            size += key.bucket * (width_in + width_out)
        self._matrices: dict[str, tuple[int, Matrix]] = {}
        for matrix in key.matrices:
            self._matrices[matrix.name] = (size, matrix)
            size += matrix.rows * matrix.columns
        self.num_parameters = size
        self.weights_SP = torch.zeros(0, size, device=device)
        self.gradients_SP = torch.zeros(0, size, device=device)
        self._views: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, layer: int) -> bool:
        return layer in self._places

    def add(self, name: str, flat_P: Tensor) -> None:
        """Appends an adapter; slots before it keep their numbers."""
        self._replace(torch.cat([self.weights_SP, flat_P[None].to(self.weights_SP)]))
        self.names.append(name)

    def remove(self, name: str) -> None:
        """Takes an adapter out; later slots move up."""
        slot = self.names.index(name)
        del self.names[slot]
        self._replace(torch.cat([self.weights_SP[:slot], self.weights_SP[slot + 1 :]]))

    def a(self, layer: int) -> Tensor:
        """All A of a layer, [S, R, D]."""
        return self._views[layer][0]

    def b(self, layer: int) -> Tensor:
        """All B of a layer, [S, O, R]."""
        return self._views[layer][1]

    def a_gradient(self, layer: int) -> Tensor:
        """Where the gradients of all A of a layer are summed, [S, R, D]."""
        return self._views[layer][2]

    def b_gradient(self, layer: int) -> Tensor:
        """Where the gradients of all B of a layer are summed, [S, O, R]."""
        return self._views[layer][3]

    def starts(self, layer: int) -> tuple[int, int]:
        """Where a layer's A and B begin in a flat row."""
        return self._places[layer].a_start, self._places[layer].b_start

    def matrix_start(self, name: str) -> int:
        """Where a matrix begins in a flat row."""
        return self._matrices[name][0]

    def cut_matrix(self, flat_P: Tensor, name: str) -> Tensor:
        """A view of a matrix in a flat row, of weights, gradients or moments."""
        start, matrix = self._matrices[name]
        return flat_P[start : start + matrix.rows * matrix.columns].view(matrix.rows, matrix.columns)

    def flatten(
        self, tensors: Mapping[int, tuple[Tensor, Tensor]], matrices: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """One flat row from each layer's A [r, D] and B [O, r]; what the bucket adds to r is zero.

        `matrices` are what else is trained, by name; those that are not there are zero.
        """
        flat_P = torch.zeros(self.num_parameters, device=self.weights_SP.device)
        for layer, (a_rD, b_Or) in tensors.items():
            a_RD, b_OR = self.cut(flat_P, layer)
            a_RD[: len(a_rD)] = a_rD
            b_OR[:, : b_Or.shape[1]] = b_Or
        for name, matrix in (matrices or {}).items():
            self.cut_matrix(flat_P, name).copy_(matrix)
        return flat_P

    def cut(self, flat_P: Tensor, layer: int, *, r: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns views of a layer's A [R, D] and B [O, R] in a flat row.

        Args:
            flat_P: One adapter's weights, gradients or moments.
            layer: The layer's number.
            r: The adapter's own rank: A [r, D] and B [O, r], without the bucket's padding.
        """
        place, bucket = self._places[layer], self.key.bucket
        a_RD = flat_P[place.a_start : place.b_start].view(bucket, place.width_in)
        b_OR = flat_P[place.b_start : place.b_start + bucket * place.width_out].view(place.width_out, bucket)
        return a_RD[:r], b_OR[:, :r]

    def _replace(self, weights_SP: Tensor) -> None:
        self.gradients_SP = torch.zeros_like(weights_SP)
        self.weights_SP = weights_SP
        self._views = {
            layer: (*self._stacked(self.weights_SP, place), *self._stacked(self.gradients_SP, place))
            for layer, place in self._places.items()
        }

    def _stacked(self, flat_SP: Tensor, place: _Place) -> tuple[Tensor, Tensor]:
        slots, bucket = len(flat_SP), self.key.bucket
        a_SRD = flat_SP[:, place.a_start : place.b_start].view(slots, bucket, place.width_in)
        end = place.b_start + bucket * place.width_out
        b_SOR = flat_SP[:, place.b_start : end].view(slots, place.width_out, bucket)
        return a_SRD, b_SOR
