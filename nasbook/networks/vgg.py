"""VGG networks with batch norm and one linear classifier (Simonyan & Zisserman 2015, Table 1).

The form that is usual on CIFAR-10, and the backbone of Firefly's Fig. 4: without the hidden fully connected layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.networks.growable import Declaration, Flow, Growable
from nasbook.networks.growable_layers import ConvolutionLayer, declare_convolution, layer_widths

STAGE_LAYERS: dict[str, tuple[int, int, int, int, int]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Convolutions of each stage, by name: the paper's configurations A, B, D and E."""

STAGE_CHANNELS = (64, 128, 256, 512, 512)
"""Standard channels of each stage's convolutions."""


class VGG(Growable):
    """A VGG network for square images. Its convolutions stand in ``layers``; max pools halve the map after each stage.

    A pool that would leave less than one pixel is left out: 32×32 images take all five, 8×8 digits the first three.
    If the last map has more than one pixel (64×64 images), the classifier reads all of its pixels.

    At the defaults it has 20,035,018 parameters. With biases of its convolutions, which the batch norms make
    pointless, it would have the 20,040,522 that are often given.

    Args:
        name: ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``.
        widths: channels of the convolutions: None for the standard ones, a number for all (Firefly: 16), or a
            number each; :func:`~nasbook.networks.scaled_widths` gives a share of the standard ones.
        classes: number of classes.
        in_channels: channels of the images.
        size: pixels a side.

    Raises:
        InvalidInput: an unknown name; widths, classes, channels or size that are no such numbers.
    """

    def __init__(
        self,
        name: str = "vgg19",
        widths: int | Sequence[int] | None = None,
        classes: int = 10,
        in_channels: int = 3,
        size: int = 32,
    ) -> None:
        super().__init__()
        require_positive(classes=classes, in_channels=in_channels, size=size)
        chosen = layer_widths(widths, vgg_widths(name))
        self.name, self.size = name, size
        self.layers = nn.ModuleList(
            ConvolutionLayer(inputs, outputs)
            for inputs, outputs in zip((in_channels, *chosen[:-1]), chosen, strict=True)
        )
        self.pooled_after: set[int] = set()  # indices of layers
        last = -1
        for layers in STAGE_LAYERS[name]:
            last += layers
            if size > 1:
                self.pooled_after.add(last)
                size //= 2
        self.classifier = nn.Linear(chosen[-1] * size**2, classes)

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch classes"]:
        if images.shape[2:] != (self.size, self.size):
            raise InvalidInput(
                f"This network was built for {self.size}×{self.size} images, got {images.shape[2]}×{images.shape[3]}; "
                "give their size when you build it."
            )
        x = images
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.pooled_after:
                x = F.max_pool2d(x, 2)
        return self.classifier(x.flatten(1))

    def declare(self) -> Declaration:
        flow = Flow(self)
        channels = None
        for index in range(len(self.layers)):
            channels = declare_convolution(flow, f"layers.{index}", channels)
        assert channels is not None
        channels.read_by.append("classifier")
        return flow.declaration()


def vgg_widths(name: str) -> tuple[int, ...]:
    """The standard channels of every convolution of a VGG network.

    Raises:
        InvalidInput: an unknown name.
    """
    if name not in STAGE_LAYERS:
        raise unknown_name("VGG network", name, STAGE_LAYERS)
    return tuple(c for layers, c in zip(STAGE_LAYERS[name], STAGE_CHANNELS, strict=True) for _ in range(layers))
