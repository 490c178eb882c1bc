"""Training a segmentation network as DeepLabV3 does for Pascal VOC (EnTranNAS, Table 5; Chapter 3).

EnTranNAS says which head, which size of the input and which output stride. Everything else here is DeepLabV3's (Chen
et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", §4.1) or its authors' code's (tensorflow/
models, research/deeplab), as each field of :class:`SegmentationConfig` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nasbook import processes
from nasbook.analysis import confusion_matrix, intersection_over_union, mean_iou, pixel_accuracy
from nasbook.data import CropAugmentation, SegmentationData, SegmentationLoader, whole_images
from nasbook.data.segmentation import IGNORED
from nasbook.errors import InvalidInput, require_positive
from nasbook.networks import SegmentationNetwork, set_drop_path
from nasbook.training.fit import Training, evaluating, in_channels_last
from nasbook.training.run import EpochReport, optimizer_form


@dataclass(frozen=True)
class SegmentationConfig:
    """How a segmentation network is trained. Defaults are DeepLabV3's for the 10,582 images of VOC's trainaug."""

    epochs: int = 46
    """Passes over the training images. 46 are the 30,000 steps of DeepLabV3 at output stride 16; its second stage
    (30,000 more on trainval, batch norm frozen, at output stride 8) is left out: EnTranNAS names one stride."""
    batch_size: int = 16
    """Images a step (DeepLabV3 §4.1)."""
    learning_rate: float = 0.007
    """Of SGD, at the start (DeepLabV3 §4.1), for backbone and head alike."""
    power: float = 0.9
    """The rate is (1 − step/steps)^power times the first one (DeepLabV3 §4.1, "poly"), from step to step."""
    momentum: float = 0.9
    """Of SGD (code)."""
    weight_decay: float = 4e-5
    """Of SGD, as L2: the code's value for backbones of depthwise-separable convolutions; for ResNets it has 1e-4."""
    crop: int = 513
    """Side of the training crops in pixels (DeepLabV3 §4.1; EnTranNAS, Table 5). Smaller images are padded up to it
    when they are evaluated, too."""
    smallest_scale: float = 0.5
    """Least factor by which training images are resized (DeepLabV3 §4.1)."""
    largest_scale: float = 2.0
    """Largest factor by which training images are resized (DeepLabV3 §4.1)."""
    flip: bool = True
    """Mirror training images left and right, with probability one half (DeepLabV3 §4.1)."""
    drop_path: float = 0.0
    """Drop rate of the backbone's edges, the same in all epochs (the code's default is none)."""
    evaluate_every: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    evaluation_batch: int = 16
    """Most images a step in the evaluation."""
    mixed_precision: bool = True
    """bfloat16 autocast on CUDA; ignored on a CPU."""
    workers: int = 0
    """Threads that prepare the next batches; 0 prepares each when it is needed. The numbers are the same."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            evaluate_every=self.evaluate_every,
            evaluation_batch=self.evaluation_batch,
        )
        if self.batch_size < 2:
            raise InvalidInput("batch_size must be at least 2: the head's batch norms compare the images of a step.")
        for name in ("power", "momentum", "weight_decay", "drop_path", "workers"):
            if not getattr(self, name) >= 0:  # NaN too
                raise InvalidInput(f"{name} must be at least 0, got {getattr(self, name)}.")
        if self.drop_path >= 1:
            raise InvalidInput(f"drop_path must be below 1, got {self.drop_path}.")
        self.augmentation  # noqa: B018 -- checks the rest

    @property
    def augmentation(self) -> CropAugmentation:
        """What happens to a training image."""
        return CropAugmentation(self.crop, self.smallest_scale, self.largest_scale, self.flip)


@dataclass(frozen=True)
class SegmentationReport(EpochReport):
    """What one epoch measured. Accuracies are shares of pixels; losses are means over pixels."""

    mean_iou: float
    """Mean intersection over union on the held-out images, 0..1."""
    class_iou: tuple[float, ...]
    """Intersection over union of every class; NaN for one that occurs in neither truth nor prediction."""


class SegmentationFit(Training):
    """Trains a segmentation network on crops and evaluates it on whole images at one scale, by mean IoU.

    On a CPU, a run resumes to the same bits. On CUDA it comes close only: in the backward pass of enlarging the logits
    torch adds in an order that changes, unless ``torch.use_deterministic_algorithms(True)`` is set. Batch norms have
    torch's momentum, 0.1 (DeepLabV3: 0.0003).

    Args:
        network: moved to ``device``. Its weights are the caller's: random, or a trained classifier's in the backbone.
        data: what to train and to evaluate on.
        config: how to train.
        seed: of data order, crops, dropout and drop path.
        device: where to train.

    Raises:
        InvalidInput: the network's and the data's numbers of classes differ, a batch needs more images than there
            are, or several processes would share the run.
    """

    network: SegmentationNetwork
    measurements: ClassVar[tuple[str, ...]] = ("train_loss", "train_accuracy")
    report_type: ClassVar[type[EpochReport]] = SegmentationReport

    def __init__(
        self,
        network: SegmentationNetwork,
        data: SegmentationData,
        config: SegmentationConfig = SegmentationConfig(),
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if processes.count() > 1:
            raise InvalidInput("Segmentation trains in one process; run it without torchrun.")
        if network.classes != data.classes:
            raise InvalidInput(
                f"The network has {network.classes} classes, {data.name} has {data.classes}; "
                f"build it with classes={data.classes}."
            )
        self.config = config
        self.data = data
        self.loader = SegmentationLoader(
            data.train,
            config.batch_size,
            mean=data.mean,
            std=data.std,
            augmentation=config.augmentation,
            seed=seed,
            device=device,
            workers=config.workers,
        )
        super().__init__(config.epochs, len(self.loader), seed, device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            config.learning_rate,
            config.momentum,
            weight_decay=config.weight_decay,
            **optimizer_form(self.device),
        )
        self.mixed_precision = config.mixed_precision

    def begin_epoch(self) -> None:
        set_drop_path(self.network, self.config.drop_path)
        self.network.train()

    def run_step(self, index: int) -> Sequence[Tensor]:
        rate = poly(self.config.learning_rate, self.config.power, index / (self.total_epochs * self.steps_per_epoch))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, labels = self.loader.batch(index)
        self.optimizer.zero_grad()
        with self.precision():
            logits = self.network(in_channels_last(images))
        loss_sum, counted = pixel_loss(logits.float(), labels)
        loss = loss_sum / counted.clamp(min=1)  # a batch may show nothing but padding and borders
        loss.backward()
        self.optimizer.step()
        right = (logits.argmax(1) == labels).sum()  # no class has the number of ignored pixels
        return loss, right / counted.clamp(min=1)

    def report(self, means: dict[str, float]) -> EpochReport:
        last = self.epoch + 1 == self.total_epochs
        loss = correct = mean = float("nan")
        classes = (float("nan"),) * self.data.classes
        if last or (self.epoch + 1) % self.config.evaluate_every == 0:
            with self.precision():
                loss, confusion = evaluate_segmentation(
                    self.network, self.data, self.config.evaluation_batch, self.config.crop, self.config.workers
                )
            correct, mean = pixel_accuracy(confusion), mean_iou(confusion)
            classes = tuple(intersection_over_union(confusion).tolist())
        return SegmentationReport(
            self.epoch + 1,
            train_loss=means["train_loss"],
            train_accuracy=means["train_accuracy"],
            validation_loss=loss,
            validation_accuracy=correct,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=self.elapsed(),
            mean_iou=mean,
            class_iou=classes,
        )

    def header(self) -> dict[str, Any]:
        config = asdict(self.config)
        del config["workers"]  # how, not what
        return {
            "method": "segmentation",
            "genotype": self.network.genotype.to_json(),
            "shapes": [list(parameter.shape) for parameter in self.network.parameters()],
            "output_stride": self.network.backbone.output_stride,
            "rates": list(self.network.rates),
            "config": config,
            "data": self.data.checksum,
            "seed": self.seed,
        }


def poly(rate: float, power: float, progress: float) -> float:
    """The learning rate at a progress from 0 to 1: ``rate`` times (1 − progress) to the ``power``."""
    return rate * (1 - progress) ** power


def pixel_loss(
    logits: Float[Tensor, "batch classes height width"], labels: Int64[Tensor, "batch height width"]
) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
    """Sum of the cross entropies of all pixels that are not ignored, and how many those are."""
    flat = logits.permute(0, 2, 3, 1).flatten(0, 2)  # (pixels, classes): free in channels-last order
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum"), (labels != IGNORED).sum()


@torch.no_grad()
def evaluate_segmentation(
    network: nn.Module, data: SegmentationData, batch_size: int = 16, least: int = 513, workers: int = 0
) -> tuple[float, Int64[Tensor, "classes classes"]]:
    """Mean cross entropy of a pixel and confusion matrix on the test images, whole and at their own scale.

    Args:
        network: images → logits of their size; is put into evaluation mode meanwhile.
        data: its test images are used.
        batch_size: most images at once.
        least: side in pixels up to which smaller images are padded; padding is not scored.
        workers: threads that read ahead.
    """
    device = next(network.parameters()).device
    confusion = torch.zeros(data.classes, data.classes, dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    batches = whole_images(
        data.test, batch_size, least=least, mean=data.mean, std=data.std, device=device, workers=workers
    )
    with evaluating(network):
        for images, labels in batches:
            logits = network(in_channels_last(images)).float()
            loss += pixel_loss(logits, labels)[0]
            confusion += confusion_matrix(logits.argmax(1), labels, data.classes)
    return float(loss) / max(1, int(confusion.sum())), confusion.cpu()
