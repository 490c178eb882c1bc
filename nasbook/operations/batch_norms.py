"""Batch norms: passes that leave their running statistics alone, and norms that several processes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nasbook import processes
from nasbook.errors import InvalidInput


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


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by the moments of the whole batch, of which every process of a run has an equal part.

    Values, gradients of any order and running statistics are those that ``nn.BatchNorm2d`` has in one process, up to
    rounding. ``nn.SyncBatchNorm`` runs on GPUs only and can't be differentiated twice, as the second-order update of a
    search does. Alone, and in evaluation mode, this is ``nn.BatchNorm2d`` to the last bit.

    Cost: one message a pass and one more in its backward pass, of a few numbers a channel.
    """

    def forward(self, x: Float[Tensor, "part channels height width"]) -> Float[Tensor, "part channels height width"]:
        together = processes.count()
        by_batch = self.training or self.running_mean is None
        if together == 1 or not by_batch:
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
        own = torch.stack([mean, variance])[None]  # (1, 2, channels)
        before = own.new_zeros(processes.rank(), *own.shape[1:])
        after = own.new_zeros(together - 1 - processes.rank(), *own.shape[1:])
        # A sum in which each process fills its own row, so that all have all rows: (processes, 2, channels).
        means, variances = processes.sum_over_processes(torch.cat([before, own, after])).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)  # of equal parts: within them, and between them
        if self.training and self.track_running_stats:
            self._track(mean.detach(), variance.detach(), together * x.numel() // x.shape[1])
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Float[Tensor, " channels"], variance: Float[Tensor, " channels"], values: int) -> None:
        """Running averages as in ``nn.BatchNorm2d``, of the mean and of the unbiased variance."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (values / (values - 1)), momentum)


def synchronize_norms(network: nn.Module) -> None:
    """Replaces every batch norm of a network by one that several processes share, in place.

    Parameters and buffers are kept, with their names: a state dict means the same before and after, and an optimiser
    may have been built already. What holds the batch norms themselves (a :class:`~nasbook.training.BilevelUpdate`)
    must be built afterwards. A fused cell sees that its modules were replaced, and takes the readable way.

    Raises:
        InvalidInput: the network has a batch norm of another kind than ``nn.BatchNorm2d``.
    """
    for norm in batch_norms(network):
        if type(norm) not in (nn.BatchNorm2d, SynchronizedBatchNorm2d):
            raise InvalidInput(f"Several processes can share an nn.BatchNorm2d, not a {type(norm).__name__}.")
    replaced: dict[nn.Module, SynchronizedBatchNorm2d] = {}  # a norm may stand in two places
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if type(child) is nn.BatchNorm2d:
                if child not in replaced:
                    replaced[child] = _synchronized(child)
                setattr(parent, name, replaced[child])
    modes = [(module, module.training) for module in network.modules()]
    network.train()  # fused cells look at their modules anew after a change of mode
    for module, training in modes:
        module.training = training


def _synchronized(norm: nn.BatchNorm2d) -> SynchronizedBatchNorm2d:
    shared = SynchronizedBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    shared._parameters.update(norm._parameters)
    shared._buffers.update(norm._buffers)
    shared.training = norm.training
    return shared
