"""What searches share that train cells one by one: no supernet, no relaxation.

Chapter 8. Propose a genotype, train it from scratch for a short time on the training share, score it by its accuracy on
the validation share, keep all scores, propose the next one; the answer is the best. Methods differ in the proposal
alone (:class:`Proposer`), which knows no images: :func:`look_up` runs the same methods on scores that are known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nasbook import processes
from nasbook.data import ImageData
from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import DARTS_SPACE, CellSpace, Genotype, Space
from nasbook.methods.search import SearchReport, SearchResult, search_header
from nasbook.networks import DerivedNetwork, StemName
from nasbook.seeding import fold_seed, generator
from nasbook.training import Fit, FitConfig, Resumable

__all__ = ["Proposer", "SampledConfig", "SampledSearch", "Score", "best_of", "look_up", "unseen"]

Score = tuple[float, Genotype]
"""A genotype that was trained, and its validation accuracy in front."""


class Proposer(ABC):
    """What a method trains next: a pure function of what was evaluated so far and of the draws."""

    @abstractmethod
    def propose(self, evaluated: Sequence[Score], draws: torch.Generator) -> Genotype:
        """The next genotype.

        Args:
            evaluated: all scores so far, in the order of their evaluation; higher is better.
            draws: fresh for this proposal.
        """


def best_of(evaluated: Sequence[Score]) -> Score:
    """The highest score, the first of equals."""
    return max(evaluated, key=lambda pair: pair[0])


def unseen(cells: CellSpace, seen: Set[Genotype], draws: torch.Generator, tries: int = 1000) -> Genotype:
    """A cell drawn uniformly from those that are not in ``seen``, by drawing until one is not.

    After so many tries, in a space that is (all but) used up, it is one of them.
    """
    for _ in range(tries):
        genotype = cells.random(draws)
        if genotype not in seen:
            break
    return genotype


def look_up(proposer: Proposer, score: Callable[[Genotype], float], samples: int, seed: int = 0) -> list[Score]:
    """A search on scores that are known already: what it evaluates, in order.

    Draws as :class:`SampledSearch` does for the same seed.

    Args:
        proposer: the method.
        score: of a genotype, from a table or a function; higher is better.
        samples: how many genotypes are evaluated.
        seed: of the draws.

    Raises:
        InvalidInput: ``samples`` is below 1.
    """
    require_positive(samples=samples)
    evaluated: list[Score] = []
    for number in range(samples):
        genotype = proposer.propose(tuple(evaluated), generator(seed, "sample", number))
        evaluated.append((score(genotype), genotype))
    return evaluated


@dataclass(frozen=True)
class SampledConfig:
    """How cells are sampled and trained."""

    samples: int = 8
    """How many genotypes are drawn and trained."""
    epochs: int = 10
    """Passes over the training share, for each sample."""
    batch_size: int = 64
    """Images a step."""
    channels: int = 16
    """Channels of the first cell's nodes, C."""
    cells: int = 8
    """Number of cells, L."""
    stem: StemName = "cifar"
    """cifar keeps the resolution, imagenet divides it by 8."""
    learning_rate: float = 0.025
    """Of SGD at the start; annealed to 0 by a cosine for each sample."""
    train_share: float = 0.5
    """Share of the training images to train on; the rest is for choosing."""

    def __post_init__(self) -> None:
        require_positive(samples=self.samples, channels=self.channels, cells=self.cells)
        self.training()  # checks the rest
        if not 0 < self.train_share < 1:
            raise InvalidInput(f"train_share must be between 0 and 1, got {self.train_share}.")

    def training(self) -> FitConfig:
        """How each sample is trained; evaluated once, after its last epoch."""
        return FitConfig(
            self.epochs,
            self.batch_size,
            self.learning_rate,
            drop_path=0.0,
            cutout=0,
            evaluate_every=self.epochs,
        )


