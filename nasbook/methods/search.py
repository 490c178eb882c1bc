"""What all searches share: the registry, the result, and the loop of the gradient-based ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nasbook import processes
from nasbook.data import ImageData, Loader, SequenceData
from nasbook.genotypes import Genotype, Space
from nasbook.seeding import fold_seed
from nasbook.supernets import SearchNetwork
from nasbook.training import BilevelUpdate, EpochReport, Run, accuracy, check_classes, cosine, evaluate, optimizer_form


@dataclass(frozen=True)
class SearchReport(EpochReport):
    """What one epoch of a search measured, and which cells it would give if it ended here.

    Validation loss and accuracy are the network's at the end of the epoch, in evaluation mode, on the whole
    validation share (the first of several) without augmentation, as DARTS' code logs them. A gradient search's α
    learns from these images, so for its supernet they are no held-out numbers.
    """

    genotype: Genotype
    """The derived cells."""
    coefficients: dict[str, Float[Tensor, "edges operations"]]
    """What every candidate is multiplied by, for each kind of cell; on the CPU. Empty for discrete searches."""

    def to_state(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "genotype": self.genotype.to_json(), "coefficients": dict(self.coefficients)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SearchReport:
        coefficients = {kind: value.cpu() for kind, value in state["coefficients"].items()}
        return cls(**{**state, "genotype": Genotype.from_json(state["genotype"]), "coefficients": coefficients})


@dataclass(frozen=True)
class SearchResult:
    """The answer of a search, and the way there."""

    genotype: Genotype
    """The chosen cells."""
    history: tuple[SearchReport, ...]
    """One report an epoch."""
    validation_accuracy: float
    """Of what was chosen: the supernet's in the last epoch, or the chosen sample's."""

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(report.seconds for report in self.history)


class GradientSearch(Run, ABC):
    """A supernet trained by a bilevel update, epoch by epoch: the loop of every differentiable method.

    A method says how its network and its update are built, and what changes from epoch to epoch.

    Within :func:`nasbook.processes.joined` several processes make each step together.

    Args:
        config: the method's configuration; this class reads ``epochs``, ``batch_size``, ``learning_rate``,
            ``final_learning_rate``, ``normalize_by`` and, in :meth:`shares`, ``train_share``.
        data: images on the device to search on. Test images are not touched.
        space: the cell space.
        seed: of initial parameters, data order and augmentation.
    """

    network: SearchNetwork
    method: ClassVar[str]
    report_type: ClassVar[type[EpochReport]] = SearchReport
    evaluates_as_deep: ClassVar[bool] = False
    """Whether the found cells are meant for a network of as many cells as the search had."""
    measurements: ClassVar[tuple[str, ...]] = ("train_loss", "train_accuracy", "architecture_loss")

    def __init__(self, config: Any, data: ImageData, space: Space, seed: int = 0) -> None:
        self.config = config
        self.data = data
        self.space = space
        device = data.train_images.device
        with torch.random.fork_rng(devices=[]):  # the caller's generator is left where it was
            torch.default_generator.manual_seed(fold_seed(seed, "initial parameters"))
            self.network = self.build_network().to(device)
        check_classes(self.network, data)
        self.loaders = image_loaders(data, self.shares(), config.batch_size, seed)
        super().__init__(config.epochs, len(self.loaders[0]), seed, device)
        self.share_norms(config.normalize_by)
        self.update = self.build_update()

    def shares(self) -> dict[str, float]:
        """How the training images are divided, by name: the weights' share first, then the architecture's.

        With more than one for the architecture, the parameter groups of its optimiser learn from one each.
        """
        return {"train": self.config.train_share, "validation": 1 - self.config.train_share}

    @abstractmethod
    def build_network(self) -> SearchNetwork:
        """The supernet; called once, under the seed of the initial parameters."""

    @abstractmethod
    def build_update(self) -> BilevelUpdate:
        """The update, with both optimisers."""

    def begin_epoch(self) -> None:
        """Anneals the weights' learning rate by a cosine over the epochs."""
        rate = cosine(self.config.learning_rate, self.config.final_learning_rate, self.epoch / self.total_epochs)
        for group in self.update.weight_optimizer.param_groups:
            group["lr"] = rate
        self.network.train()

    def run_step(self, index: int) -> Sequence[Tensor]:
        train, *validation = (loader.batch(index) for loader in self.loaders)
        result = self.update.step(train, *validation)
        return result.train_loss, accuracy(result.train_outputs, train[1]), result.validation_loss

    def report(self, means: dict[str, float]) -> SearchReport:
        with torch.no_grad():
            coefficients = {kind: value.cpu() for kind, value in self.network.coefficients().items()}
        loss, correct = evaluate(self.network, self.loaders[1].images, self.loaders[1].labels, self.data)
        return SearchReport(
            self.epoch + 1,
            means["train_loss"],
            means["train_accuracy"],
            loss,
            correct,
            learning_rate=self.update.weight_optimizer.param_groups[0]["lr"],
            seconds=self.elapsed(),
            genotype=self.network.genotype(),
            coefficients=coefficients,
        )

    def result(self) -> SearchResult:
        """The cells that the search means now, and its history."""
        accuracy = self.history[-1].validation_accuracy if self.history else float("nan")
        return SearchResult(self.network.genotype(), tuple(self.history), accuracy)

    def header(self) -> dict[str, Any]:
        return {**search_header(self.method, self.space, self.config, self.data, self.seed), **self.parts_header()}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "network": self.network.state_dict(),
            "weight_optimizer": self.update.weight_optimizer.state_dict(),
            "architecture_optimizer": self.update.architecture_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        self.update.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.update.architecture_optimizer.load_state_dict(state["architecture_optimizer"])
        for optimizer in (self.update.weight_optimizer, self.update.architecture_optimizer):
            for group in optimizer.param_groups:
                group.update(optimizer_form(self.device))  # this run's own, wherever the checkpoint was written


def image_loaders(data: ImageData, shares: Mapping[str, float], batch_size: int, seed: int) -> tuple[Loader, ...]:
    """One loader for each share of the training images, by name; each with an order and an augmentation of its own.

    Of several processes, this one's part of every batch.
    """
    parts = data.split(tuple(shares.values()), seed=fold_seed(seed, "split"))
    return tuple(
        Loader(
            data.train_images[indices],
            data.train_labels[indices],
            batch_size,
            mean=data.mean,
            std=data.std,
            augmentation=data.augmentation,
            seed=fold_seed(seed, name),
            part=(processes.rank(), processes.count()),
        )
        for indices, name in zip(parts, shares, strict=True)
    )


EXECUTION = frozenset({"engine", "recompute_cells"})
"""Fields of configurations that say how a search is computed, not what; a checkpoint may be resumed with others."""

LATER_FIELDS = {"normalize_by": "batch"}
"""Fields that earlier checkpoints don't have, and what those searches did."""


def search_header(method: str, space: Space, config: Any, data: ImageData | SequenceData, seed: int) -> dict[str, Any]:
    """What a search is, as plain values that survive a checkpoint and compare by value."""
    return {
        "method": method,
        "space": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(space).items()
            if name not in ("left_out", "pools") or value  # earlier checkpoints do not have them
        },
        "config": {
            name: value
            for name, value in asdict(config).items()
            if name not in EXECUTION and LATER_FIELDS.get(name, ...) != value
        },
        "data": data.checksum,
        "seed": seed,
    }
