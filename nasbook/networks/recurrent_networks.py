"""Networks for sequences: one-step forecasting and word-level language modelling (growing DARTS §4; Chapter 6).

A network is a head for the task and a body between its two halves: stacked cells, or torch's LSTM or GRU. Bodies map
(time, batch, hidden) to (time, batch, hidden); the first layer of a forecaster has the series as inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import Genotype, Space
from nasbook.networks.fused_recurrent import FUSED_CELLS
from nasbook.networks.recurrent_cells import RecurrentCell, backbone_of, derived_space

RecurrentEngineName = Literal["fused", "readable"]
RECURRENT_ENGINES: tuple[RecurrentEngineName, ...] = ("fused", "readable")
"""How recurrent cells are computed: the same values up to rounding."""


@runtime_checkable
class SequenceTask(Protocol):
    """What a head needs to know of the data."""

    @property
    def task(self) -> Literal["forecasting", "language"]:
        """What is to be predicted."""

    @property
    def features(self) -> int:
        """Number of series, or of words."""


class Head(nn.Module, ABC):
    """What stands before and behind the recurrent layers.

    ``width`` is the number of features that enter the first layer.
    """

    width: int

    @abstractmethod
    def enter(self, inputs: Tensor) -> Float[Tensor, "time batch width"]:
        """What the first layer reads, from a batch (batch, time, …)."""

    @abstractmethod
    def leave(self, states: Float[Tensor, "time batch hidden"]) -> Tensor:
        """The prediction, from the last layer's states."""


class ForecastingHead(Head):
    """The next value of every series, a linear map of the last state."""

    def __init__(self, series: int, hidden: int) -> None:
        super().__init__()
        self.width = series
        self.decoder = nn.Linear(hidden, series)

    def enter(self, inputs: Float[Tensor, "batch time series"]) -> Float[Tensor, "time batch series"]:
        return inputs.transpose(0, 1)

    def leave(self, states: Float[Tensor, "time batch hidden"]) -> Float[Tensor, "batch series"]:
        return self.decoder(states[-1])


class LanguageHead(Head):
    """An embedding as wide as the state, and a linear map to the logits of the next word at every step."""

    def __init__(self, words: int, hidden: int) -> None:
        super().__init__()
        self.width = hidden
        self.embedding = nn.Embedding(words, hidden)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.decoder = nn.Linear(hidden, words)

    def enter(self, inputs: Int64[Tensor, "batch time"]) -> Float[Tensor, "time batch hidden"]:
        return self.embedding(inputs.T)

    def leave(self, states: Float[Tensor, "time batch hidden"]) -> Float[Tensor, "batch time words"]:
        return self.decoder(states).transpose(0, 1)


def build_head(task: SequenceTask, hidden: int) -> Head:
    """The head that some data need."""
    head = {"forecasting": ForecastingHead, "language": LanguageHead}[task.task]
    return head(task.features, hidden)


def build_recurrent_cell(
    kind: str,
    space: Space,
    inputs: int,
    hidden: int,
    *,
    output: tuple[int, ...] = (),
    engine: RecurrentEngineName | str = "fused",
) -> RecurrentCell:
    """A cell of a backbone; see :class:`~nasbook.networks.RecurrentCell`.

    Raises:
        InvalidInput: there is no such backbone or engine.
    """
    if engine not in RECURRENT_ENGINES:
        raise unknown_name("engine", engine, RECURRENT_ENGINES)
    backbone = backbone_of(kind)
    cell = FUSED_CELLS.get(backbone.name, backbone.cell) if engine == "fused" else backbone.cell
    return cell(space, inputs, hidden, output)


class RecurrentStack(nn.Module):
    """Stacked cells; each reads the states of the one below.

    Args:
        cells: kind and space of every layer, from the first.
        inputs: width of what the first layer reads.
        hidden: width of all states.
        outputs: for every layer the nodes that make its state; empty for the backbones' own.
        engine: ``fused`` or ``readable``.

    Raises:
        InvalidInput: no layer, or what a cell refuses.
    """

    def __init__(
        self,
        cells: Sequence[tuple[str, Space]],
        inputs: int,
        hidden: int,
        *,
        outputs: Sequence[tuple[int, ...]] = (),
        engine: RecurrentEngineName | str = "fused",
    ) -> None:
        super().__init__()
        if not cells:
            raise InvalidInput("A recurrent network needs at least one layer.")
        widths = [inputs] + [hidden] * (len(cells) - 1)
        self.layers = nn.ModuleList(
            build_recurrent_cell(kind, space, width, hidden, output=output, engine=engine)
            for (kind, space), width, output in zip(cells, widths, outputs or [()] * len(cells), strict=True)
        )

    def forward(
        self, features: Float[Tensor, "time batch width"], coefficients: Sequence[Float[Tensor, "_edges _operations"]]
    ) -> Float[Tensor, "time batch hidden"]:
        """The states of the last layer, from zero states at the first step."""
        for cell, own in zip(self.layers, coefficients, strict=True):
            features = cell(features, own)
        return features


class DerivedRecurrentNetwork(nn.Module):
    """The discrete network of a recurrent genotype: one cell a layer, fresh weights.

    Args:
        genotype: one cell a layer, its kind a backbone's name (``two-to-one``, ``darts 2``).
        task: the data, or what says as much of them.
        hidden: width of the states, n_h.
        engine: ``fused`` or ``readable``.

    Raises:
        InvalidInput: a cell is of no recurrent backbone, or a size is below 1.
    """

    def __init__(
        self, genotype: Genotype, task: SequenceTask, hidden: int, *, engine: RecurrentEngineName | str = "fused"
    ) -> None:
        super().__init__()
        require_positive(hidden=hidden)
        self.genotype = genotype
        self.head = build_head(task, hidden)
        found = [(kind, cell, *derived_space(cell)) for kind, cell in genotype.cells]
        self.body = RecurrentStack(
            [(kind, space) for kind, _, space, _ in found],
            self.head.width,
            hidden,
            outputs=[cell.output for _, cell, _, _ in found],
            engine=engine,
        )
        for layer, (_, _, _, coefficients) in enumerate(found):
            self.register_buffer(f"coefficients_{layer}", coefficients, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions for a batch of examples: forecasts, or logits at every step."""
        coefficients = [getattr(self, f"coefficients_{layer}") for layer in range(len(self.body.layers))]
        return self.head.leave(self.body(self.head.enter(inputs), coefficients))


TorchCellName = Literal["lstm", "gru"]
TORCH_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
"""torch's own recurrent layers, the baselines of §4."""


class TorchRecurrentNetwork(nn.Module):
    """The same network with torch's LSTM or GRU in the place of the cells.

    Raises:
        InvalidInput: there is no such cell, or a size is below 1.
    """

    def __init__(self, cell: TorchCellName | str, task: SequenceTask, hidden: int, layers: int = 1) -> None:
        super().__init__()
        require_positive(hidden=hidden, layers=layers)
        if cell not in TORCH_CELLS:
            raise unknown_name("torch cell", cell, TORCH_CELLS)
        self.head = build_head(task, hidden)
        self.body = TORCH_CELLS[cell](self.head.width, hidden, layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions for a batch of examples: forecasts, or logits at every step."""
        return self.head.leave(self.body(self.head.enter(inputs))[0])
