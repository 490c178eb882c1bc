"""Random search: the baseline that a search method has to beat (Li & Talwalkar, UAI 2019).

Draws cells uniformly from the space, trains each from scratch for the same short time on the training
share, and keeps the one with the best accuracy on the validation share. No supernet, no relaxation.

On a given topology it draws the operations only: the baseline of Stretchable Cells' Table 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from nasbook import processes
from nasbook.data import ImageData
from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import DARTS_SPACE, Genotype, Space, random_genotype, random_operations
from nasbook.methods.search import SearchReport, SearchResult, search_header
from nasbook.networks import DerivedNetwork, StemName
from nasbook.seeding import fold_seed, generator
from nasbook.training import Fit, FitConfig, Resumable


@dataclass(frozen=True)
class Config:
    """How random search searches."""

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


class Search(Resumable):
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
        self.config = config
        self.data = data
        self.space = space
        self.topology = topology
        self.seed = seed
        self.total_epochs = config.samples * config.epochs
        self.history = []
        self._stopping = False
        self._shares = data.split((config.train_share, 1 - config.train_share), seed=fold_seed(seed, "split"))
        self._scores: list[tuple[float, Genotype]] = []
        self._fit = self._start(0)
        self.steps_per_epoch = self._fit.steps_per_epoch

    @property
    def sample(self) -> int:
        """How many samples are done."""
        return len(self._scores)

    @property
    def epoch(self) -> int:  # type: ignore[override]
        return len(self.history)

    @property
    def step(self) -> int:  # type: ignore[override]
        return self._fit.step

    def genotype(self, sample: int) -> Genotype:
        """The sample of that number, a pure function of the seed."""
        draws = generator(self.seed, "sample", sample)
        if self.topology is not None:
            return random_operations(self.topology, self.space.choices, draws)
        return random_genotype(self.space, draws)

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
        return max(self._scores, key=lambda pair: pair[0])[1] if self._scores else None  # the first of equals

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
        topology = None if self.topology is None else self.topology.to_json()
        return {**search_header(self.method, self.space, self.config, self.data, self.seed), "topology": topology}

    def state_dict(self) -> dict[str, Any]:
        return {
            "scores": [[score, genotype.to_json()] for score, genotype in self._scores],
            "history": [report.to_state() for report in self.history],
            "fit": self._fit.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scores = [(score, Genotype.from_json(text)) for score, text in state["scores"]]
        self.history = [SearchReport.from_state(report) for report in state["history"]]
        # The fit in the checkpoint is of the sample being trained, or of the last one if it had just ended.
        training = len(self.history) // self.config.epochs
        ended = len(self.history) % self.config.epochs == 0 and state["fit"]["epoch"] == self.config.epochs
        self._fit = self._start(training - 1 if ended else training)
        self._fit.load_state_dict(state["fit"])
