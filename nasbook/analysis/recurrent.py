"""What recurrent cells cost by the formulas of growing DARTS (§5; Chapter 6): parameters, and work over all epochs.

They are for a supernet's cells, which hold every candidate, and for the classical cells. ``widths`` are the paper's
n_1, n_2, …, n_L: the width of the input, then the width of the state of every layer. With one layer they are n_x and
n_h. The formulas count cells only: not the embedding, not the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from nasbook.errors import InvalidInput, unknown_name

GATES: dict[str, int] = {"rnn": 1, "gru": 3, "lstm": 4}
"""g of §5.1: how many maps of input and state a cell has."""

SoftmaxOf = Literal["node", "edge"]
SOFTMAX_OF: tuple[SoftmaxOf, ...] = ("node", "edge")
"""Whether five combination weights are counted for every node (Eq. 22–25) or for every edge (Eq. 1, 2, 18, 19)."""


def gated_parameters(cell: str, widths: Sequence[int], biases: int = 1) -> int:
    """Parameters of stacked classical cells: g Σ (n_{i+1}(n_{i+1} + n_i) + n_{i+1}) (§5.1).

    Table 2 has 392 and 294 for LSTM and GRU with seven series, where this formula in the same row gives 420 and 315:
    the table's have no biases.

    Args:
        cell: ``rnn``, ``gru`` or ``lstm``.
        widths: of the input and of every layer's state.
        biases: bias vectors of each of the g maps: 1 in the formula, 0 in Table 2, 2 in torch.

    Raises:
        InvalidInput: an unknown cell, no layer, a width below 1, or negative biases.
    """
    if cell not in GATES:
        raise unknown_name("classical recurrent cell", cell, GATES)
    _require_biases(biases)
    return GATES[cell] * sum(new * (new + old) + biases * new for old, new in _layers(widths))


def darts_parameters(
    widths: Sequence[int], nodes: int, *, biases: int = 0, softmax_of: SoftmaxOf | str = "node"
) -> int:
    """Parameters of stacked DARTS cells with all five candidates (Eq. 22; Eq. 23 for several layers).

    Of the candidates tanh, sigmoid and ReLU have a matrix each on every edge: the first node's edge from [x; h], and
    the k − 1 edges of node k from the nodes before.

    Args:
        widths: of the input and of every layer's state.
        nodes: m, the same in every layer.
        biases: bias vectors of a linear operation. Eq. 22 has none and Eq. 24 has one.
        softmax_of: what has five combination weights. Eq. 22 counts them for a ``node``, growth needs one for every
            ``edge`` (Eq. 18, 19).

    Raises:
        InvalidInput: no layer, a width or a number of nodes below 1, negative biases, or an unknown ``softmax_of``.
    """
    _require_sizes(nodes=nodes)
    _require_biases(biases)
    if softmax_of not in SOFTMAX_OF:
        raise unknown_name("place of a softmax", softmax_of, SOFTMAX_OF)
    later = nodes * (nodes - 1) // 2  # edges: Σ_{k=2}^{m} (k − 1)
    edges = 1 + later
    total = 0
    for old, new in _layers(widths):
        matrices = 3 * (old + new) * new + 3 * later * new**2
        total += matrices + 3 * biases * new * edges + 5 * (nodes if softmax_of == "node" else edges)  # Eq. 22
    return total


def two_to_one_parameters(widths: Sequence[int], nodes: int, *, biases: int = 1) -> int:
    """Parameters of stacked Two-to-One cells with all five candidates (Eq. 24; Eq. 25 for several layers).

    Tanh, sigmoid and ReLU have two matrices and a bias each, sum and product a matrix each. A node has one edge, so
    that five weights a node are five an edge.

    Args:
        widths: of the input and of every layer's state.
        nodes: m, the same in every layer.
        biases: bias vectors of an operation with an activation: 1 in Eq. 24.

    Raises:
        InvalidInput: no layer, a width or a number of nodes below 1, or negative biases.
    """
    _require_sizes(nodes=nodes)
    _require_biases(biases)
    return sum(
        nodes * (3 * (old * new + new**2 + biases * new) + 2 * old * new) + 5 * nodes  # Eq. 24
        for old, new in _layers(widths)
    )


def growing_complexity(parameters: Sequence[int], epochs: Sequence[int]) -> int:
    """The work of a search that grows, Σ N_i e_i (Eq. 26, 27): parameters times epochs, summed over its stages.

    One epoch of one parameter is the unit: what the paper writes inside O(·), for one fixed set of examples.

    Args:
        parameters: N_i, of the supernet in every stage.
        epochs: e_i, how many epochs each stage lasted.

    Raises:
        InvalidInput: no stage, not as many epochs as parameters, or a number below 1.
    """
    if not parameters or len(parameters) != len(epochs):
        raise InvalidInput(
            "Every stage needs its parameters and its epochs, and there is at least one stage; "
            f"got {len(parameters)} and {len(epochs)} of them."
        )
    return sum(fixed_complexity(own, lasted) for own, lasted in zip(parameters, epochs, strict=True))


def fixed_complexity(parameters: int, epochs: int) -> int:
    """The work of training the largest supernet at once, N_M e (Eq. 28, with epochs).

    The paper prints N_M alone, without a number of epochs. Beside Eq. 26 and 27, which have one, growth could then
    never be the cheaper way: its last stage alone takes N_M and more. We take the epochs as an argument.

    Args:
        parameters: N_M, of the supernet with M nodes.
        epochs: how many epochs it is trained.

    Raises:
        InvalidInput: a number below 1.
    """
    _require_sizes(parameters=parameters, epochs=epochs)
    return parameters * epochs


def _layers(widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Widths of what every layer reads and of its state."""
    if len(widths) < 2:
        raise InvalidInput(f"widths are those of the input and of at least one layer; got {list(widths)}.")
    for place, width in enumerate(widths):
        _require_sizes(**{f"widths[{place}]": width})
    return pairwise(widths)


def _require_sizes(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InvalidInput(f"{name} must be at least 1, got {value}.")


def _require_biases(biases: int) -> None:
    if biases < 0:
        raise InvalidInput(f"biases must be at least 0, got {biases}.")
