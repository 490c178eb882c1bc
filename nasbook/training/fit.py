"""Training a network from scratch: how a derived network is evaluated (DARTS §3.2, appendix A.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from nasbook import processes
from nasbook.data import ImageData, Loader, evaluation_batches
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.networks import AuxiliaryOutput, set_drop_path
from nasbook.training.compiling import CompiledTraining
from nasbook.training.run import NORMALIZE_BY, EpochReport, NormalizeBy, Run, accuracy, cosine, optimizer_form

CHANNELS_LAST_SIZE = 16
"""Pixels a side from which channels-last order is faster on a CPU; at 8, DARTS_V2 with 4 channels takes as long."""

DECAYS: Mapping[str, Callable[[float, int, int], float]] = MappingProxyType({
    "cosine": lambda rate, epoch, epochs: cosine(rate, 0.0, epoch / epochs),
    "exponential": lambda rate, epoch, epochs: rate * 0.97**epoch,
    "linear": lambda rate, epoch, epochs: rate * (1 - epoch / epochs),
})
"""By name: (first learning rate, epoch from 0, number of epochs) → the learning rate of that epoch."""


@dataclass(frozen=True)
class FitConfig:
    """How a derived network is trained. Defaults are DARTS' for CIFAR-10."""

    epochs: int = 600
    """Passes over the training images."""
    batch_size: int = 96
    """Images a step, over all processes."""
    learning_rate: float = 0.025
    """Of SGD, at the start."""
    decay: Literal["cosine", "exponential", "linear"] = "cosine"
    """How the learning rate falls, epoch by epoch: to 0 by a cosine, by 3 % an epoch, or to 0 on a line."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 3e-4
    """Of SGD, as L2."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    drop_path: float = 0.2
    """Drop rate of edges: it rises linearly from 0 in the first epoch to (E−1)/E of this in the last of E."""
    cutout: int = 16
    """Side of the square that cutout erases, in pixels; 0 for none."""
    auxiliary_weight: float = 0.4
    """Weight of the auxiliary head's loss, where the network has one."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in both training losses; never in the evaluation."""
    evaluate_every: int = 1
    """Epochs between two evaluations on the held-out images; the last epoch is always evaluated."""
    mixed_precision: bool = True
    """bfloat16 autocast on CUDA; ignored on a CPU."""
    channels_last: bool | None = None
    """Keeps tensors in channels-last order. None does so where it is faster: on CUDA, and on a CPU for images of 16
    pixels a side and more (1.5 to 2.2 times as fast there, by one thread). The results differ in their last bits."""
    compile: bool = False
    """Compiles the forward and the backward pass with torch.compile, on CUDA as captured graphs; goes on without,
    with a warning, where that fails. Takes minutes at the start, and drops other paths at random. One process only."""
    normalize_by: NormalizeBy = "batch"
    """What batch norms normalise by where several processes train: the whole batch, which gives the step of one
    process; or each by its own part, which needs no messages within the network but is another training."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            clip=self.clip,
            evaluate_every=self.evaluate_every,
        )
        if self.batch_size < 2:
            raise InvalidInput("batch_size must be at least 2: batch norm compares the images of a step.")
        for name in ("momentum", "weight_decay", "cutout", "auxiliary_weight", "drop_path"):
            if not getattr(self, name) >= 0:  # NaN too
                raise InvalidInput(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.drop_path >= 1:
            raise InvalidInput(f"drop_path must be below 1, got {self.drop_path}.")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidInput(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}.")
        if self.decay not in DECAYS:
            raise unknown_name("decay", self.decay, DECAYS)
        if self.normalize_by not in NORMALIZE_BY:
            raise unknown_name("normalize_by", self.normalize_by, NORMALIZE_BY)


CIFAR10_EVALUATION = FitConfig()
"""How DARTS trains a cell's network on CIFAR-10 (its appendix A.2 and code), which the papers after it repeat.

With DARTS' own networks of 36 channels and 20 cells. Those of Stretchable Cells have as many cells as their search
had, and channels chosen for a number of parameters (:func:`nasbook.networks.channels_for`); what else the paper
changed, if anything, stands in a supplement that is not public.
"""

IMAGENET_EVALUATION = FitConfig(
    epochs=250,
    batch_size=128,
    learning_rate=0.1,
    decay="exponential",
    weight_decay=3e-5,
    drop_path=0.0,
    cutout=0,
    label_smoothing=0.1,
)
"""How DARTS trains a cell's network on ImageNet. Epochs, batch, rate, its decay and the weight decay are from DARTS'
paper; label smoothing, the auxiliary weight, the clipping and no drop path from its code. Stretchable Cells give one
number themselves, DARTS' 14 cells. Others train with a batch of 1,024 and a rate of 0.5 that falls on a line
(``decay="linear"``; PC-DARTS), after a warm-up that we don't have.

