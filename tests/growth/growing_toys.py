"""Small networks that grow, awake enough for a wrong growth to show; and every morphism, by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from nasbook.growth.morphisms import (
    grow_kernel,
    insert_identity,
    insert_residual,
    net2deeper,
    net2wider,
    split_neurons,
    widen_with_zeros,
)
from nasbook.growth.surgery import Grown, blocks_of, in_blocks
from nasbook.networks import (
    GROWABLE_NETWORKS,
    Declaration,
    Flow,
    Growable,
    Perceptron,
    RadialNetwork,
    build_growable,
)


@dataclass(frozen=True)
class Shape:
    """What a :class:`Toy` looks like."""

    first: int = 2
    """Channels of the first convolution, times ``groups``."""
    second: int = 1
    """Channels of the second one, times ``groups``."""
    hidden: int = 4
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = True
    normalized: bool = True


class Toy(Growable):
    """Everything that a declaration can say: groups, depthwise, a residual sum, two places, a flattening."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        first, second = shape.first * shape.groups, shape.second * shape.groups
        options = {
            "padding": shape.dilation * (shape.kernel // 2),
            "dilation": shape.dilation,
            "bias": shape.bias,
        }

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if shape.normalized else nn.Identity()

        self.first, self.first_norm = nn.Conv2d(2, first, shape.kernel, shape.stride, **options), norm(first)
        self.depthwise = nn.Conv2d(first, first, shape.kernel, 1, groups=first, **options)
        self.depthwise_norm = norm(first)
        self.second = nn.Conv2d(first, second, shape.kernel, shape.stride, groups=shape.groups, **options)
        self.second_norm = norm(second)
        self.branch = nn.Conv2d(second, second, shape.kernel, 1, groups=shape.groups, **options)
        self.branch_norm = norm(second)
        self.inserted = nn.Sequential()
        side = self.second(self.first(torch.zeros(1, 2, 6, 6))).shape[-1]
        self.hidden = nn.Linear(second * side**2, shape.hidden, bias=shape.bias)
        self.inserted_vectors = nn.Sequential()
        self.out = nn.Linear(shape.hidden, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first_norm(self.first(images)).relu()
        x = self.depthwise_norm(self.depthwise(x)).relu()
        x = self.second_norm(self.second(x)).relu()
        x = (x + self.branch_norm(self.branch(x))).relu()  # two layers write these channels
        x = self.hidden(self.inserted(x).flatten(1)).relu()
        return self.out(self.inserted_vectors(x))

    def declare(self) -> Declaration:
        flow, normalized = Flow(self), self.shape.normalized

        def along(*names: str) -> tuple[str, ...]:
            return tuple(name for name in names if normalized or not name.endswith("norm"))

        first = flow.write("first", *along("first_norm", "depthwise", "depthwise_norm"))
        first.read_by.append("second")
        second = flow.write("second", *along("second_norm", "branch_norm"))
        second.read_by.append("branch")
        second.written_by.append("branch")
        second = flow.place("inserted", second, normalized=normalized)
        second.read_by.append("hidden")
        hidden = flow.place("inserted_vectors", flow.write("hidden"), kernel_size=0, normalized=normalized)
        hidden.read_by.append("out")
        return flow.declaration()


def wake(network: Growable, inputs: Tensor) -> Growable:
    """Puts a network into double precision and gives it batch norms with differing entries and learnt statistics."""
    network = network.double()
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.abs_()  # most of what ReLU sees is above zero
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, 0.5, 1.0)
            norm.momentum = 1.0
        network.train()(inputs)
        for norm in norms:
            norm.momentum = 0.1
    return network.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def toy(shape: Shape) -> tuple[Growable, Tensor]:
    inputs = images(5, 2, 6, 6)
    return wake(Toy(shape), inputs), inputs


def _built(name: str) -> tuple[Growable, Tensor]:
    inputs = images(4, 2, 16, 16)
    return wake(build_growable(name, widths=3, classes=3, in_channels=2, size=16), inputs), inputs


def _perceptron(**options: object) -> tuple[Growable, Tensor]:
    inputs = images(6, 5)
    return wake(Perceptron(5, (4, 3), 2, **options), inputs), inputs


def _radial() -> tuple[Growable, Tensor]:
    inputs = images(20, 1)
    return wake(RadialNetwork(4), inputs), inputs


FAMILIES: dict[str, Callable[[], tuple[Growable, Tensor]]] = {
    **{name: partial(_built, name) for name in GROWABLE_NETWORKS},
    "normalized perceptron": lambda: _perceptron(normalized=True),
    "radial": _radial,
    "toy": lambda: toy(Shape()),
    "grouped toy": lambda: toy(Shape(groups=2, stride=2, dilation=2, normalized=False)),
}
"""A network of every family, awake, and inputs for it."""


def widths_after(network: Growable, factor: int = 2) -> dict[str, int]:
    """More neurons of every width: not a multiple, where groups don't ask for one."""
    blocks = {width.name: blocks_of(network, width) for width in network.declare().widths}
    return {name: factor * count + blocks[name] for name, count in network.neurons().items() if count}


def every_last(network: Growable) -> dict[str, Tensor]:
    """The last and the first neuron of every width, in this order; of every block, where groups divide it."""
    chosen = {}
    for width in network.declare().widths:
        count, blocks = network.neurons()[width.name], blocks_of(network, width)
        if count:
            local = [count // blocks - 1, 0] if count > blocks else [0]
            chosen[width.name] = in_blocks(local, count, blocks)
    return chosen


def convolution_paths(network: Growable) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d) and module.out_channels]


