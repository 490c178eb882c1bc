"""Which entries of a network's parameters belong to which neurons, and which of them a task may change (Firefly §2.4).

A neuron is a filter of the layers that write its width, its batch norm's scale and shift, and, where it is new, a
column of every layer that reads it. So an entry of a weight stands between two neurons, one that reads and one that is
read.

What the paper leaves open, and what we do: a locked neuron reads a new one by a weight that comes with the new neuron,
as it does in width growth (§2.2). A locked neuron reads an unlocked copy as it read the original, by the same weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.growth.surgery import blocks_of
from nasbook.networks import Growable

NEW = -1
"""In place of a neuron's number: there is none."""


@dataclass(frozen=True)
class Axes:
    """What the first two dimensions of a parameter count."""

    writes: str | None
    """The width whose neurons the first dimension counts; None for a classifier's classes."""
    reads: str | None
    """The width whose neurons the second dimension counts; None for a bias, a batch norm, or an image's channels."""
    positions: int = 1
    """Entries of the second dimension for each neuron: pixels, in a linear layer after a flattening."""


def axes_of(network: Growable) -> dict[str, Axes]:
    """The axes of all parameters, by name.

    Raises:
        InvalidInput: a grouped convolution divides a width.
    """
    writes: dict[str, str] = {}
    reads: dict[str, tuple[str, int]] = {}
    neurons = network.neurons()
    for width in network.declare().widths:
        if blocks_of(network, width) > 1:
            raise InvalidInput(f"Grouped convolutions divide the width {width.name}: its neurons can't be masked.")
        for path in (*width.written_by, *width.along):
            writes |= {f"{path}.weight": width.name, f"{path}.bias": width.name}
        for path in width.read_by:
            layer = network.get_submodule(path)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            reads[f"{path}.weight"] = (width.name, layer.weight.shape[1] // neurons[width.name])
    return {
        name: Axes(writes.get(name), *reads.get(name, (None, 1))) for name, _ in network.named_parameters()
    }


def statistics_of(network: Growable) -> dict[str, str]:
    """The width of every running statistic of a batch norm, by the buffer's name."""
    return {
        f"{path}.{name}": width.name
        for width in network.declare().widths
        for path in width.along
        for name in ("running_mean", "running_var")
        if getattr(network.get_submodule(path), name, None) is not None
    }


@dataclass(frozen=True)
class Slots:
    """Where the neurons of one width of a task's network come from, in order: locked ones first, then its own."""

    locked: tuple[int, ...] = ()
    """Numbers, in the master network, of the neurons that earlier tasks made; ascending."""
    copies: tuple[int, ...] = ()
    """For each of the task's own neurons the number of the one that it was copied from, or -1 for a new one."""

    def __len__(self) -> int:
        return len(self.locked) + len(self.copies)

    def owned(self) -> Bool[Tensor, " neurons"]:
        """Which neurons the task has made."""
        return torch.arange(len(self)) >= len(self.locked)

    def new(self) -> Bool[Tensor, " neurons"]:
        """Which neurons the task has made from nothing."""
        return torch.tensor([False] * len(self.locked) + [source == NEW for source in self.copies])

    def grown(self, unlocked: Sequence[int], new: int) -> Slots:
        """After a growth of the same task.

        Args:
            unlocked: places of the locked neurons whose copies take their place.
            new: how many new neurons there are.
        """
        kept = tuple(number for place, number in enumerate(self.locked) if place not in set(unlocked))
        copied = tuple(self.locked[place] for place in sorted(unlocked))
        return Slots(kept, (*self.copies, *copied, *[NEW] * new))


def all_owned(network: Growable) -> dict[str, Slots]:
    """The slots of a first task: every neuron is new."""
    return {name: Slots((), (NEW,) * count) for name, count in network.neurons().items()}


def free_entries(network: Growable, slots: Mapping[str, Slots]) -> dict[str, Bool[Tensor, "..."]]:
    """Which entries of each parameter a task may change; they are what it adds to the memory.

    Those of its own neurons' filters, batch norms and biases; what anyone reads its new neurons by; and the classifier.

    Args:
        network: the task's.
        slots: of all its widths.
    """
    free = {}
    parameters = dict(network.named_parameters())
    for name, axes in axes_of(network).items():
        parameter = parameters[name]
        if axes.writes is None:
            free[name] = torch.ones(parameter.shape, dtype=torch.bool)
            continue
        rows = slots[axes.writes].owned()
        entries = rows.view(-1, *[1] * (parameter.dim() - 1)).expand(parameter.shape)
        if axes.reads is not None:
            columns = slots[axes.reads].new().repeat_interleave(axes.positions)
            entries = entries | columns.view(1, -1, *[1] * (parameter.dim() - 2))
        free[name] = entries.clone()
    return free


class LockedEntries:
    """Keeps entries of a network's parameters as they are while an optimiser works on the others.

    An optimiser moves every entry of a tensor: weight decay and momentum do even where a gradient is zero. So the
    gradients of locked entries are cleared before a step, and their values put back after it.

    Args:
        network: whose parameters are to be kept, as they are now.
        free: which entries may change, by the names of the parameters; of others, all may.
    """

    def __init__(self, network: nn.Module, free: Mapping[str, Bool[Tensor, "..."]]) -> None:
        self._kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, parameter in network.named_parameters():
            entries = free.get(name)
            if entries is not None and not entries.all():
                locked = ~entries.to(parameter.device)
                self._kept.append((parameter, locked, parameter.detach().clone()))

    def clear_gradients(self) -> None:
        """Zeroes the gradients of locked entries; call between the backward pass and the step."""
        for parameter, locked, _ in self._kept:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(locked, 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the locked entries back; call after the step."""
        for parameter, locked, values in self._kept:
            parameter.copy_(torch.where(locked, values, parameter))


def take(tensor: Tensor, dimension: int, index: Int64[Tensor, " neurons"], positions: int = 1) -> Tensor:
    """The entries of some neurons along a dimension that has ``positions`` entries for each."""
    spread = (index[:, None] * positions + torch.arange(positions)).flatten()
    return tensor.index_select(dimension, spread.to(tensor.device))
