"""What all growth methods share: training and growing in turn (Firefly, Algorithm 1), to the same bits after a stop.

A run has phases. Phase 0 trains the small network; every later one first grows it and then trains on. A growth may
take epochs of its own (to learn directions, or to train children); they are epochs of the run like the others, so that
it can stop and go on after any of their steps.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from nasbook import processes
from nasbook.analysis import count_parameters
from nasbook.data import ImageData, Loader, evaluation_batches
from nasbook.errors import InvalidInput, require_positive
from nasbook.growth import Cut, Grown, GrowthEvent, remap_optimizer, replay_history
from nasbook.networks import Growable
from nasbook.seeding import fold_seed, generator
from nasbook.training import (
    Batch,
    EpochReport,
    Fit,
    FitConfig,
    accuracy,
    evaluate,
    evaluating,
    optimizer_form,
)
from nasbook.training.fit import DECAYS


@dataclass(frozen=True)
class GrowthConfig(ABC):
    """How a network grows and trains; a method adds its own numbers. Defaults are the paper's (B.2) for CIFAR-10."""

    growths: int = 8
    """How many times it grows. The paper's curves have about eight points."""
    epochs: int = 160
    """Passes over the training images between two growths, and after the last."""
    rate: float = 0.3
    """Neurons that a growth adds, as a share of those that are there. Fewer where there are not so many candidates."""
    batch_size: int = 128
    """Images a step. Not in the paper."""
    learning_rate: float = 0.1
    """Of SGD, at the start of every phase; it falls to 0 by a cosine within it. Not in the paper."""
    momentum: float = 0.9
    """Of SGD. Not in the paper."""
    weight_decay: float = 5e-4
    """Of SGD, as L2. Not in the paper."""
    cutout: int = 0
    """Side of the square that cutout erases, in pixels."""
    validation_share: float = 0.1
    """Training images that no method trains on; hill climbing chooses its children by them."""
    scored_images: int | None = None
    """Images over which a growth measures losses and scores, chosen at random once; None for all."""

    method: ClassVar[str]
    """Its name."""

    def __post_init__(self) -> None:
        require_positive(epochs=self.epochs, rate=self.rate)
        if not math.isfinite(self.rate):
            raise InvalidInput(f"rate must be finite, got {self.rate}.")
        if self.growths < 0:
            raise InvalidInput(f"growths must be 0 or more, got {self.growths}.")
        if not 0 <= self.validation_share < 1:
            raise InvalidInput(f"validation_share must be at least 0 and below 1, got {self.validation_share}.")
        if self.scored_images is not None:
            require_positive(scored_images=self.scored_images)
        self.fit()  # refuses what the training would

    @property
    def growth_epochs(self) -> int:
        """Passes over the training images that one growth takes."""
        return 0

    @property
    def last_epochs(self) -> int:
        """Passes over the training images after the last growth."""
        return self.epochs

    @abstractmethod
    def begin(self, situation: Situation) -> Growth:
        """Begins a growth: a :class:`SteppedGrowth` if it has epochs of its own."""

    def fit(self) -> FitConfig:
        """How the network trains."""
        return FitConfig(
            epochs=(self.epochs + self.growth_epochs) * self.growths + self.last_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            drop_path=0.0,
            cutout=self.cutout,
            mixed_precision=False,
        )

    def budget(self, network: Growable) -> int:
        """How many neurons a growth of this network adds: the rate times its neurons, at least one."""
        return max(1, round(self.rate * sum(network.neurons().values())))


@dataclass
class Situation:
    """What a growth is given."""

    network: Growable
    """The network that grows; it stays as it is."""
    optimizer: torch.optim.Optimizer
    """Of its parameters, with the state of the training so far."""
    batches: Callable[[], Iterator[Batch]]
    """The images that a growth looks at, as they are, in evaluation batches."""
    validate: Callable[[Growable], float]
    """Accuracy of a network on the validation images."""
    seed: int
    """Of everything random in this growth."""
    steps: int
    """How many steps the growth has."""
    number: int = 1
    """Which growth of its run this is, from 1."""

    def generator(self, *stream: int | str) -> torch.Generator:
        """A fresh generator on the CPU for one stream of this growth."""
        return generator(self.seed, *stream)

    def loss(self, network: Growable) -> float:
        """Mean loss over the images that a growth looks at, in evaluation mode."""
        return mean_loss(network, self.batches())


@dataclass(frozen=True)
class Result:
    """What a growth came to."""

    network: Growable
    """The grown network."""
    optimizer: torch.optim.Optimizer
    """Of its parameters; what survived keeps its state."""
    cuts: tuple[Cut, ...]
    """What was done to the structure."""
    predicted: float | None = None
    """The change of the loss that the method foresaw; None where it foresees none."""

    @classmethod
    def of(cls, situation: Situation, grown: Grown, predicted: float | None = None) -> Result:
        """A grown network with the optimiser of the one before."""
        optimizer = remap_optimizer(situation.optimizer, situation.network, grown)
        return cls(grown.network, optimizer, grown.cuts, predicted)


