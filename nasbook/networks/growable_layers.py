"""What the growable networks are made of: a layer that has a place for new layers after it (Chapter 4)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.networks.growable import Channels, Flow


class ConvolutionLayer(nn.Module):
    """3×3 convolution without bias, batch norm, ReLU; then the place for new layers, ``inserted``, at first empty.

    Args:
        inputs: channels that it reads.
        outputs: channels that it writes.
        stride: of the convolution; padding is 1, so that one pixel stays one pixel.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        require_positive(inputs=inputs, outputs=outputs, stride=stride)
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU()
        self.inserted = nn.Sequential()

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs new_height new_width"]:
        return self.inserted(self.activation(self.norm(self.convolution(x))))


def declare_convolution(flow: Flow, path: str, entering: Channels | None) -> Channels:
    """Notes the :class:`ConvolutionLayer` at ``path``; returns the channels after it and after its inserted layers.

    Args:
        flow: what is noted so far.
        path: of the layer.
        entering: the channels that it reads; None for those of the images, which don't grow.
    """
    if entering is not None:
        entering.read_by.append(f"{path}.convolution")
    channels = flow.write(f"{path}.convolution", f"{path}.norm")
    return flow.place(f"{path}.inserted", channels)


def layer_widths(widths: int | Sequence[int] | None, standard: Sequence[int]) -> tuple[int, ...]:
    """How many channels each layer has: the standard ones (None), one number for all, or one for each.

    Raises:
        InvalidInput: not as many widths as layers, or one below 1.
    """
    if widths is None:
        return tuple(standard)
    chosen = (widths,) * len(standard) if isinstance(widths, int) else tuple(widths)
    if len(chosen) != len(standard):
        raise InvalidInput(f"widths has {len(chosen)} numbers, the network has {len(standard)} layers; give one each.")
    if min(chosen) < 1:
        raise InvalidInput(f"Every width must be 1 or more, got {list(chosen)}.")
    return chosen
