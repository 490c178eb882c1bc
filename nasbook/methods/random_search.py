"""Random search: the baseline that a search method has to beat (Li & Talwalkar, UAI 2019).

Draws cells uniformly from the space, trains each from scratch for the same short time on the training
share, and keeps the one with the best accuracy on the validation share. No supernet, no relaxation.

On a given topology it draws the operations only: the baseline of Stretchable Cells' Table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nasbook.data import ImageData
from nasbook.genotypes import DARTS_SPACE, CellSpace, DartsCells, Genotype, Space, random_operations
from nasbook.methods.sampled_search import Proposer, SampledConfig, SampledSearch, Score
from nasbook.seeding import generator


@dataclass(frozen=True)
class Config(SampledConfig):
    """How random search searches."""


@dataclass(frozen=True)
class RandomProposer(Proposer):
    """Each time a cell drawn uniformly, whatever was evaluated."""

    cells: CellSpace

    def propose(self, evaluated: Sequence[Score], draws: torch.Generator) -> Genotype:
        return self.cells.random(draws)


@dataclass(frozen=True)
class OperationsProposer(Proposer):
    """Each time the same edges, with operations drawn uniformly."""

    topology: Genotype
    choices: tuple[str, ...]

    def propose(self, evaluated: Sequence[Score], draws: torch.Generator) -> Genotype:
        return random_operations(self.topology, self.choices, draws)


class Search(SampledSearch):
    """Random search on one data set.

    Args:
        config: how to search.
        data: images on the device to search on. Test images are not touched.
        space: the cell space.
        seed: of the samples, their initial weights, data order and augmentation.
        topology: draw operations of the space on the edges of this genotype; None draws edges too.
    """

    method: ClassVar[str] = "random-search"

    def __init__(
        self,
        config: Config,
        data: ImageData,
        space: Space = DARTS_SPACE,
        seed: int = 0,
        topology: Genotype | None = None,
    ) -> None:
        self.topology = topology
        super().__init__(config, data, space, seed)

    def build_proposer(self) -> Proposer:
        if self.topology is not None:
            return OperationsProposer(self.topology, self.space.choices)
        return RandomProposer(DartsCells(self.space))

    def genotype(self, sample: int) -> Genotype:
        """The sample of that number, a pure function of the seed: scores don't matter."""
        return self.proposer.propose((), generator(self.seed, "sample", sample))

    def header(self) -> dict[str, Any]:
        return {**super().header(), "topology": None if self.topology is None else self.topology.to_json()}
