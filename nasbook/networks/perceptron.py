"""A multilayer perceptron that can grow."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import InvalidInput, require_positive
from nasbook.networks.growable import Declaration, Flow, Growable
from nasbook.networks.growable_layers import layer_widths


class Perceptron(Growable):
    """Hidden linear layers, each followed by a batch norm or none, σ and a place for new layers; a linear one last.

    Args:
        inputs: numbers a sample; an image is flattened.
        widths: neurons of each hidden layer.
        outputs: classes, or the values of a regression.
        activation: σ.
        normalized: whether a batch norm stands before each σ; then the hidden layers have no bias.

    Raises:
        InvalidInput: no hidden layer, or sizes below 1.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        outputs: int,
        activation: type[nn.Module] = nn.ReLU,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        require_positive(inputs=inputs, outputs=outputs)
        if not widths:
            raise InvalidInput("widths is empty; a perceptron that grows needs a hidden layer.")
        widths = layer_widths(widths, widths)
        self.normalized, self.activation = normalized, activation
        self.layers = nn.ModuleList(
            HiddenLayer(before, width, activation, normalized)
            for before, width in zip((inputs, *widths[:-1]), widths, strict=True)
        )
        self.classifier = nn.Linear(widths[-1], outputs)

    def forward(self, x: Float[Tensor, "batch *inputs"]) -> Float[Tensor, "batch outputs"]:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)

    def declare(self) -> Declaration:
        flow = Flow(self)
        channels = None
        for index in range(len(self.layers)):
            path = f"layers.{index}"
            if channels is not None:
                channels.read_by.append(f"{path}.linear")
            channels = flow.write(f"{path}.linear", *((f"{path}.norm",) if self.normalized else ()))
            channels = flow.place(
                f"{path}.inserted",
                channels,
                kernel_size=0,
                normalized=self.normalized,
                activation=self.activation,
            )
        assert channels is not None
        channels.read_by.append("classifier")
        return flow.declaration()


class HiddenLayer(nn.Module):
    """Linear layer, batch norm or none, σ; then the place for new layers, ``inserted``, at first empty."""

    def __init__(self, inputs: int, outputs: int, activation: type[nn.Module], normalized: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=not normalized)
        self.norm = nn.BatchNorm1d(outputs) if normalized else nn.Identity()
        self.activation = activation()
        self.inserted = nn.Sequential()

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        return self.inserted(self.activation(self.norm(self.linear(x))))
