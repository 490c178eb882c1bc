"""Regularised evolution: tournaments in a population whose oldest dies (Real et al., AAAI 2019).

Chapter 8. The population begins with P random cells. Each step draws S of it, takes the best of them as the parent,
trains a mutated copy, and adds it; the oldest of the population dies, however good it is (Algorithm 1, "aging
evolution"). The answer is the best of all that were ever trained.

A mutation changes one edge of one kind of cell: its operation or the node that it reads, with equal chance. With a
small probability it changes nothing, and the same cell is trained again from another initialisation (the identity
mutation). Where a mutation happens to lead back to a cell that was trained before, it is trained again as well: the
paper keeps no memory of the dead, and a good cell can only stay by being found good anew.

What differs from the paper:

* It trains models in parallel, so that a child may be added late. We train one after the other.
* Its cells are NASNet's, where both edges of a node may read the same one. Ours may not; see
  :meth:`nasbook.genotypes.DartsCells.mutate`.
* It trains 20,000 models; a scale here trains as many epochs in all as its other searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import CellSpace, DartsCells, Genotype
from nasbook.methods.sampled_search import Proposer, SampledConfig, SampledSearch, Score, best_of, unseen

IDENTITY_PROBABILITY = 0.05
"""Of the identity mutation: the paper's fixed, untuned number."""


@dataclass(frozen=True)
class Config(SampledConfig):
    """How regularised evolution searches."""

    samples: int = 20_000
    """How many genotypes are trained in all, the first population included."""
    epochs: int = 25
    """Passes over the training share, for each sample."""
    population: int = 100
    """P: how many of the last samples are alive."""
    tournament: int = 25
    """S: how many are drawn for each tournament, with replacement; the best is the parent."""
    identity: float = IDENTITY_PROBABILITY
    """Probability that a parent is trained again without a change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_population(self.population, self.tournament, self.identity)
        if self.population >= self.samples:
            raise InvalidInput(
                f"population must be below samples ({self.samples}), got {self.population}: "
                "all samples would be drawn at random. Lower population or raise samples."
            )


def check_population(population: int, tournament: int, identity: float) -> None:
    """Raises :class:`InvalidInput` where the sizes P and S or the identity's probability make no sense."""
    require_positive(population=population, tournament=tournament)
    if tournament > population:
        raise InvalidInput(f"tournament must be at most the population ({population}), got {tournament}.")
    if not 0 <= identity < 1:
        raise InvalidInput(f"identity must be at least 0 and below 1, got {identity}.")


@dataclass(frozen=True)
class EvolutionProposer(Proposer):
    """Algorithm 1: random cells until there are P, then mutated winners of tournaments among the last P.

    Raises:
        InvalidInput: a size below 1, a tournament larger than the population, or no probability.
    """

    cells: CellSpace
    """What is drawn and mutated."""
    population: int = 100
    """P."""
    tournament: int = 25
    """S."""
    identity: float = IDENTITY_PROBABILITY
    """Probability that the parent is proposed again."""

    def __post_init__(self) -> None:
        check_population(self.population, self.tournament, self.identity)

    def propose(self, evaluated: Sequence[Score], draws: torch.Generator) -> Genotype:
        if len(evaluated) < self.population:
            return unseen(self.cells, {genotype for _, genotype in evaluated}, draws)
        # Each evaluation adds the youngest and kills the oldest, so that the last P are those alive.
        alive = evaluated[-self.population :]
        drawn = torch.randint(len(alive), (self.tournament,), generator=draws).tolist()
        _, parent = best_of([alive[place] for place in drawn])
        if float(torch.rand((), generator=draws)) < self.identity:
            return parent
        return self.cells.mutate(parent, draws)


class Search(SampledSearch):
    """Regularised evolution on one data set.

    Args:
        config: how to search.
        data: images on the device to search on. Test images are not touched.
        space: the cell space.
        seed: of all draws, and of the samples' initial weights, data order and augmentation.
    """

    method: ClassVar[str] = "regularized-evolution"
    config: Config

    def build_proposer(self) -> Proposer:
        config = self.config
        return EvolutionProposer(DartsCells(self.space), config.population, config.tournament, config.identity)
