"""Candidates of recurrent cells (Chapter 6): DARTS' with one input, and the Two-to-One cell's with two (Table 1).

DARTS' candidates read one vector z and apply a linear map and an activation to it; they have no bias (Eq. 22). The
Two-to-One cell's read the cell's input x and the state h that the node before gave.

The same operation may stand several times on an edge (§3.2.2): the second tanh is called ``tanh-2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import unknown_name
from nasbook.genotypes import ZERO

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
"""The activations behind a linear map."""

DARTS_RECURRENT_OPERATIONS = ("sigmoid", "tanh", "relu", "identity", ZERO)
"""The five candidates of the DARTS cell, in the paper's order (§3.1): identity is 4 and zero is 5 in Eq. 18 and 19."""

TWO_TO_ONE_OPERATIONS = ("sigmoid", "tanh", "relu", "sum", "product")
"""The five candidates of the Two-to-One cell, in the order of Table 1 and Eq. 14."""


def operation_of(name: str) -> str:
    """The operation that a candidate is: ``tanh`` for ``tanh`` and for ``tanh-2``."""
    return name.rpartition("-")[0] if name.rpartition("-")[2].isdecimal() else name


def copy_name(operation: str, taken: tuple[str, ...]) -> str:
    """The name of one more candidate of an operation, among names that are taken: ``tanh``, then ``tanh-2``."""
    if operation not in taken:
        return operation
    return next(name for n in range(2, len(taken) + 2) if (name := f"{operation}-{n}") not in taken)


def recurrent_weight(outputs: int, inputs: int, fan: int | None = None) -> nn.Parameter:
    """A fresh matrix, uniform within ±1/√fan as torch's recurrent layers are; fan is the number of outputs."""
    bound = 1 / math.sqrt(outputs if fan is None else fan)
    return nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))


class ActivatedMap(nn.Module):
    """DARTS' candidate with weights: φ(W z), without bias (Eq. 1, 22)."""

    def __init__(self, activation: str, inputs: int, hidden: int) -> None:
        super().__init__()
        self.activation = activation
        self.weight = recurrent_weight(hidden, inputs)

    def forward(self, z: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch hidden"]:
        return ACTIVATIONS[self.activation](z @ self.weight.T)


class StateIdentity(nn.Module):
    """The identity mapping. Of the first node's input [x; h] it passes the state h on, which alone has its width."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, z: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch hidden"]:
        return z[..., -self.hidden :]


class StateZero(StateIdentity):
    """The zero operation."""

    def forward(self, z: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch hidden"]:
        return torch.zeros_like(super().forward(z))


def build_recurrent_operation(name: str, inputs: int, hidden: int) -> nn.Module:
    """A candidate of the DARTS cell: (batch, inputs) → (batch, hidden).

    Raises:
        InvalidInput: there is no such operation.
    """
    operation = operation_of(name)
    if operation in ACTIVATIONS:
        return ActivatedMap(operation, inputs, hidden)
    if operation == "identity":
        return StateIdentity(hidden)
    if operation == ZERO:
        return StateZero(hidden)
    raise unknown_name("operation of the DARTS recurrent cell", name, DARTS_RECURRENT_OPERATIONS)


class Gate(nn.Module):
    """φ(W_xh x + W_hh h + b): the Two-to-One cell's sigmoid, tanh and ReLU (Table 1)."""

    def __init__(self, activation: str, inputs: int, hidden: int) -> None:
        super().__init__()
        self.activation = activation
        self.input_weight = recurrent_weight(hidden, inputs)
        self.state_weight = recurrent_weight(hidden, hidden)
        self.bias = nn.Parameter(recurrent_weight(hidden, 1).detach().flatten())

    def forward(
        self, x: Float[Tensor, "batch inputs"], h: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch hidden"]:
        return ACTIVATIONS[self.activation](x @ self.input_weight.T + h @ self.state_weight.T + self.bias)


class Sum(nn.Module):
    """W_xh x + h (Table 1). With W_xh = 0 it is the identity of h, which growth uses (Eq. 15)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input_weight = recurrent_weight(hidden, inputs)

    def forward(
        self, x: Float[Tensor, "batch inputs"], h: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch hidden"]:
        return x @ self.input_weight.T + h


class Product(Sum):
    """(W_xh x) * h, element by element: the Hadamard product that LSTM and GRU have and DARTS has not (Table 1)."""

    def forward(
        self, x: Float[Tensor, "batch inputs"], h: Float[Tensor, "batch hidden"]
    ) -> Float[Tensor, "batch hidden"]:
        return (x @ self.input_weight.T) * h


def build_two_to_one_operation(name: str, inputs: int, hidden: int) -> nn.Module:
    """A candidate of the Two-to-One cell: (batch, inputs), (batch, hidden) → (batch, hidden).

    Raises:
        InvalidInput: there is no such operation.
    """
    operation = operation_of(name)
    if operation in ACTIVATIONS:
        return Gate(operation, inputs, hidden)
    if operation == "sum":
        return Sum(inputs, hidden)
    if operation == "product":
        return Product(inputs, hidden)
    raise unknown_name("operation of the Two-to-One cell", name, TWO_TO_ONE_OPERATIONS)


class Units(NamedTuple):
    """One candidate with an activation, as its hidden units see it: what splitting needs (Eq. 10)."""

    activation: str
    """Name of φ in φ(a)."""
    parameters: tuple[nn.Parameter, ...]
    """Tensors whose rows, one after another, are the vectors θ of the units: (hidden, …) or (hidden,)."""


def units_of(operation: nn.Module) -> Units | None:
    """How the hidden units of a candidate are made, or None where it has no activation, so that no split helps."""
    if isinstance(operation, ActivatedMap):
        return Units(operation.activation, (operation.weight,))
    if isinstance(operation, Gate):
        return Units(operation.activation, (operation.input_weight, operation.state_weight, operation.bias))
    return None
