"""Net2Net: every width grows alike, by copies of random neurons (Chen, Goodfellow & Shlens, ICLR 2016).

Chapter 4, a baseline of the Firefly paper. Nothing is asked of the loss, so that a growth takes no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nasbook.errors import InvalidInput
from nasbook.growth import net2deeper, net2wider
from nasbook.methods.growth import Growth, GrowthConfig, Result, Situation


@dataclass(frozen=True)
class Config(GrowthConfig):
    """Net2Net at the Firefly paper's pace."""

    method: ClassVar[str] = "net2net"

    noise: float = 0.1
    """Of the copies' incoming weights, in units of a neuron's own root mean square; without it copies stay equal. Its
    size is not in either paper."""
    new_layers: int = 0
    """Identity layers that a growth inserts at the end of each place (Net2DeeperNet)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0 or self.new_layers < 0:
            raise InvalidInput("noise and new_layers must be 0 or more.")

    def begin(self, situation: Situation) -> Growth:
        return Net2Net(self, situation)


class Net2Net(Growth):
    """One growth by Net2Net."""

    def __init__(self, config: Config, situation: Situation) -> None:
        super().__init__(situation)
        self.config = config

    def finish(self) -> Result:
        network = self.situation.network
        # Two widths of 16 get 5 neurons each at a rate of 0.3, so that a growth is at least as large as others'.
        larger = {name: count + max(1, round(self.config.rate * count)) for name, count in network.neurons().items()}
        grown = net2wider(network, larger, self.situation.generator("copies"), noise=self.config.noise)
        for place in network.declare().places:
            for _ in range(self.config.new_layers):
                end = len(grown.network.get_submodule(place.name))  # type: ignore[arg-type]
                inputs = next(self.situation.batches())[0]  # whose statistics the batch norms undo
                grown = grown.then(net2deeper(grown.network, place.name, end, inputs=inputs))
        return Result.of(self.situation, grown)
