"""How every cell of the tabular benchmark is trained: images, network, schedule; one cell alone, or many side by side.

Chapter 8. ``tools/tabular.py`` trains all of them with what stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nasbook.data import ImageData, load_images
from nasbook.data.formats import ARRAYS
from nasbook.data.images import checksum_of
from nasbook.genotypes import Genotype
from nasbook.networks import DerivedNetwork
from nasbook.seeding import fold_seed
from nasbook.training import EpochReport, Fit, FitConfig, evaluate
from nasbook.training.side_by_side import Trainee

__all__ = ["CELLS", "CHANNELS", "RECIPE", "SEEDS", "benchmark_images", "build_trainee", "train_entry"]

CHANNELS = 4
"""C: the two cells have nodes of 8 and 16 channels."""

CELLS = 2
"""L: both stand at a reduction, and take 8×8 pixels to 4×4 and 2×2."""

SEEDS = (0, 1, 2, 3, 4)
"""Of the division of the images, initial weights and the order of the images."""

RECIPE = FitConfig(epochs=24, batch_size=32, learning_rate=0.05, drop_path=0.0, cutout=0)
"""How each cell is trained: 240 steps, after which nearly all networks fit their 320 images without an error."""

LEARNING_IMAGES = 640
"""Images that searches and trainings may use: half of them to train on, half to choose by."""


def benchmark_images(device: torch.device | str = "cpu") -> ImageData:
    """scikit-learn's digits, 640 to learn from and choose by, and the other 1,157 to test on.

    So few to learn from, because cells differ more when images are scarce; and so many to test on, because an accuracy
    that is counted on few images is noise: at 95 %, one standard error is 0.6 points of 1,157 images.
    """
    whole = load_images("digits")
    first = whole.take(train=LEARNING_IMAGES)
    learning = {image.numpy().tobytes() for image in first.train_images}
    left = torch.tensor([image.numpy().tobytes() not in learning for image in whole.train_images])
    assert int(left.sum()) == len(left) - LEARNING_IMAGES  # no image is there twice
    data = replace(
        first,
        test_images=torch.cat([whole.test_images, whole.train_images[left]]),
        test_labels=torch.cat([whole.test_labels, whole.train_labels[left]]),
    )
    return replace(data, checksum=checksum_of({name: getattr(data, name) for name in ARRAYS})).to(device)


def build_trainee(genotype: Genotype, seed: int, data: ImageData) -> Trainee:
    """The network of a cell with its initial weights, and the halves of the images for this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(fold_seed(seed, "initial parameters"))
        network = DerivedNetwork(genotype, CHANNELS, CELLS, data.classes, in_channels=data.channels)
    train, held_out = data.split((0.5, 0.5), seed=fold_seed(seed, "split"))
    return Trainee(network, train, held_out, seed)


def train_entry(genotype: Genotype, seed: int, data: ImageData | None = None) -> tuple[Sequence[EpochReport], float]:
    """Trains one cell alone, as any derived network is trained.

    Args:
        genotype: a cell of the table's space.
        seed: of everything random; the table has those of :data:`SEEDS`.
        data: from :func:`benchmark_images`, which is loaded otherwise.

    Returns:
        A report an epoch, and the accuracy on the test images after the last one. About a second and a half.
    """
    data = benchmark_images() if data is None else data
    trainee = build_trainee(genotype, seed, data)
    run = Fit(
        trainee.network,
        data,
        RECIPE,
        seed=seed,
        train_indices=trainee.train_indices,
        held_out=trainee.held_out,
    )
    reports = list(run.epochs())
    return reports, evaluate(trainee.network, data.test_images, data.test_labels, data)[1]
