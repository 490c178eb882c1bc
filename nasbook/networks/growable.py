"""What a network says about itself so that it can grow: its widths, and the places for new layers (Chapter 4).

A network declares once which layers write a set of channels, which act on each channel alone, and which read them.
Every growth method of :mod:`nasbook.growth` works on that declaration, and on nothing else of the network. A network
follows its own data flow with a :class:`Flow`, so that the declaration is always that of its present layers.

In a residual network several layers write the same channels, because their outputs are added; then they grow together.
An identity layer that may become a layer is a :class:`ResidualLayer` without neurons: so a new layer is a width of
zero that grows (Firefly §2.3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive, unknown_name


@dataclass(frozen=True)
class Width:
    """Channels that grow together. A *neuron* is one of them: a filter of every layer that writes it, the entries of
    what acts on it alone, and a column of every layer that reads it."""

    name: str
    """The path of the layer that wrote these channels first."""
    written_by: tuple[str, ...]
    """Paths of the convolutions and linear layers whose outputs these channels are; of several, they are added."""
    along: tuple[str, ...] = ()
    """Paths of the batch norms and depthwise convolutions in between, which act on each channel alone."""
    read_by: tuple[str, ...] = ()
    """Paths of the convolutions and linear layers that take these channels as input. A linear layer after a flattening
    has several inputs a channel."""


@dataclass(frozen=True)
class Place:
    """Where new layers may stand."""

    name: str
    """The path of the ``nn.Sequential`` that holds them; empty, it is the identity."""
    width: str
    """The name of the width that enters it."""
    kernel_size: int = 3
    """Of the convolutions that are inserted; 0 for linear layers, between vectors."""
    normalized: bool = True
    """Whether inserted layers have a batch norm."""
    activation: type[nn.Module] = nn.ReLU
    """σ of inserted layers."""


@dataclass(frozen=True)
class Declaration:
    """All widths of a network and all its places for new layers, in the order of the data."""

    widths: tuple[Width, ...]
    """Channels that may grow."""
    places: tuple[Place, ...] = ()
    """Where layers may be inserted."""

    def width(self, name: str) -> Width:
        """The width of that name.

        Raises:
            InvalidInput: there is none; the message has the nearest names.
        """
        for width in self.widths:
            if width.name == name:
                return width
        raise unknown_name("width", name, [width.name for width in self.widths])

    def place(self, name: str) -> Place:
        """The place of that name.

        Raises:
            InvalidInput: there is none; the message has the nearest names.
        """
        for place in self.places:
            if place.name == name:
                return place
        raise unknown_name("place for new layers", name, [place.name for place in self.places])


class Growable(nn.Module, ABC):
    """A network that can grow."""

    @abstractmethod
    def declare(self) -> Declaration:
        """The widths and places that the network has now."""

    def neurons(self) -> dict[str, int]:
        """How many neurons each width has now, by its name."""
        return {width.name: output_channels(self.get_submodule(width.written_by[0])) for width in self.declare().widths}


def output_channels(layer: nn.Module) -> int:
    """Channels that a convolution or a linear layer writes."""
    return int(layer.weight.shape[0])  # type: ignore[index]


@dataclass
class Flow:
    """Follows channels through a network and notes who writes and reads them. Used by :meth:`Growable.declare`."""

    network: nn.Module
    """The network; paths are looked up in it."""
    _widths: list[Channels] = field(default_factory=list)
    _places: list[Place] = field(default_factory=list)

    def write(self, path: str, *along: str) -> Channels:
        """New channels, written by the layer at ``path`` and followed by the channelwise layers ``along``."""
        channels = Channels(path, [path], list(along))
        self._widths.append(channels)
        return channels

    def place(
        self,
        path: str,
        channels: Channels,
        *,
        kernel_size: int = 3,
        normalized: bool = True,
        activation: type[nn.Module] = nn.ReLU,
    ) -> Channels:
        """Channels after the place at ``path``: through residual layers the same ones, new ones after a plain layer.

        The options say how the layers look that are inserted there.
        """
        self._places.append(Place(path, channels.name, kernel_size, normalized, activation))
        layers = self.network.get_submodule(path)
        assert isinstance(layers, nn.Sequential)
        for index, layer in enumerate(layers):
            here = f"{path}.{index}"
            norm = (f"{here}.norm",) if getattr(layer, "normalized", False) else ()
            if isinstance(layer, ResidualLayer):
                inner = self.write(f"{here}.layer", *norm)
                inner.read_by.append(f"{here}.projection")
                channels.read_by.append(f"{here}.layer")
                channels.written_by.append(f"{here}.projection")
            elif isinstance(layer, PlainLayer):
                channels.read_by.append(f"{here}.layer")
                channels = self.write(f"{here}.layer", *norm)
            else:
                raise InvalidInput(
                    f"The place {path} holds a {type(layer).__name__}; expected a ResidualLayer or a PlainLayer."
                )
        return channels

    def declaration(self) -> Declaration:
        """What was noted."""
        widths = tuple(Width(c.name, tuple(c.written_by), tuple(c.along), tuple(c.read_by)) for c in self._widths)
        return Declaration(widths, tuple(self._places))


@dataclass
class Channels:
    """Channels on their way through a network; lists are extended as layers are met."""

    name: str
    written_by: list[str]
    along: list[str] = field(default_factory=list)
    read_by: list[str] = field(default_factory=list)


class InsertedLayer(nn.Module):
    """A layer that stands in a place: a convolution or linear layer, perhaps its batch norm, and σ."""

    layer: nn.Conv2d | nn.Linear
    norm: nn.Module

    @property
    def normalized(self) -> bool:
        """Whether a batch norm stands between the layer and σ."""
        return not isinstance(self.norm, nn.Identity)


class ResidualLayer(InsertedLayer):
    """I + h with h(x) = Σᵢ outᵢ σ(inᵢ ∗ x): the layer that Firefly inserts (§2.3). Without neurons it is the identity.

    A neuron is a filter of ``layer``, its entry of ``norm`` and a column of ``projection``, which brings it back to
    the channels of x. The paper leaves the way back open; ours is a 1×1 convolution without bias, so that an inserted
    layer counts as one convolution of the paper's kernel.

    Args:
        channels: of the input and of the output.
        neurons: how many it begins with; 0 for the identity.
        kernel_size: of the convolution; 0 makes both layers linear, for vectors.
        normalized: whether a batch norm stands between the layer and σ.
        activation: σ.
    """

    def __init__(
        self,
        channels: int,
        neurons: int = 0,
        kernel_size: int = 3,
        *,
        normalized: bool = True,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        require_positive(channels=channels)
        if neurons < 0:
            raise InvalidInput(f"neurons must be 0 or more, got {neurons}.")
        self.kernel_size = kernel_size
        self.layer, self.norm = _layer_and_norm(channels, max(neurons, 1), kernel_size, normalized)
        self.projection = _layer(max(neurons, 1), channels, min(kernel_size, 1), bias=False)
        self.activation = activation()
        if not neurons:  # torch does not initialise layers without neurons
            self._empty()

    def _empty(self) -> None:
        for layer, dimension in ((self.layer, 0), (self.projection, 1)):
            layer.weight = nn.Parameter(layer.weight.detach().narrow(dimension, 0, 0).clone())
            if layer.bias is not None and dimension == 0:
                layer.bias = nn.Parameter(layer.bias.detach()[:0].clone())
        if isinstance(self.norm, nn.modules.batchnorm._BatchNorm):
            self.norm.num_features = 0
            for name in ("weight", "bias"):
                setattr(self.norm, name, nn.Parameter(getattr(self.norm, name).detach()[:0].clone()))
            for name in ("running_mean", "running_var"):
                setattr(self.norm, name, getattr(self.norm, name)[:0].clone())
        if isinstance(self.layer, nn.Linear):
            self.layer.out_features, self.projection.in_features = 0, 0
        else:
            self.layer.out_channels, self.projection.in_channels = 0, 0

    @property
    def neurons(self) -> int:
        """How many neurons it has."""
        return int(self.layer.weight.shape[0])

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """I + h."""
        if isinstance(self.layer, nn.Conv2d | nn.Linear) and not self.neurons:
            return x  # kernels don't take layers without channels
        return x + self.projection(self.activation(self.norm(self.layer(x))))


class PlainLayer(InsertedLayer):
    """A layer, its batch norm and σ, as Net2DeeperNet inserts it after another one (Chen et al. 2016, §2.3).

    Args:
        channels: of the input and, at first, of the output.
        kernel_size: of the convolution; 0 makes the layer linear, for vectors.
        normalized: whether a batch norm stands between the layer and σ.
        activation: σ.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        normalized: bool = True,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        require_positive(channels=channels)
        self.layer, self.norm = _layer_and_norm(channels, channels, kernel_size, normalized)
        self.activation = activation()

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch outputs *space"]:
        """σ of the layer."""
        return self.activation(self.norm(self.layer(x)))


def _layer(inputs: int, outputs: int, kernel_size: int, *, bias: bool) -> nn.Conv2d | nn.Linear:
    if kernel_size < 0 or (kernel_size and kernel_size % 2 == 0):
        raise InvalidInput(f"kernel_size must be odd, or 0 for a linear layer, got {kernel_size}.")
    if kernel_size == 0:
        return nn.Linear(inputs, outputs, bias=bias)
    return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)


def _layer_and_norm(
    inputs: int, outputs: int, kernel_size: int, normalized: bool
) -> tuple[nn.Conv2d | nn.Linear, nn.Module]:
    layer = _layer(inputs, outputs, kernel_size, bias=not normalized)
    if not normalized:
        return layer, nn.Identity()
    return layer, (nn.BatchNorm2d if kernel_size else nn.BatchNorm1d)(outputs)
