"""Growing recurrent cells: the DARTS and the Two-to-One backbone on series and text (growing-darts; Chapter 6).

The loop of Algorithm 2 is :class:`nasbook.methods.growing_search.GrowingSearch`; here are the backbones, the data and
the paper's numbers.

What the paper leaves open, and what we do:

* Adam for weights and for α with PyTorch's other defaults. First order: the paper describes both orders and does not
  say which it ran. Beside Adam, the second-order update unrolls one plain step, as Eq. 4 writes it.
* Gradients of the weights are clipped at norm 5. The paper does not mention clipping; a ReLU cell can explode.
* A forecast is a linear map of the last state; words have an embedding as wide as the state.
* Every example starts from a zero state: a window of a series, or of a text.
* Each layer has architecture parameters of its own, as Eq. 23 and 25 count them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nasbook import processes
from nasbook.data import SequenceData, SequenceLoader
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import Space
from nasbook.methods import darts
from nasbook.methods.growing_search import GrowingSearch, GrowthPlan
from nasbook.methods.search import search_header
from nasbook.networks import RECURRENT_BACKBONES, RECURRENT_ENGINES, RecurrentEngineName, backbone_of
from nasbook.seeding import fold_seed
from nasbook.supernets import RecurrentSearchNetwork
from nasbook.training import (
    Batch,
    BilevelUpdate,
    evaluate_sequences,
    optimizer_form,
    sequence_accuracy,
    sequence_loss,
)

__all__ = ["BackboneName", "Config", "Search"]

BackboneName = Literal["two-to-one", "darts", "highway"]


@dataclass(frozen=True)
class Config(GrowthPlan):
    """How a recurrent cell grows while it is searched. Defaults are the paper's for language modelling (§4.2)."""

    backbone: BackboneName = "two-to-one"
    """The cell: the Two-to-One backbone, DARTS' as the paper has it, or that of DARTS' own code."""
    nodes: int = 2
    """Nodes that the cell begins with."""
    hidden: int = 128
    """Width of the state, n_h."""
    layers: int = 1
    """Stacked cells."""
    batch_size: int = 50
    """Examples a step, of each part, over all processes."""
    learning_rate: float = 1e-3
    """Of Adam on the weights."""
    architecture_learning_rate: float = 3e-4
    """Of Adam on α."""
    weight_decay: float = 0.0
    """Of Adam on the weights, as L2."""
    architecture_weight_decay: float = 0.0
    """Of Adam on α, as L2."""
    clip: float = 5.0
    """Largest norm of the weights' gradient."""
    order: Literal["first-order", "second-order", "finite-difference"] = "first-order"
    """Form of the architecture gradient."""
    engine: RecurrentEngineName = "fused"
    """How cells are computed: the same values up to rounding, at different speed."""

    def __post_init__(self) -> None:
        self.check_plan()
        if self.backbone not in RECURRENT_BACKBONES:
            raise unknown_name("recurrent backbone", self.backbone, RECURRENT_BACKBONES)
        require_positive(
            nodes=self.nodes,
            hidden=self.hidden,
            layers=self.layers,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            architecture_learning_rate=self.architecture_learning_rate,
            clip=self.clip,
        )
        for name in ("weight_decay", "architecture_weight_decay"):
            if not getattr(self, name) >= 0:  # NaN too
                raise InvalidInput(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.order not in darts.UPDATES:
            raise unknown_name("order", self.order, darts.UPDATES)
        if self.engine not in RECURRENT_ENGINES:
            raise unknown_name("engine", self.engine, RECURRENT_ENGINES)
        if self.backbone == "highway" and (self.operators.strategy, self.operators.exchange) != ("none", "none"):
            raise InvalidInput("operators: in the highway backbone the operations of a node share their weights.")


class Search(GrowingSearch[RecurrentSearchNetwork]):
    """A growing search on series or text: weights learn from the training part, α from the validation part.

    Args:
        config: see :class:`Config`.
        data: series or text, on the device to search on. The test part is not touched.
        space: the space that every layer's cell begins with; None for the backbone's with ``config.nodes``.
        seed: of initial parameters, the order of examples, and changes.

    Raises:
        InvalidInput: the space is not of the backbone's form, or several processes can't share the batches.
    """

    method: ClassVar[str] = "growing-recurrent"
    config: Config

    def __init__(self, config: Config, data: SequenceData, space: Space | None = None, seed: int = 0) -> None:
        self.config = config
        self.data = data
        backbone = backbone_of(config.backbone)
        self.space = backbone.space(config.nodes, config.layers) if space is None else space
        if self.space.inputs != 1:
            raise InvalidInput(f"A recurrent cell has 1 input node, this space has {self.space.inputs}.")
        parts = {part: data.examples(part) for part in ("train", "validation")}
        self.loaders = tuple(
            SequenceLoader(
                inputs,
                targets,
                min(config.batch_size, len(inputs)),
                seed=fold_seed(seed, part),
                part=(processes.rank(), processes.count()),
            )
            for part, (inputs, targets) in parts.items()
        )
        device = parts["train"][0].device
        spaces = dict.fromkeys(backbone.kinds(config.layers), self.space)
        super().__init__(config, spaces, len(self.loaders[0]), seed, device)

    def build_network(self, spaces: dict[str, Space]) -> RecurrentSearchNetwork:
        return RecurrentSearchNetwork(spaces, self.data, self.config.hidden, engine=self.config.engine)

    def build_update(self) -> BilevelUpdate:
        config, form = self.config, optimizer_form(next(self.network.parameters()).device)
        return darts.UPDATES[config.order](
            self.network,
            torch.optim.Adam(
                self.network.weights(),
                config.learning_rate,
                betas=(0.9, 0.999),
                weight_decay=config.weight_decay,
                **form,
            ),
            torch.optim.Adam(
                self.network.architecture(),
                config.architecture_learning_rate,
                betas=(0.9, 0.999),
                weight_decay=config.architecture_weight_decay,
                **form,
            ),
            loss=sequence_loss,
            clip=config.clip,
        )

    def batches(self, index: int) -> tuple[Batch, Batch]:
        train, validation = self.loaders
        return train.batch(index), validation.batch(index)

    def measure_accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return sequence_accuracy(outputs, targets)

    def evaluate(self, network: RecurrentSearchNetwork) -> tuple[float, float]:
        return evaluate_sequences(network, self.data)

    def validation_batches(self) -> list[Batch]:
        inputs, targets = self.data.examples("validation")
        size = self.config.batch_size
        return list(zip(inputs.split(size), targets.split(size), strict=True))

    def header(self) -> dict[str, Any]:
        return search_header(self.method, self.space, self.config, self.data, self.seed)
