"""Training networks on sequences: forecasting and language modelling (Chapter 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook import processes
from nasbook.data import PARTS, SequenceData, SequenceLoader
from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import Genotype
from nasbook.training.fit import Training, evaluating
from nasbook.training.run import EpochReport, optimizer_form


def sequence_loss(outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """Mean squared error of forecasts; mean cross entropy, in nats a word, of logits.

    Args:
        outputs: (batch, series), or (batch, time, words).
        targets: (batch, series), or (batch, time) word numbers.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def sequence_accuracy(outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
    """Share of words that have the largest logit; of forecasts, the share that have the sign of what came."""
    if targets.is_floating_point():
        return ((outputs > 0) == (targets > 0)).float().mean()
    return (outputs.argmax(-1) == targets).float().mean()


@torch.no_grad()
def evaluate_sequences(
    network: nn.Module, data: SequenceData, part: str = "validation", batch_size: int = 50
) -> tuple[float, float]:
    """Mean loss and accuracy over all examples of a part, in evaluation mode; modes are put back.

    Each example starts from a zero state, as in training. Several processes divide the examples and all return the same
    numbers; each must call this.

    Raises:
        InvalidInput: there is no such part, or it has no example.
    """
    if part not in PARTS:
        raise unknown_name("part of the data", part, PARTS)
    inputs, targets = data.examples(part)
    if not len(inputs):
        raise InvalidInput(f"The {part} part of {data.name} has no example to evaluate on.")
    whole = len(inputs)
    inputs, targets = (tensor.tensor_split(processes.count())[processes.rank()] for tensor in (inputs, targets))
    loss = correct = 0.0
    with evaluating(network):
        for some, wanted in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            if not len(some):  # more processes than examples
                continue
            outputs = network(some)
            share = len(some) / whole
            loss += share * float(sequence_loss(outputs, wanted))
            correct += share * float(sequence_accuracy(outputs, wanted))
    loss, correct = processes.total([torch.tensor([loss, correct], dtype=torch.float64)])[0].tolist()
    return loss, correct


@dataclass(frozen=True)
class SequenceFitConfig:
    """How a sequence network trains. Defaults are the paper's (§4.1, §4.2)."""

    epochs: int = 10
    """Passes over the training examples."""
    batch_size: int = 50
    """Examples a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    weight_decay: float = 0.0
    """Of Adam, as L2. The paper has none."""
    clip: float = 5.0
    """Largest norm of the gradient. Not in the paper; a ReLU cell can explode without it."""

    def __post_init__(self) -> None:
        require_positive(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, clip=self.clip
        )
        if not self.weight_decay >= 0:
            raise InvalidInput(f"weight_decay must be at least 0, got {self.weight_decay}.")


@dataclass(frozen=True)
class SequenceReport(EpochReport):
    """What one epoch measured; loss and accuracy as :func:`sequence_loss` and :func:`sequence_accuracy` have them."""

    test_loss: float
    """Loss on the test part after the epoch, for a last number: nothing may be chosen by it."""


class SequenceFit(Training):
    """Trains a network on the training part of sequence data and evaluates it after every epoch.

    Args:
        network: predicts from a batch of examples; moved to the data's device.
        data: series or text.
        config: how to train.
        seed: of the order of the examples. The initial weights are the caller's.

    Raises:
        InvalidInput: several processes share the run.
    """

    report_type: ClassVar[type[EpochReport]] = SequenceReport
    measurements: ClassVar[tuple[str, ...]] = ("train_loss", "train_accuracy")

    def __init__(
        self,
        network: nn.Module,
        data: SequenceData,
        config: SequenceFitConfig = SequenceFitConfig(),
        *,
        seed: int = 0,
    ) -> None:
        if processes.count() > 1:
            raise InvalidInput("A sequence network trains in one process; start it without torchrun.")
        self.config = config
        self.data = data
        inputs, targets = data.examples("train")
        self.network = network.to(inputs.device)
        self.loader = SequenceLoader(inputs, targets, config.batch_size, seed=seed)
        self.mixed_precision = False
        super().__init__(config.epochs, len(self.loader), seed, inputs.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            config.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            **optimizer_form(inputs.device),
        )

    def begin_epoch(self) -> None:
        self.network.train()

    def run_step(self, index: int) -> Sequence[Tensor]:
        inputs, targets = self.loader.batch(index)
        self.optimizer.zero_grad()
        outputs = self.network(inputs)
        loss = sequence_loss(outputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        return loss, sequence_accuracy(outputs.detach(), targets)

    def report(self, means: dict[str, float]) -> SequenceReport:
        loss, correct = evaluate_sequences(self.network, self.data)
        return SequenceReport(
            self.epoch + 1,
            train_loss=means["train_loss"],
            train_accuracy=means["train_accuracy"],
            validation_loss=loss,
            validation_accuracy=correct,
            learning_rate=self.config.learning_rate,
            seconds=self.elapsed(),  # without the test part, so that times compare with a search's
            test_loss=evaluate_sequences(self.network, self.data, "test")[0],
        )

    def header(self) -> dict[str, Any]:
        genotype = getattr(self.network, "genotype", None)
        return {
            "method": "sequence fit",
            "network": type(self.network).__name__,
            "genotype": genotype.to_json() if isinstance(genotype, Genotype) else "",  # a supernet's is a method
            "shapes": [list(parameter.shape) for parameter in self.network.parameters()],
            "config": asdict(self.config),
            "data": self.data.checksum,
            "seed": self.seed,
        }