class Growth(ABC):
    """A growth that is going on."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation

    @abstractmethod
    def finish(self) -> Result:
        """The grown network, once all steps are made."""


class SteppedGrowth(Growth):
    """A growth that passes over images before it can finish."""

    @abstractmethod
    def run_step(self, batch: Batch, index: int) -> tuple[Float[Tensor, ""], Float[Tensor, "batch classes"]]:
        """One step of the growth's own epochs; returns the loss and the logits of what it trains, detached.

        Args:
            batch: normalised images and labels.
            index: of the step in this growth, from 0.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes as the growth goes on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned."""


@dataclass(frozen=True)
class GrowthReport(EpochReport):
    """What one epoch measured, and how large the network is after it.

    Validation loss and accuracy are those of held-out images in the last epoch of every phase, NaN in the others. In
    the epochs of a growth the training loss is that of what the growth trains: the over-grown network, or a child.
    """

    phase: int
    """How many growths the network has behind it, the running one included."""
    growing: bool
    """Whether this epoch was part of a growth."""
    neurons: dict[str, int]
    """Neurons of each width, in the order of the data."""
    parameters: int
    """Parameters of the network."""


class GrowthRun(Fit):
    """Trains a network and grows it, in turn.

    Args:
        network: the small network; moved to ``data``'s device.
        data: images on the device.
        config: of the method.
        seed: of data order, augmentation and growths. The initial weights are the caller's.
        held_out: as for :class:`~nasbook.training.Fit`: None evaluates on the test images at the end of each phase.

    Raises:
        InvalidInput: several processes share the run, or the images can't be divided as asked.
    """

    report_type: ClassVar[type[EpochReport]] = GrowthReport
    network: Growable

    def __init__(
        self,
        network: Growable,
        data: ImageData,
        config: GrowthConfig,
        *,
        seed: int = 0,
        held_out: Int64[Tensor, " m"] | None = None,
    ) -> None:
        if processes.count() > 1:
            raise InvalidInput("A network grows in one process; start it without torchrun.")
        self.growth_config = config
        validation = None
        train = None
        if config.validation_share:
            train, validation = data.split(
                (1 - config.validation_share, config.validation_share), seed=fold_seed(seed, "validation")
            )
        super().__init__(network, data, config.fit(), seed=seed, train_indices=train, held_out=held_out)
        self._validation = validation
        self._initial = copy.deepcopy(self.network)
        self.events: list[GrowthEvent] = []
        self._growth: SteppedGrowth | None = None
        self._growth_seconds = 0.0

    # -- the timetable -------------------------------------------------------------------------------------------------

    def place(self, epoch: int) -> tuple[int, int, bool]:
        """Phase of an epoch, its number within the training or the growth, from 0, and whether it is a growth's."""
        config = self.growth_config
        if epoch < config.epochs:
            return 0, epoch, False
        phase, within = divmod(epoch - config.epochs, config.growth_epochs + config.epochs)
        if within < config.growth_epochs:
            return phase + 1, within, True
        return phase + 1, within - config.growth_epochs, False

    def begin_epoch(self) -> None:
        phase, number, growing = self.place(self.epoch)
        if growing and self._growth is None:
            self._growth = self._begin_steps(phase)
            self._growth_seconds = 0.0
        if not growing and len(self.events) < phase:  # a growth without epochs of its own
            self._growth_seconds = 0.0
            self._finish(self.growth_config.begin(self._situation(phase)))
        if not growing:
            rate = self.learning_rate(number)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.network.train()

    def learning_rate(self, number: int) -> float:
        """Of the training in this epoch, which has this number within its phase, from 0: a cosine in every phase."""
        return DECAYS["cosine"](self.config.learning_rate, number, self.growth_config.epochs)

    def growth_loader(self) -> Loader:
        """The images that a growth looks at and has its own epochs on: those that the network trains on."""
        return self.loader

    def run_step(self, index: int) -> Sequence[Tensor]:
        _, number, growing = self.place(self.epoch)
        if not growing:
            return super().run_step(index)
        assert self._growth is not None
        images, labels = self.growth_loader().batch(index)
        loss, logits = self._growth.run_step((images, labels), number * self.steps_per_epoch + self.step)
        return loss, accuracy(logits, labels)

    def report(self, means: dict[str, float]) -> GrowthReport:
        phase, number, growing = self.place(self.epoch)
        config = self.growth_config
        if growing and number + 1 == config.growth_epochs:
            assert self._growth is not None
            self._finish(self._growth)
        if growing:
            self._growth_seconds += self.elapsed()
        loss, correct = self.validation(not growing and number + 1 == config.epochs)
        return GrowthReport(
            self.epoch + 1,
            train_loss=means["train_loss"],
            train_accuracy=means["train_accuracy"],
            validation_loss=loss,
            validation_accuracy=correct,
            learning_rate=0.0 if growing else self.optimizer.param_groups[0]["lr"],
            seconds=self.elapsed(),
            phase=phase,
            growing=growing,
            neurons=self.network.neurons(),
            parameters=count_parameters(self.network),
        )

    def validation(self, ends_phase: bool) -> tuple[float, float]:
        """Loss and accuracy on the held-out images after this epoch; NaN where it is not evaluated.

        Args:
            ends_phase: whether it was the last one of a training.
        """
        if not ends_phase:
            return math.nan, math.nan
        return evaluate(self.network, *self._held_out, self.data, channels_last=self._channels_last)

    # -- a growth ------------------------------------------------------------------------------------------------------

    def _begin_steps(self, phase: int) -> SteppedGrowth:
        growth = self.growth_config.begin(self._situation(phase))
        assert isinstance(growth, SteppedGrowth)  # as its configuration says by having epochs
        return growth

    def _situation(self, phase: int) -> Situation:
        loader = self.growth_loader()
        images, labels = loader.images, loader.labels
        count = self.growth_config.scored_images
        if count is not None:  # the same at each growth; at random, since a set may be sorted by its classes
            chosen = torch.randperm(len(labels), generator=generator(self.seed, "scored images"))[:count]
            images, labels = images[chosen.to(images.device)], labels[chosen.to(labels.device)]
        return Situation(
            network=self.network,
            optimizer=self.optimizer,
            batches=lambda: evaluation_batches(images, labels, 512, self.data.mean, self.data.std),
            validate=self._validate,
            seed=fold_seed(self.seed, "growth", phase),
            steps=self.growth_config.growth_epochs * self.steps_per_epoch,
            number=phase,
        )

    def _validate(self, network: Growable) -> float:
        if self._validation is None:
            raise InvalidInput("This growth method chooses by validation images; give a validation_share above 0.")
        images = self.data.train_images[self._validation], self.data.train_labels[self._validation]
        return evaluate(network, *images, self.data, channels_last=self._channels_last)[1]

    def _finish(self, growth: Growth) -> None:
        started = time.perf_counter()
        epochs = self.growth_config.growth_epochs
        situation, result = growth.situation, growth.finish()
        seconds = self._growth_seconds + (self.elapsed() if epochs else time.perf_counter() - started)
        network, optimizer = self._fitted(result.network, result.optimizer)
        event = GrowthEvent(
            epoch=self.epoch + 1 if epochs else self.epoch,
            method=self.growth_config.method,
            cuts=result.cuts,
            neurons=network.neurons(),
            parameters=count_parameters(network),
            loss_before=situation.loss(situation.network),
            loss_after=situation.loss(network),
            predicted=result.predicted,
            seconds=seconds,
        )
        if not math.isfinite(event.loss_after):  # a checkpoint of it would be of no use
            raise self._diverged("The loss of the grown network", event.loss_after, self.step)
        # All at once, so that a run which is interrupted before goes on as if this had not begun.
        self.network, self.optimizer = network, optimizer
        self.events.append(event)
        self._growth = None

    def _fitted(
        self, network: Growable, optimizer: torch.optim.Optimizer
    ) -> tuple[Growable, torch.optim.Optimizer]:
        """Both as this run's device and memory order have them."""
        if self._channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for group in optimizer.param_groups:
            group.update(optimizer_form(self.device))
        return network, optimizer

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "events": [event.to_state() for event in self.events],
            "growth": None if self._growth is None else self._growth.state_dict(),
            "growth_seconds": self._growth_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.events = [GrowthEvent.from_state(event) for event in state["events"]]
        network = replay_history(self._initial, self.events)
        options = {k: v for k, v in self.optimizer.param_groups[0].items() if k != "params"}
        self.network, self.optimizer = self._fitted(network, torch.optim.SGD(network.parameters(), **options))
        super().load_state_dict(state)
        self._growth, self._growth_seconds = None, state["growth_seconds"]
        if state["growth"] is not None:
            phase, _, _ = self.place(self.epoch)
            self._growth = self._begin_steps(phase)
            self._growth.load_state_dict(state["growth"])

    def header(self) -> dict[str, Any]:
        config = {field.name: getattr(self.growth_config, field.name) for field in fields(self.growth_config)}
        header = super().header()
        return {  # what a reader has chosen comes first, as the first difference is the one that a refusal names
            "method": f"grow by {self.growth_config.method}",
            "network": header["network"],
            "shapes": [list(parameter.shape) for parameter in self._initial.parameters()],
            "growth": {name: _plain(value) for name, value in config.items()},
            "data": header["data"],
            "seed": header["seed"],
            **{name: value for name, value in header.items() if name not in ("method", "shapes")},
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def mean_loss(network: Growable, batches: Iterator[Batch]) -> float:
    """Mean cross entropy over batches, in evaluation mode."""
    total, images = 0.0, 0
    with evaluating(network), torch.no_grad():
        for inputs, labels in batches:
            total += float(F.cross_entropy(network(inputs), labels, reduction="sum"))
            images += len(labels)
    return total / images
