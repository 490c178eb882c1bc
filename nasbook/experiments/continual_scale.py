"""The scales of Chapter 7: task sequences, and the growing cells of Firefly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nasbook.experiments.scale import SCALES, Scale, own_scale


@dataclass(frozen=True)
class ContinualScale(Scale):
    """The numbers of Chapter 7 at one size: those of all image experiments, and those of the task sequences."""

    continual_data: str
    """Name of the image set that is divided into tasks."""
    continual_images: int | None
    """Training images of it that are used, balanced over the classes; None for all."""
    tasks: int
    """Tasks of Fig. 5b and Table 2; the paper has 20."""
    seen_tasks: int | None
    """How many of them are learned, the first ones; None for all."""
    few_tasks: int
    """Tasks of Fig. 5a; the paper has 10."""
    backbone: str
    """Name of the network; VGG-16 in the paper."""
    full_share: float
    """Share of its standard widths that every baseline has; 1 in the paper."""
    thin_share: float
    """Share of its standard widths with which Firefly begins: "a thin variant" (§3)."""
    task_epochs: int
    """Epochs of a learner's training on a task; 100 in the paper."""
    task_batch: int
    """Images a step."""
    mask_epochs: int
    """Epochs of learning a mask."""
    mask_rate: float
    """Learning rate of the masks' scores. Adam's steps are about as long as its rate, and a score lies 0.005 above the
    threshold at first, so rate × steps says how many neurons can be left out."""
    direction_epochs: int
    """Epochs of the over-grown network; 50 in the paper."""
    candidates: int
    """m': new neurons that each layer may choose from; 15 in the paper."""
    chosen: int
    """Neurons that a growth adds; 256 in the paper's Table 2."""
    chosen_numbers: tuple[int, ...]
    """The numbers of Fig. 5a; 32 to 512 in the paper."""
    fisher_images: int | None
    """Images of each task over which EWC averages its Fisher information; None for all."""
    held_out: float
    """Share of each task's training images by which CPG decides."""
    pruning_every: int
    """Steps between two prunings of CPG; 10 in its code, which has a hundred steps for them in each sparsity."""
    cell_epochs: int
    """Epochs of training before each growth of a cell; 5 in the paper."""
    cell_direction_epochs: int
    """Epochs of the over-grown network in each growth of a cell; 5 in the paper."""
    cell_channels: int
    """Channels of the operations of the first searched cell; 4 in the paper, doubled at both reductions."""
    cell_node_channels: int
    """Channels of its nodes; 16 in the paper."""
    cell_candidates: int
    """New neurons of each operation of the first cell; 4 in the paper, doubled at both reductions."""
    cell_batch: int
    """Images a step in a search that grows cells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "chosen_numbers", tuple(self.chosen_numbers))  # a record has a list


_NUMBERS: dict[str, dict[str, Any]] = {
    "quick": {
        "continual_data": "digits",
        "continual_images": 200,
        "tasks": 5,
        "seen_tasks": None,
        "few_tasks": 5,
        "backbone": "vgg11",
        "full_share": 0.125,
        "thin_share": 0.0625,
        "task_epochs": 30,
        "task_batch": 20,
        "mask_epochs": 9,
        "mask_rate": 3e-4,
        "direction_epochs": 15,
        "candidates": 8,
        "chosen": 16,
        "chosen_numbers": (4, 16, 64),
        "fisher_images": None,
        "held_out": 0.25,
        "pruning_every": 1,
        "cell_epochs": 1,
        "cell_direction_epochs": 1,
        "cell_channels": 2,
        "cell_node_channels": 4,
        "cell_candidates": 2,
        "cell_batch": 64,
    },
    "laptop": {
        "continual_data": "cifar100",
        "continual_images": 10000,
        "tasks": 20,
        "seen_tasks": 10,
        "few_tasks": 10,
        "backbone": "vgg16",
        "full_share": 0.125,
        "thin_share": 0.0625,
        "task_epochs": 12,
        "task_batch": 25,
        "mask_epochs": 4,
        "mask_rate": 1e-4,
        "direction_epochs": 4,
        "candidates": 8,
        "chosen": 32,
        "chosen_numbers": (8, 32, 64),
        "fisher_images": 200,
        "held_out": 0.1,
        "pruning_every": 4,
        "cell_epochs": 2,
        "cell_direction_epochs": 2,
        "cell_channels": 2,
        "cell_node_channels": 8,
        "cell_candidates": 2,
        "cell_batch": 64,
    },
    "gpu": {
        "continual_data": "cifar100",
        "continual_images": None,
        "tasks": 20,
        "seen_tasks": None,
        "few_tasks": 10,
        "backbone": "vgg16",
        "full_share": 0.5,
        "thin_share": 0.125,
        "task_epochs": 30,
        "task_batch": 32,
        "mask_epochs": 10,
        "mask_rate": 1e-4,
        "direction_epochs": 15,
        "candidates": 15,
        "chosen": 128,
        "chosen_numbers": (32, 128, 256),
        "fisher_images": 500,
        "held_out": 0.1,
        "pruning_every": 10,
        "cell_epochs": 5,
        "cell_direction_epochs": 5,
        "cell_channels": 4,
        "cell_node_channels": 16,
        "cell_candidates": 4,
        "cell_batch": 64,
    },
    "paper": {
        "continual_data": "cifar100",
        "continual_images": None,
        "tasks": 20,
        "seen_tasks": None,
        "few_tasks": 10,
        "backbone": "vgg16",
        "full_share": 1.0,
        "thin_share": 0.125,
        "task_epochs": 100,
        "task_batch": 32,
        "mask_epochs": 30,
        "mask_rate": 1e-4,
        "direction_epochs": 50,
        "candidates": 15,
        "chosen": 256,
        "chosen_numbers": (32, 128, 196, 256, 320, 384, 448, 512),
        "fisher_images": None,
        "held_out": 0.1,
        "pruning_every": 10,
        "cell_epochs": 5,
        "cell_direction_epochs": 5,
        "cell_channels": 4,
        "cell_node_channels": 16,
        "cell_candidates": 4,
        "cell_batch": 64,
    },
}

CONTINUAL_SCALES: dict[str, ContinualScale] = {
    name: ContinualScale(**{**vars(SCALES[name]), **numbers}) for name, numbers in _NUMBERS.items()
}
"""The scales of Chapter 7 by name."""


def continual_scale(scale: Scale) -> ContinualScale:
    """The numbers of Chapter 7 at a scale.

    Raises:
        InvalidInput: the scale is none of the four and has no such numbers.
    """
    return own_scale(scale, ContinualScale, CONTINUAL_SCALES, "Chapter 7")
