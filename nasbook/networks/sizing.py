"""How wide a network has to be for a given number of parameters.

Papers compare cells at similar sizes by choosing the initial channels C (Stretchable Cells, Tables 1 and 3).
"""

from __future__ import annotations

from typing import Any

import torch

from nasbook.errors import InvalidInput, require_positive
from nasbook.genotypes import Genotype
from nasbook.networks.derived import DerivedNetwork

MOST_CHANNELS = 4096
"""Where the search for a width ends."""


def parameters_of(genotype: Genotype, channels: int, cells: int, classes: int = 10, **options: Any) -> int:
    """Number of parameters of the derived network, without allocating it; ``options`` as for the network."""
    with torch.device("meta"):
        network = DerivedNetwork(genotype, channels, cells, classes, **options)
    return sum(parameter.numel() for parameter in network.parameters())


def channels_for(parameters: int, genotype: Genotype, cells: int, classes: int = 10, **options: Any) -> int:
    """The channels C of the first cell with which the derived network comes nearest to a number of parameters.

    The number grows with C about quadratically; of two equally near ones the smaller C is taken.

    Args:
        parameters: how many parameters the network is to have.
        genotype: its cells.
        cells: number of cells, L.
        classes: number of classes.
        options: further arguments of :class:`~nasbook.networks.DerivedNetwork`.

    Raises:
        InvalidInput: the fewest channels that the stem can have take more than twice as many parameters, or 4096
            channels take fewer.
    """
    require_positive(parameters=parameters)

    def count(channels: int) -> int:
        return parameters_of(genotype, channels, cells, classes, **options)

    least = 2 if options.get("stem") == "imagenet" else 1  # its first convolution has half of them
    low, high = least, 2 * least
    if count(low) > 2 * parameters:
        raise InvalidInput(
            f"A network of {cells} such cells has {count(low):,} parameters with C = {low}; {parameters:,} is too few. "
            f"Ask for {-(-count(low) // 2):,} or more, or for fewer cells."
        )
    while count(high) < parameters:
        low, high = high, 2 * high
        if high > MOST_CHANNELS:
            raise InvalidInput(f"parameters={parameters:,} would take more than {MOST_CHANNELS} channels.")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return low if parameters - count(low) <= count(high) - parameters else high
