"""Batch norms of a network, and passes that leave their running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """All batch norms of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def kept_statistics(network: nn.Module | Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Within the block, batch norms in training mode normalise by the batch and leave their buffers alone.

    An architecture step evaluates the network on other data, and at other weights, than the weights' own
    step does; the running statistics must not see it. Give the network, or the batch norms that
    :func:`batch_norms` found in it, so that they need not be looked for in every step.
    """
    norms = batch_norms(network) if isinstance(network, nn.Module) else network
    tracking = [norm for norm in norms if norm.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


class Repeated:
    """A context in which a pass is run again as it ran before, and leaves no trace in the batch norms.

    It notes how the norms tracked their statistics when it was made, and may be entered any number of times.
    """

    def __init__(self, norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> None:
        self.norms = norms
        self.tracking = [norm.track_running_stats for norm in norms]

    def __enter__(self) -> None:
        self.before = [norm.track_running_stats for norm in self.norms]
        self.values = [(buffer, buffer.clone()) for norm in self.norms for buffer in norm.buffers()]
        self._track(self.tracking)

    def __exit__(self, *_: object) -> None:
        self._track(self.before)
        for buffer, value in self.values:
            buffer.copy_(value)
        self.values = []

    def _track(self, flags: Sequence[bool]) -> None:
        for norm, flag in zip(self.norms, flags, strict=True):
            norm.track_running_stats = flag
