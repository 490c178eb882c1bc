"""Growing DARTS on images: a convolutional cell that grows nodes while it is searched (growing-darts, abstract).

Chapter 6. The paper's abstract promises image classification, and the paper does not show it. The loop is
:class:`nasbook.methods.growing_search.GrowingSearch`; here are DARTS' supernet and its update. Each growth adds a node
to every cell of the network (Eq. 17 to 19, and what reads the new channels has weights close to 0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from nasbook.data import ImageData
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.methods import darts
from nasbook.methods.growing_search import GrowingSearch, GrowthPlan
from nasbook.methods.search import image_loaders, search_header
from nasbook.supernets import SearchNetwork
from nasbook.training import Batch, BilevelUpdate, Objective, accuracy, check_classes, evaluate

__all__ = ["FIRST_SPACE", "Config", "Search"]

FIRST_SPACE = replace(DARTS_SPACE, nodes=2)
"""DARTS' space with two nodes: where a convolutional cell begins to grow."""


@dataclass(frozen=True)
class Config(GrowthPlan, darts.Config):
    """How a convolutional cell grows while it is searched: DARTS' numbers, and the plan of the growth."""

    # No fields any more: what parses or copies a configuration could give them other numbers.
    epochs: ClassVar[Any] = property(lambda self: self.most_epochs)  # type: ignore[misc]
    """Most passes over the training share."""
    final_learning_rate: ClassVar[Any] = property(lambda self: self.learning_rate)  # type: ignore[misc]
    """The rate is constant, since no stage knows when it will end."""
    order: Literal["first-order", "second-order", "finite-difference"] = "first-order"
    """Form of the architecture gradient."""

    def __post_init__(self) -> None:
        self.check_plan()
        super().__post_init__()
        if (self.operators.strategy, self.operators.exchange) != ("none", "none"):
            raise InvalidInput("operators: convolutional operations don't multiply; Chapter 4 splits their neurons.")


class Search(GrowingSearch[SearchNetwork]):
    """Growing DARTS on images; every growth adds a node to each cell of the network.

    The learning rate stays constant, since no stage knows when it will end.

    Args:
        config: see :class:`Config`.
        data: images on the device to search on. Test images are not touched.
        space: the space that the cells begin with.
        seed: of initial parameters, data order, augmentation and changes.
    """

    method: ClassVar[str] = "growing"

    def __init__(self, config: Config, data: ImageData, space: Space = FIRST_SPACE, seed: int = 0) -> None:
        self.config = config
        self.data = data
        self.space = space
        self.normalize_by = config.normalize_by
        shares = {"train": config.train_share, "validation": 1 - config.train_share}
        self.loaders = image_loaders(data, shares, config.batch_size, seed)
        device = data.train_images.device
        super().__init__(config, dict.fromkeys(space.kinds, space), len(self.loaders[0]), seed, device)
        check_classes(self.network, data)

    def build_network(self, spaces: dict[str, Space]) -> SearchNetwork:
        config = self.config
        return SearchNetwork(
            spaces,
            config.channels,
            config.cells,
            self.data.classes,
            in_channels=self.data.channels,
            stem=config.stem,
            engine=config.engine,
            recompute_cells=config.recompute_cells,
        )

    def build_update(self) -> BilevelUpdate:
        groups = [{"params": list(self.network.architecture())}]
        return darts.build_update(self.config, self.network, groups, Objective())

    def batches(self, index: int) -> tuple[Batch, Batch]:
        train, validation = self.loaders
        return train.batch(index), validation.batch(index)

    def measure_accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return accuracy(outputs, targets)

    def evaluate(self, network: SearchNetwork) -> tuple[float, float]:
        loader = self.loaders[1]
        return evaluate(network, loader.images, loader.labels, self.data)

    def header(self) -> dict[str, Any]:
        return {**search_header(self.method, self.space, self.config, self.data, self.seed), **self.parts_header()}
