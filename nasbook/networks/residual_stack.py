"""The network of Firefly's depth experiment: four blocks that begin with one convolution each (Appendix B.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import require_positive
from nasbook.networks.growable import Declaration, Flow, Growable, ResidualLayer
from nasbook.networks.growable_layers import ConvolutionLayer, declare_convolution, layer_widths

BLOCKS = 4
"""Blocks of the stack."""

BLOCK_CHANNELS = 16
"""Channels that every block begins with."""


class BlockStack(Growable):
    """Four blocks, then a global average pool and a linear classifier. It begins as 1-1-1-1.

    A block is a convolution of stride 2 and the layers inserted after it, which keep the size of the map: residual
    ones (:class:`~nasbook.networks.ResidualLayer`; the paper inserts up to 11) or plain ones. Maps have 14, 7, 4 and 2
    pixels a side with 28×28 images; 16, 8, 4, 2 with 32×32; 4, 2, 1, 1 with 8×8.

    Args:
        widths: channels of the blocks: None for the paper's 16, a number for all, or one for each.
        classes: number of classes.
        in_channels: channels of the images.

    Raises:
        InvalidInput: not four widths, or sizes below 1.
    """

    def __init__(self, widths: int | Sequence[int] | None = None, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        require_positive(classes=classes, in_channels=in_channels)
        chosen = layer_widths(widths, (BLOCK_CHANNELS,) * BLOCKS)
        self.blocks = nn.ModuleList(
            ConvolutionLayer(inputs, outputs, stride=2)
            for inputs, outputs in zip((in_channels, *chosen[:-1]), chosen, strict=True)
        )
        self.classifier = nn.Linear(chosen[-1], classes)

    def structure(self) -> tuple[int, ...]:
        """Layers of each block, written 12-12-12-12 in the paper. Residual layers without neurons don't count."""
        inserted = (block.get_submodule("inserted").children() for block in self.blocks)
        return tuple(
            1 + sum(not isinstance(layer, ResidualLayer) or layer.neurons > 0 for layer in layers)
            for layers in inserted
        )

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch classes"]:
        x = images
        for block in self.blocks:
            x = block(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def declare(self) -> Declaration:
        flow = Flow(self)
        channels = None
        for index in range(BLOCKS):
            channels = declare_convolution(flow, f"blocks.{index}", channels)
        assert channels is not None
        channels.read_by.append("classifier")
        return flow.declaration()
