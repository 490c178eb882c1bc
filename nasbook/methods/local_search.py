"""Local search: walk to better neighbours until there are none (White, Nolen & Savani, UAI 2021).

Chapter 8. A walk begins at a random cell. It evaluates the neighbours, the cells at one change of an operation or an
edge, and moves: to the best of all neighbours once all are evaluated, if it is better (``best``, Algorithm 1), or to
the first that is better (``first-better``, which queries until it finds a lower loss). A cell that no neighbour exceeds
is a local optimum; the next walk begins at another random cell until the samples are used up. The answer is the best of
all that were trained.

No cell is trained twice: where a walk comes to a cell or a neighbour that was trained before, its score is known.
Neighbours are evaluated in random order. A move needs a higher score: equal ones end a walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from nasbook.errors import unknown_name
from nasbook.genotypes import CellSpace, DartsCells, Genotype
from nasbook.methods.sampled_search import Proposer, SampledConfig, SampledSearch, Score, unseen

Move = Literal["best", "first-better"]
MOVES: tuple[Move, ...] = ("best", "first-better")
"""Whether a walk goes to the best neighbour when it knows all, or to the first that is better."""


@dataclass(frozen=True)
class Config(SampledConfig):
    """How local search searches."""

    samples: int = 300
    """How many genotypes are trained in all."""
    move: Move = "best"
    """best moves to the best of all neighbours, first-better to the first that is better."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.move)


def _check(move: str) -> None:
    if move not in MOVES:
        raise unknown_name("move", move, MOVES)


class Walk:
    """Where local search stands after some evaluations, and which neighbours it has yet to evaluate.

    Args:
        cells: what is beside a cell.
        move: when the walk moves.
    """

    def __init__(self, cells: CellSpace, move: Move) -> None:
        self.cells = cells
        self.move = move
        self.position: Genotype | None = None
        """The cell whose neighbours are evaluated; None where the next walk is to begin."""
        self.open: dict[Genotype, None] = {}
        """Neighbours of the position without a score, in their order."""
        self.best: Genotype | None = None
        """The best known of the position and its neighbours; the position, where no neighbour is above it."""
        self.scores: dict[Genotype, float] = {}
        self.path: list[Genotype] = []
        """All positions, of all walks."""
        self.optima: list[Genotype] = []
        """Cells that no neighbour exceeds, where walks ended."""
        self.evaluations = 0
        """How many were added."""

    def add(self, score: float, genotype: Genotype) -> None:
        """Takes note of an evaluation, and moves if it is time to."""
        # A cell comes again only when the space is used up; the first score stays.
        self.scores.setdefault(genotype, score)
        self.evaluations += 1
        if self.position is None:
            self._stand_at(genotype)
        elif genotype in self.open:
            del self.open[genotype]
            self._compare(genotype)
        while self.best is not None and self.best != self.position and not (self.move == "best" and self.open):
            self._stand_at(self.best)
        if self.position is not None and not self.open:
            self.optima.append(self.position)
            self.position = self.best = None

    def _stand_at(self, genotype: Genotype) -> None:
        self.position = self.best = genotype
        self.open = {}
        self.path.append(genotype)
        for other in self.cells.neighbours(genotype):
            if other in self.scores:
                self._compare(other)
            else:
                self.open[other] = None

    def _compare(self, other: Genotype) -> None:
        if self.best is None or self.scores[other] > self.scores[self.best]:
            self.best = other


@dataclass
class LocalSearchProposer(Proposer):
    """A neighbour that has no score yet, or a random cell where a walk begins.

    Raises:
        InvalidInput: there is no such move.
    """

    cells: CellSpace
    """What is drawn, and what is beside a cell."""
    move: Move = "best"
    """When a walk moves."""
    _latest: tuple[tuple[Score, ...], Walk] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.move)

    def walk(self, evaluated: Sequence[Score]) -> Walk:
        """Where the search stands, what it has come through, and where its walks ended."""
        return self._followed(Walk(self.cells, self.move), evaluated)

    def propose(self, evaluated: Sequence[Score], draws: torch.Generator) -> Genotype:
        # The walk goes on from where the last proposal left it, if that is where these evaluations begin.
        if self._latest is not None and self._latest[0] == tuple(evaluated[: len(self._latest[0])]):
            walk = self._followed(self._latest[1], evaluated)
        else:
            walk = self.walk(evaluated)
        self._latest = tuple(evaluated), walk
        if walk.position is None:
            return unseen(self.cells, walk.scores.keys(), draws)
        return list(walk.open)[int(torch.randint(len(walk.open), (1,), generator=draws))]

    @staticmethod
    def _followed(walk: Walk, evaluated: Sequence[Score]) -> Walk:
        for score, genotype in evaluated[walk.evaluations :]:
            walk.add(score, genotype)
        return walk


class Search(SampledSearch):
    """Local search on one data set.

    Args:
        config: how to search.
        data: images on the device to search on. Test images are not touched.
        space: the cell space.
        seed: of all draws, and of the samples' initial weights, data order and augmentation.
    """

    method: ClassVar[str] = "local-search"
    config: Config

    def build_proposer(self) -> Proposer:
        return LocalSearchProposer(DartsCells(self.space), self.config.move)
