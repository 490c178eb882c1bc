"""The radial-basis network of Firefly's first experiment, and its data (Appendix B.1, Eq. 6)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook.errors import require_positive
from nasbook.networks.growable import Declaration, Flow, Growable

TARGET_NEURONS = 15
"""Neurons of the network that labels the data."""

TARGET_VARIANCE = 3.0
"""Of its weights. The paper writes N(0, 3); we read the 3 as a variance, as N(μ, σ²) is commonly written."""

DATA_POINTS = 1000
"""Inputs of the data."""

DATA_LIMIT = 5.0
"""The inputs are uniform between minus and plus this."""


class Gaussian(nn.Module):
    """σ(t) = exp(-t²/2)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.exp(-x.square() / 2)


class RadialNetwork(Growable):
    """f(x) = Σᵢ wᵢ exp(-(θᵢ₁x + θᵢ₂)²/2) (Eq. 6): a linear layer, Gaussians, and a linear layer without bias.

    θ₁ is ``hidden.weight``, θ₂ is ``hidden.bias`` and w is ``output.weight``. They begin standard normal.

    Args:
        neurons: m.

    Raises:
        InvalidInput: no neuron.
    """

    def __init__(self, neurons: int = 1) -> None:
        super().__init__()
        require_positive(neurons=neurons)
        self.hidden = nn.Linear(1, neurons)
        self.activation = Gaussian()
        self.output = nn.Linear(neurons, 1, bias=False)
        self.draw(1.0)

    def draw(self, variance: float, generator: torch.Generator | None = None) -> None:
        """Draws all weights anew from N(0, variance): θ₁, then θ₂, then w."""
        with torch.no_grad():
            for parameter in (self.hidden.weight, self.hidden.bias, self.output.weight):
                parameter.normal_(0, math.sqrt(variance), generator=generator)

    def forward(self, x: Float[Tensor, "points 1"]) -> Float[Tensor, "points 1"]:
        return self.output(self.activation(self.hidden(x)))

    def declare(self) -> Declaration:
        flow = Flow(self)
        flow.write("hidden").read_by.append("output")
        return flow.declaration()


def radial_target(generator: torch.Generator) -> RadialNetwork:
    """A network that labels data, drawn as B.1 says: 15 neurons whose weights are i.i.d. normal of variance 3."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn in vain
        target = RadialNetwork(TARGET_NEURONS)
    target.draw(TARGET_VARIANCE, generator)
    return target


def radial_data(
    target: RadialNetwork, generator: torch.Generator, points: int = DATA_POINTS
) -> tuple[Float[Tensor, "points 1"], Float[Tensor, "points 1"]]:
    """Inputs, uniform in [-5, 5], and the target's outputs without noise, in the target's precision (B.1).

    Raises:
        InvalidInput: no point.
    """
    require_positive(points=points)
    x = torch.rand(points, 1, generator=generator, dtype=target.hidden.weight.dtype) * (2 * DATA_LIMIT) - DATA_LIMIT
    with torch.no_grad():
        return x, target(x)