The network is ``DerivedNetwork(genotype, 48, 14, 1000, auxiliary=True, stem="imagenet")``.

:class:`Fit` holds its images as one tensor. All of ImageNet would take 180 GiB, so that this trains on a share of it;
the whole set needs :func:`nasbook.data.image_folder_loaders` and a loop of its own.
"""

LATER_FIELDS = {"decay": "cosine", "label_smoothing": 0.0, "normalize_by": "batch"}
"""Fields that earlier checkpoints don't have, and what those runs did: with these values, the headers are the same."""


class Training(Run):
    """A run that trains one network with one optimiser: what it keeps in a checkpoint, and in which precision it runs.

    A subclass sets ``network``, ``optimizer`` and ``mixed_precision`` when it is built.
    """

    optimizer: torch.optim.Optimizer
    """Of the network's parameters."""
    mixed_precision: bool
    """Whether the passes run in bfloat16 where CUDA can."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(optimizer_form(self.device))  # this run's own, wherever the checkpoint was written

    def precision(self) -> AbstractContextManager[Any]:
        """The context in which the network's passes run."""
        lower = self.mixed_precision and self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if lower else nullcontext()


class Fit(Training):
    """Trains a network on a data set's training images and evaluates it on held-out ones.

    Within :func:`nasbook.processes.joined` several processes make each step together. All of them need a network with
    the same initial weights; its batch norms are replaced where they have to be shared.

    Args:
        network: returns logits, or an :class:`~nasbook.networks.AuxiliaryOutput` in training mode; moved to
            ``data``'s device.
        data: images on the device to train on.
        config: how to train.
        seed: of data order, augmentation and drop path. The initial weights are the caller's.
        train_indices: which training images to use; None for all.
        held_out: None evaluates on the test images, an index tensor on those training images
            (choosing between networks must not look at test data).
    """

    measurements: ClassVar[tuple[str, ...]] = ("train_loss", "train_accuracy")
    compiler: ClassVar[str | Callable[..., Any]] = "inductor"
    """The backend of torch.compile."""

    def __init__(
        self,
        network: nn.Module,
        data: ImageData,
        config: FitConfig = FitConfig(),
        *,
        seed: int = 0,
        train_indices: Int64[Tensor, " n"] | None = None,
        held_out: Int64[Tensor, " m"] | None = None,
    ) -> None:
        device = data.train_images.device
        cuda = device.type == "cuda"
        self.config = config
        self.data = data
        self.network = network.to(device)
        faster = cuda or data.size >= CHANNELS_LAST_SIZE
        self._channels_last = faster if config.channels_last is None else config.channels_last
        if self._channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_classes(network, data)
        if config.compile and processes.count() > 1:
            raise InvalidInput("A compiled step knows of no other processes: leave compile out, or run in one process.")
        images, labels = data.train_images, data.train_labels
        if train_indices is not None:
            images, labels = images[train_indices], labels[train_indices]
        self.loader = Loader(
            images,
            labels,
            config.batch_size,
            mean=data.mean,
            std=data.std,
            augmentation=replace(data.augmentation, cutout=config.cutout),
            seed=seed,
            part=(processes.rank(), processes.count()),
        )
        super().__init__(config.epochs, len(self.loader), seed, device)
        self.share_norms(config.normalize_by)
        self._held_out = (
            (data.test_images, data.test_labels)
            if held_out is None
            else (data.train_images[held_out], data.train_labels[held_out])
        )
        self._used = {"trained": _name_indices(train_indices), "evaluated": _name_indices(held_out, "test")}
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            config.learning_rate,
            config.momentum,
            weight_decay=config.weight_decay,
            **optimizer_form(device),
        )
        self._compiled = CompiledTraining(self.network, self.compiler) if config.compile else None
        self.mixed_precision = config.mixed_precision

    def begin_epoch(self) -> None:
        rate = DECAYS[self.config.decay](self.config.learning_rate, self.epoch, self.total_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        set_drop_path(self.network, self.config.drop_path * (self.epoch / self.total_epochs))
        self.network.train()
        if self._compiled is not None:
            self._compiled.watch()

    def run_step(self, index: int) -> Sequence[Tensor]:
        images, labels = self.loader.batch(index)
        # Without the second case, a crop would decide: what it has moved is in channels-last order.
        images = in_channels_last(images) if self._channels_last else images.contiguous()

        smoothing = self.config.label_smoothing

        def differentiate(forward: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor]:
            self.optimizer.zero_grad()
            with self.precision():
                output = forward(images)
                auxiliary = None
                if isinstance(output, AuxiliaryOutput):
                    output, auxiliary = output
                loss = total = F.cross_entropy(output, labels, label_smoothing=smoothing)
                if auxiliary is not None:
                    second = F.cross_entropy(auxiliary, labels, label_smoothing=smoothing)
                    total = loss + self.config.auxiliary_weight * second
            total.backward()
            return loss, output

        loss, output = differentiate(self.network) if self._compiled is None else self._compiled.run(differentiate)
        processes.average_gradients(self.network.parameters())
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        return loss, accuracy(output, labels)

    def report(self, means: dict[str, float]) -> EpochReport:
        last = self.epoch + 1 == self.total_epochs
        if last or (self.epoch + 1) % self.config.evaluate_every == 0:
            with self.precision():
                loss, correct = evaluate(
                    self.network, *self._held_out, self.data, channels_last=self._channels_last
                )
        else:
            loss = correct = float("nan")
        rate = self.optimizer.param_groups[0]["lr"]
        return EpochReport(
            self.epoch + 1,
            train_loss=means["train_loss"],
            train_accuracy=means["train_accuracy"],
            validation_loss=loss,
            validation_accuracy=correct,
            learning_rate=rate,
            seconds=self.elapsed(),
        )

    def header(self) -> dict[str, Any]:
        genotype = getattr(self.network, "genotype", None)
        config = asdict(self.config)
        del config["compile"]  # how, not what: a checkpoint moves between compiled and plain training
        config = {name: value for name, value in config.items() if LATER_FIELDS.get(name, ...) != value}
        return {
            "method": "fit",
            "network": type(self.network).__name__,
            "genotype": genotype.to_json() if genotype is not None else "",
            "shapes": [list(parameter.shape) for parameter in self.network.parameters()],
            "config": config,
            "data": self.data.checksum,
            **self._used,
            "seed": self.seed,
            **self.parts_header(),
        }


def _name_indices(indices: Int64[Tensor, " n"] | None, whole: str = "all") -> str:
    """What tells one choice of images from another in a checkpoint's header."""
    if indices is None:
        return whole
    digest = hashlib.sha256(indices.cpu().contiguous().numpy().tobytes()).hexdigest()
    return f"{len(indices)} training images, {digest[:16]}"


def fit(
    network: nn.Module,
    data: ImageData,
    config: FitConfig = FitConfig(),
    *,
    seed: int = 0,
    train_indices: Int64[Tensor, " n"] | None = None,
    held_out: Int64[Tensor, " m"] | None = None,
) -> list[EpochReport]:
    """Trains to the end and returns the reports; see :class:`Fit` for the arguments."""
    return list(Fit(network, data, config, seed=seed, train_indices=train_indices, held_out=held_out).epochs())


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    data: ImageData,
    batch_size: int = 512,
    *,
    channels_last: bool = False,
) -> tuple[float, float]:
    """Mean cross entropy and accuracy in evaluation mode; the mode of every module is put back.

    Several processes divide the images and all return the same numbers; each must call this.

    ``channels_last`` is the memory layout in which the network gets its images.
    """
    if not len(images):
        raise InvalidInput("There is no image to evaluate on.")
    whole = len(images)
    images, labels = (tensor.tensor_split(processes.count())[processes.rank()] for tensor in (images, labels))
    loss = images.new_zeros((), dtype=torch.float32)
    correct = images.new_zeros((), dtype=torch.float32)
    with evaluating(network):
        for batch, targets in evaluation_batches(images, labels, batch_size, data.mean, data.std):
            if not len(batch):  # more processes than images
                continue
            logits = network(in_channels_last(batch) if channels_last else batch).float()
            loss += F.cross_entropy(logits, targets, reduction="sum")
            correct += (logits.argmax(-1) == targets).sum()
    loss, correct = processes.total([loss, correct])
    return float(loss) / whole, float(correct) / whole


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within the block the network is in evaluation mode; the mode of every module is put back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def in_channels_last(images: Tensor) -> Tensor:
    """A copy in channels-last order. Unlike ``contiguous``, it also orders images of one channel, of which torch thinks
    that they are in that order already; a network's layers take the order over from its images."""
    return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


def check_classes(network: nn.Module, data: ImageData) -> None:
    """Raises :class:`InvalidInput` unless the network's classifier has the data set's number of classes."""
    classifier = getattr(network, "classifier", None)
    if isinstance(classifier, nn.Linear) and classifier.out_features != data.classes:
        raise InvalidInput(
            f"The network has {classifier.out_features} classes, {data.name} has {data.classes}; "
            f"build it with classes={data.classes}."
        )
