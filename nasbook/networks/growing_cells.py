"""Cells whose operations grow: the network that Firefly searches (Wu et al., NeurIPS 2020, §3 and appendix B.3).

Chapter 7. Five cells in a row, the second and the fourth reduce. Each is DARTS' graph with every edge, and on every
edge stand all operations at once, beside the identity map. Differs from DARTS' supernet in three places:

1. Operations are narrow: they have a quarter of their node's channels. The last convolution of each may grow.
2. A linear transform, a 1×1 convolution without bias, brings what it writes to the node's channels, so that operations
   of different width can be added.
3. No architecture parameters: the transforms are the "linear combinations" of §3, and widths say what was useful.

What the paper leaves open, and what we do:

* The first half of a separable convolution, twice applied, writes the starting width and stays.
* Batch norms have no scale and no shift, as in DARTS' search network: the transform has both.
* The identity map has no coefficient. Where an edge has stride 2 it is DARTS' factorized reduction, as in the network
  that is built of the answer.
* Between the batch norm and the transform stands nothing ("a linear transform layer"). So halves that split this
  convolution's neurons are averaged again before any nonlinearity: in evaluation mode, a split changes nothing. With
  ``activation="relu"`` it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive, unknown_name
from nasbook.genotypes import CELL_SECTIONS, Space
from nasbook.networks.growable import Declaration, Flow, Growable, output_channels
from nasbook.networks.stacking import (
    CELL_OUTPUTS,
    CellPlacement,
    StemName,
    build_stem,
    stack_cells,
)
from nasbook.operations import Configuration, build_operation, configuration_of, get_operation
from nasbook.operations.depthwise import DepthwiseConvolution

Image = Float[Tensor, "batch channels height width"]

GROWING_OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
"""What stands on every edge: "SepConv and DilConv of different sizes" (§3), those of DARTS."""

GROWING_SPACE = Space(GROWING_OPERATIONS, edges_per_node=5, kinds=CELL_SECTIONS)
"""The space of Firefly's cells: all 14 edges of DARTS' graph stay, in each of five kinds of cell."""

TransformActivation = Literal["identity", "relu"]

TRANSFORM_ACTIVATIONS: dict[str, type[nn.Module]] = {"identity": nn.Identity, "relu": nn.ReLU}
"""What stands between an operation's last batch norm and its linear transform, by name; the paper's is nothing."""


class GrowableOperation(nn.Module):
    """A separable convolution whose last pointwise convolution may grow, and the linear transform behind it.

    Each layer is ReLU, depthwise k×k, pointwise, batch norm, as in DARTS: two layers for ``sep_conv``, one for
    ``dil_conv``.

    Args:
        configuration: kernel size, dilation, and one expansion for each layer after the first.
        channels: of the node that it reads and of the one that it adds to.
        width: channels that its layers write at first; inner layers write the expansion's multiple.
        stride: 1 or 2, in the first layer.
        activation: a name from :data:`TRANSFORM_ACTIVATIONS`.
    """

    def __init__(
        self, configuration: Configuration, channels: int, width: int, stride: int, activation: TransformActivation
    ) -> None:
        super().__init__()
        writes = [width * factor for factor in (*configuration.expansions, 1)]
        kernel, dilation = configuration.kernel, configuration.dilation
        modules: list[nn.Module] = []
        for place, (inputs, outputs) in enumerate(zip([channels, *writes[:-1]], writes, strict=True)):
            modules += [
                nn.ReLU(),
                DepthwiseConvolution(inputs, kernel, 1 if place else stride, dilation * (kernel // 2), dilation),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs, affine=False),
            ]
        self.inner = nn.Sequential(*modules[:-2])
        self.last = modules[-2]
        self.norm = modules[-1]
        self.activation = TRANSFORM_ACTIVATIONS[activation]()
        self.transform = nn.Conv2d(width, channels, 1, bias=False)

    def forward(self, x: Image) -> Float[Tensor, "batch channels new_height new_width"]:
        return self.transform(self.activation(self.norm(self.last(self.inner(x)))))


class GrowableEdge(nn.Module):
    """All operations of an edge and the identity map, added (§3).

    Args:
        operations: their names.
        channels: of both nodes.
        width: channels of every operation at first.
        stride: 1 or 2.
        activation: a name from :data:`TRANSFORM_ACTIVATIONS`.
    """

    def __init__(
        self, operations: tuple[str, ...], channels: int, width: int, stride: int, activation: TransformActivation
    ) -> None:
        super().__init__()
        self.identity = build_operation("skip_connect", channels, stride, affine=False)
        self.operations = nn.ModuleDict({
            name: GrowableOperation(configuration_of(name), channels, width, stride, activation) for name in operations
        })

    def forward(self, x: Image) -> Float[Tensor, "batch channels new_height new_width"]:
        total = self.identity(x)
        for operation in self.operations.values():
            total = total + operation(x)
        return total


class GrowableCell(nn.Module):
    """One cell: DARTS' graph, each node the sum of all its edges, the output the concatenation of all nodes.

    Args:
        space: its edges and the operations on them.
        placement: what it receives and must give.
        width: channels of every operation at first.
        activation: a name from :data:`TRANSFORM_ACTIVATIONS`.
    """

    def __init__(
        self, space: Space, placement: CellPlacement, width: int, activation: TransformActivation = "identity"
    ) -> None:
        super().__init__()
        self.space = space
        self.width = width
        """Channels that every operation began with."""
        self.preprocessing = placement.preprocessing(affine=False)
        self.join = CELL_OUTPUTS[placement.output]
        self.edges = nn.ModuleList(
            GrowableEdge(
                space.candidates(source, target),
                placement.channels,
                width,
                placement.input_stride if source < space.inputs else 1,
                activation,
            )
            for source, target in space.edges
        )

    def forward(
        self,
        older: Float[Tensor, "batch older older_height older_width"],
        newer: Float[Tensor, "batch newer newer_height newer_width"],
    ) -> Float[Tensor, "batch outputs new_height new_width"]:
        states = [self.preprocessing[0](older), self.preprocessing[1](newer)]
        edges = iter(self.edges)
        for node in range(self.space.inputs, self.space.inputs + self.space.nodes):
            entering = [next(edges)(states[source]) for source in self.space.sources(node)]  # edges stand by target
            states.append(sum(entering[1:], entering[0]))
        return self.join(states[self.space.inputs :])


class GrowableCellNetwork(Growable):
    """The network in which Firefly searches cells: one cell of each kind in :data:`CELL_SECTIONS`.

    At the defaults, the paper's, nodes have 16, 32, 32, 64, 64 channels and operations begin with 4, 8, 8, 16, 16. With
    14 edges of 4 operations in 5 cells it has 280 widths and 632,170 parameters.

    Args:
        space: edges and operations of the cells; its kinds play no part.
        channels: of the first cell's nodes, C; doubled at each reduction.
        width: channels that the first cell's operations begin with; doubled at each reduction.
        classes: number of classes.
        in_channels: channels of the images.
        stem: ``cifar`` or ``imagenet``.
        activation: between an operation's last batch norm and its transform; ``identity`` as in the paper, or ``relu``.

    Raises:
        InvalidInput: sizes below 1, channels below 2, an unknown stem, activation or operation, or an operation that is
            no separable convolution.
    """

    def __init__(
        self,
        space: Space = GROWING_SPACE,
        channels: int = 16,
        width: int = 4,
        classes: int = 10,
        *,
        in_channels: int = 3,
        stem: StemName | str = "cifar",
        activation: TransformActivation | str = "identity",
    ) -> None:
        super().__init__()
        require_positive(channels=channels, width=width, classes=classes)
        if activation not in TRANSFORM_ACTIVATIONS:
            raise unknown_name("activation", activation, TRANSFORM_ACTIVATIONS)
        if space.inputs != 2:
            raise InvalidInput(f"A convolutional search cell has 2 input nodes, this space has {space.inputs}.")
        for name in dict.fromkeys(name for edge in space.edges for name in space.candidates(*edge)):
            _check_growable(name)
        form: TransformActivation = "relu" if activation == "relu" else "identity"
        self.space = space
        self.stem = build_stem(stem, in_channels, channels)
        nodes = dict.fromkeys(CELL_SECTIONS, space.nodes)
        self.placements = tuple(stack_cells(len(CELL_SECTIONS), channels, self.stem, nodes))
        self.cells = nn.ModuleList(
            GrowableCell(space, place, width * place.channels // channels, form) for place in self.placements
        )
        self.classifier = nn.Linear(self.placements[-1].output_channels(space.nodes), classes)

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch classes"]:
        older, newer = self.stem(images)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return self.classifier(F.adaptive_avg_pool2d(newer, 1).flatten(1))

    def declare(self) -> Declaration:
        flow = Flow(self)
        for cell in range(len(self.cells)):
            for operations in self.width_names(cell).values():
                for name in operations.values():
                    path = name.removesuffix(".last")
                    flow.write(name, f"{path}.norm").read_by.append(f"{path}.transform")
        return flow.declaration()

    def neurons(self) -> dict[str, int]:
        # What Growable says, without a declaration: a growth asks once a width, and here are 280.
        widths: dict[str, int] = {}
        for number, cell in enumerate(self.cells):
            for edge, own in enumerate(_cell(cell).edges):
                for name, operation in own.operations.items():  # type: ignore[operator, union-attr]
                    widths[f"cells.{number}.edges.{edge}.operations.{name}.last"] = output_channels(operation.last)
        return widths

    def width_names(self, cell: int) -> dict[tuple[int, int], dict[str, str]]:
        """The names of a cell's widths: (source, target) of an edge → operation → name.

        Args:
            cell: its place in the stack, from 0.
        """
        return {
            (source, target): {
                operation: f"cells.{cell}.edges.{number}.operations.{operation}.last"
                for operation in self.space.candidates(source, target)
            }
            for number, (source, target) in enumerate(self.space.edges)
        }

    def operation_widths(self, cell: int) -> dict[tuple[int, int], dict[str, int]]:
        """How many neurons the operations of a cell have now: (source, target) of an edge → operation → channels."""
        neurons = self.neurons()
        return {
            edge: {operation: neurons[name] for operation, name in names.items()}
            for edge, names in self.width_names(cell).items()
        }

    def starting_widths(self) -> Mapping[str, int]:
        """Channels that the operations of each kind of cell began with; 4, 8, 8, 16, 16 in the paper."""
        return {place.kind: _cell(cell).width for place, cell in zip(self.placements, self.cells, strict=True)}


def _cell(module: nn.Module) -> GrowableCell:
    assert isinstance(module, GrowableCell)  # for the type checker: ModuleList forgets
    return module


def _check_growable(name: str) -> None:
    if get_operation(name).kind != "convolution":  # raises where there is none of that name
        raise InvalidInput(
            f"{name!r} has no channels that could grow. Leave it out: the identity map stands on every edge anyway."
        )
    configuration_of(name)