class SampledSearch(Resumable, ABC):
    """A search on one data set that trains one sample after the other.

    Args:
        config: how to search.
        data: images on the device to search on. Test images are not touched.
        space: the cell space.
        seed: of the samples, their initial weights, data order and augmentation.
    """

    method: ClassVar[str]

    def __init__(self, config: SampledConfig, data: ImageData, space: Space = DARTS_SPACE, seed: int = 0) -> None:
        self.config = config
        self.data = data
        self.space = space
        self.seed = seed
        self.proposer = self.build_proposer()
        self.total_epochs = config.samples * config.epochs
        self.history = []
        self._stopping = False
        self._shares = data.split((config.train_share, 1 - config.train_share), seed=fold_seed(seed, "split"))
        self._scores: list[Score] = []
        self._proposal: tuple[int, Genotype] | None = None
        self._fit = self._start(0)
        self.steps_per_epoch = self._fit.steps_per_epoch

    @abstractmethod
    def build_proposer(self) -> Proposer:
        """What is trained next; called once, before anything is drawn."""

    @property
    def sample(self) -> int:
        """How many samples are done."""
        return len(self._scores)

    @property
    def scores(self) -> tuple[Score, ...]:
        """Validation accuracy and genotype of every finished sample, in order."""
        return tuple(self._scores)

    @property
    def epoch(self) -> int:  # type: ignore[override]
        return len(self.history)

    @property
    def step(self) -> int:  # type: ignore[override]
        return self._fit.step

    def genotype(self, sample: int) -> Genotype:
        """The sample of that number, a pure function of the seed and of the scores before it.

        Raises:
            InvalidInput: samples before it have no scores yet.
        """
        if sample > self.sample:
            raise InvalidInput(
                f"Sample {sample} depends on the scores of those before it, and {self.sample} are trained to their end."
            )
        if self._proposal is None or self._proposal[0] != sample:
            draws = generator(self.seed, "sample", sample)
            self._proposal = sample, self.proposer.propose(tuple(self._scores[:sample]), draws)
        return self._proposal[1]

    def _start(self, sample: int) -> Fit:
        seed = fold_seed(self.seed, "training", sample)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold_seed(seed, "initial parameters"))
            network = DerivedNetwork(
                self.genotype(sample),
                self.config.channels,
                self.config.cells,
                self.data.classes,
                stem=self.config.stem,
                in_channels=self.data.channels,
            )
        train, validation = self._shares
        fit = Fit(network, self.data, self.config.training(), seed=seed, train_indices=train, held_out=validation)
        fit.on_step = lambda _: self.on_step(self) if self.on_step is not None else None
        return fit

    def epochs(self) -> Iterator[SearchReport]:
        try:
            while not self.finished:
                if self._fit.finished:
                    self._fit = self._start(self.sample)
                if processes.any_process(self._stopping):
                    return
                for report in self._fit.epochs():
                    genotype = self.genotype(self.sample)
                    if self._fit.finished:
                        self._scores.append((report.validation_accuracy, genotype))
                    values = {**report.to_state(), "epoch": len(self.history) + 1}
                    self.history.append(SearchReport(**values, genotype=self._best() or genotype, coefficients={}))
                    yield self.history[-1]
                if processes.any_process(self._stopping):
                    return
        finally:
            self._stopping = False

    def _best(self) -> Genotype | None:
        return best_of(self._scores)[1] if self._scores else None

    def stop(self) -> None:
        self._stopping = True
        self._fit.stop()

    def means(self) -> dict[str, float]:
        return self._fit.means()

    def check_finite(self) -> None:
        self._fit.check_finite()

    def result(self) -> SearchResult:
        """The best sample so far, and the history.

        Raises:
            InvalidInput: no sample has been trained to its end yet.
        """
        best = self._best()
        if best is None:
            raise InvalidInput("No sample has been trained to its end yet; run epochs() first.")
        return SearchResult(best, tuple(self.history), max(score for score, _ in self._scores))

    def header(self) -> dict[str, Any]:
        return search_header(self.method, self.space, self.config, self.data, self.seed)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": [[score, genotype.to_json()] for score, genotype in self._scores],
            "history": [report.to_state() for report in self.history],
            "fit": self._fit.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scores = [(score, Genotype.from_json(text)) for score, text in state["scores"]]
        self._proposal = None  # it was made from other scores
        self.history = [SearchReport.from_state(report) for report in state["history"]]
        # The fit in the checkpoint is of the sample being trained, or of the last one if it had just ended.
        training = len(self.history) // self.config.epochs
        ended = len(self.history) % self.config.epochs == 0 and state["fit"]["epoch"] == self.config.epochs
        self._fit = self._start(training - 1 if ended else training)
        self._fit.load_state_dict(state["fit"])