def _deeper(network: Growable, inputs: Tensor, generator: torch.Generator) -> Grown:
    return net2deeper(network, network.declare().places[-1].name, 0, inputs=inputs)


def _deeper_without_inputs(network: Growable, inputs: Tensor, generator: torch.Generator) -> Grown:
    return net2deeper(network, network.declare().places[0].name, 0)


def _residual(network: Growable, inputs: Tensor, generator: torch.Generator) -> Grown:
    place = network.declare().places[0].name
    return insert_residual(network, place, len(network.get_submodule(place)), 3, generator)


def _identity(network: Growable, inputs: Tensor, generator: torch.Generator) -> Grown:
    return insert_identity(network, network.declare().places[-1].name, 0)


def _kernel(network: Growable, inputs: Tensor, generator: torch.Generator) -> Grown:
    path = convolution_paths(network)[-1]
    return grow_kernel(network, path, network.get_submodule(path).kernel_size[0] + 2)


MORPHISMS: dict[str, Callable[[Growable, Tensor, torch.Generator], Grown]] = {
    "net2wider": lambda network, inputs, generator: net2wider(network, widths_after(network), generator),
    "widen with zeros": lambda network, inputs, generator: widen_with_zeros(network, widths_after(network), generator),
    "split": lambda network, inputs, generator: split_neurons(network, every_last(network)),
    "net2deeper": _deeper,
    "net2deeper without inputs": _deeper_without_inputs,
    "residual": _residual,
    "identity": _identity,
    "kernel": _kernel,
}


WITHOUT_CONVOLUTIONS = ("perceptron", "normalized perceptron", "radial")
CASES = [
    (family, morphism)
    for family in FAMILIES
    for morphism in MORPHISMS
    if not (morphism == "kernel" and family in WITHOUT_CONVOLUTIONS)
    and not (family == "radial" and morphism not in ("net2wider", "widen with zeros", "split"))
]
"""Every family with every morphism that has something to grow there."""


def preserves_training(morphism: str, network: Growable) -> bool:
    """Whether the morphism promises to preserve training mode too, on a batch other than the one that it was given."""
    return not (morphism.startswith("net2deeper") and any(place.normalized for place in network.declare().places))


def outputs(network: Growable, inputs: Tensor, training: bool = False) -> Tensor:
    """Of a copy, so that training mode leaves the network's statistics alone."""
    with torch.no_grad():
        return copy.deepcopy(network).train(training)(inputs)


def distance(network: Growable, other: Growable, inputs: Tensor, training: bool = False) -> float:
    """The largest difference of outputs, in units of their spread over the batch. The first network must be awake."""
    before, after = outputs(network, inputs, training), outputs(other, inputs, training)
    spread = float((before - before.mean(0)).abs().max())
    assert spread > 1e-3, "The network gives the same to all inputs; nothing could be seen to change."
    return float((before - after).abs().max()) / spread


def contents(network: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.clone() if isinstance(value, Tensor) else torch.tensor(list(value.values()))
        for name, value in network.state_dict().items()
    }


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
