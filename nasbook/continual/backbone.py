"""The network that the learners of a task sequence share: a growable one, by name and by its widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nasbook.errors import InvalidInput
from nasbook.networks import Growable, build_growable
from nasbook.seeding import fold_seed


@dataclass(frozen=True)
class Backbone:
    """What all networks of a sequence have in common; they differ in widths, classes and weights."""

    name: str = "vgg16"
    """One of :data:`nasbook.networks.GROWABLE_NETWORKS`."""
    widths: tuple[int, ...] | None = None
    """Neurons of each layer at first; None for the standard ones. The paper begins with "a thin variant" (§3)."""
    in_channels: int = 3
    """Channels of the images."""
    size: int = 32
    """Pixels a side."""

    def __post_init__(self) -> None:
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(self.widths))  # a checkpoint or JSON has a list

    def build(self, classes: int, seed: int, widths: Sequence[int] | None = None) -> Growable:
        """A freshly initialised network in evaluation mode; one seed gives the same weights.

        Args:
            classes: outputs of its classifier.
            seed: of the initial weights.
            widths: neurons of each layer; None for the first ones.

        Raises:
            InvalidInput: no such network or widths, or its structure is more than its widths.
        """
        chosen = self.widths if widths is None else tuple(widths)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fold_seed(seed, "initial parameters"))
            network = build_growable(
                self.name, widths=chosen, classes=classes, in_channels=self.in_channels, size=self.size
            )
        if chosen is not None and tuple(network.neurons().values()) != chosen:
            raise InvalidInput(f"{self.name} is not described by the widths of its layers alone; take another network.")
        return network.eval()
