"""PC-DARTS: differentiable search with partial channel connections (Xu et al., ICLR 2020).

Chapter 3. Differs from DARTS (``methods/darts.py``) in four places:

1. A mixed operation sends one part in K of the channels through its candidates and lets the others pass (§3.2). The
   candidates have a K-th of the channels, so that the supernet is smaller and batches can be larger.
2. Edge normalisation: the input edges of a node share a softmax over β, learned beside α (§3.3).
3. The cells are derived from the products of both softmaxes (§3.3).
4. The search is first order, with larger batches and rates, and α and β stand still in the first epochs, until the
   weights have learned something (§4.2).

Cells and relaxation are in :mod:`nasbook.supernets.partial`. Where the paper leaves a choice we take that of the
authors' code (yuhuixu1993/PC-DARTS): the candidates see the first channels and a channel shuffle moves the others
there; β has the optimiser of α; the zero operation is a candidate and never counts in the derivation. The code anneals
the weights' rate to 0.001, the paper and we to zero. It draws validation batches with replacement; we walk through
the images in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nasbook.data import ImageData
from nasbook.errors import InvalidInput
from nasbook.genotypes import DARTS_SPACE, Space
from nasbook.methods import darts
from nasbook.supernets import EdgeNormalizedRelaxation, PartialNetwork, Relaxation, require_partition
from nasbook.training import accuracy


@dataclass(frozen=True)
class Config(darts.Config):
    """How PC-DARTS searches. Defaults are the paper's for CIFAR-10 (§4.2)."""

    batch_size: int = 256
    """Images a step, of each share."""
    order: Literal["first-order", "second-order", "finite-difference"] = "first-order"
    """Form of the architecture gradient: ξ = 0, the exact product, or DARTS' approximation of it."""
    learning_rate: float = 0.1
    """Of the weights' SGD at the start; also ξ, as it anneals."""
    final_learning_rate: float = 0.0
    """Of the weights' SGD at the end of the cosine."""
    architecture_learning_rate: float = 6e-4
    """Of Adam on α and β; its own β are (0.5, 0.999)."""
    partition: int = 4
    """K: one part in K of the channels goes through the candidates. It must divide ``channels``."""
    frozen_share: float = 0.3
    """Share of the epochs, from the first on, in which α and β stand still: 15 of 50. Rounded down to epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_partition(self.channels, self.partition)
        if not 0 <= self.frozen_share < 1:
            raise InvalidInput(f"frozen_share must be at least 0 and below 1, got {self.frozen_share}.")

    @property
    def frozen_epochs(self) -> int:
        """Epochs in which α and β stand still."""
        return int(self.frozen_share * self.epochs)


IMAGENET = Config(
    stem="imagenet",
    batch_size=1024,
    learning_rate=0.5,
    architecture_learning_rate=6e-3,
    partition=2,
    frozen_share=0.7,
    train_share=0.8,
)
"""The search on ImageNet (§4.3): K = 2, on 10 % of the images for the weights and 2.5 % for α and β.

The authors' code warms the weights' rate up in the first five epochs, clips the gradients of α and β too, and has
three times the channels in the stem. Ours has none of these.
"""


class Search(darts.Search):
    """PC-DARTS on one data set; see :class:`~nasbook.methods.GradientSearch` for the arguments."""

    method: ClassVar[str] = "pc-darts"
    config: Config

    def __init__(self, config: Config, data: ImageData, space: Space = DARTS_SPACE, seed: int = 0) -> None:
        super().__init__(config, data, space, seed)

    def build_relaxation(self, space: Space) -> Relaxation:
        return EdgeNormalizedRelaxation(space)

    def build_network(self) -> PartialNetwork:
        config = self.config
        options = {"partition": config.partition, **self.network_options()}
        return PartialNetwork(self.space, config.channels, config.cells, self.data.classes, **options)

    def run_step(self, index: int) -> Sequence[Tensor]:
        if self.epoch >= self.config.frozen_epochs:
            return super().run_step(index)
        train = self.loaders[0].batch(index)
        loss, outputs = self.update.weight_step(train)
        return loss, accuracy(outputs, train[1]), torch.full_like(loss, torch.nan)  # the architecture has no loss yet
