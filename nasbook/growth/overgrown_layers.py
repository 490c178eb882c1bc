"""The layers of an over-grown network: what stands around a width whose neurons may split or get company.

Old channels travel twice where they may split, as both halves, and are averaged before they are read. Where they may be
unlocked they travel once, moved. New ones travel beside them, and are multiplied by their gates before they are read.
:mod:`nasbook.growth.overgrown` puts these layers into a network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasbook.errors import InvalidInput
from nasbook.networks.growable import Width


class Gates:
    """The candidates of one width and their gates ε. No module, so that all layers around the width can share it."""

    def __init__(
        self, width: Width, old: int, splits: bool, new: int, like: Tensor, unlocks: Sequence[int] = ()
    ) -> None:
        self.width = width
        self.old = old
        self.new = new
        self.splits = splits and old > 0
        self.unlocks = tuple(unlocks)
        self.unlocked = torch.tensor(self.unlocks, dtype=torch.int64, device=like.device)
        self.unlock_gates = nn.Parameter(like.new_zeros(len(self.unlocks)))
        self.split_gates = nn.Parameter(like.new_zeros(old if self.splits else 0))
        self.new_gates = nn.Parameter(like.new_zeros(new))

    @property
    def copies(self) -> int:
        """How many times the old channels travel: twice where they may split."""
        return 2 if self.splits else 1

    def pieces(self, x: Tensor, positions: int = 1) -> tuple[list[Tensor], Tensor | None]:
        """The copies of the old channels, and the new channels; None where there are none."""
        old, new = self.old * positions, self.new * positions
        sizes = [old] * self.copies * bool(old) + [new] * bool(new)
        # In one piece again, in the order of x: kernels choose their arithmetic by it, and bits go with that.
        last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if last else torch.contiguous_format
        parts = [part.contiguous(memory_format=order) for part in x.split(sizes, dim=1)]
        return parts[: self.copies * bool(old)], parts[-1] if new else None


class OvergrownLayer(nn.Module):
    """A convolution or linear layer with the candidates of the width that it reads and of the one that it writes."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, reads: Gates | None, writes: Gates | None) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.reads, self.writes = reads, writes
        weight = layer.weight
        self.positions = 1
        if reads is not None and reads.old:
            self.positions = weight.shape[1] // reads.old
        no_rows, no_columns = weight.new_empty(0, *weight.shape[1:]), weight.new_empty(weight.shape[0], 0)
        splits = weight.shape[0] if writes is not None and writes.splits else 0
        new = writes.new if writes is not None else 0
        read = reads.new * self.positions if reads is not None else 0
        kernel = weight.shape[2:]
        self.splits = nn.Parameter(no_rows.new_zeros(splits, *weight.shape[1:]))
        self.rows = nn.Parameter(no_rows.new_zeros(new, *weight.shape[1:]))
        self.columns = nn.Parameter(no_columns.new_zeros(weight.shape[0], read, *kernel))
        biased = layer.bias is not None
        self.split_biases = nn.Parameter(weight.new_zeros(splits if biased else 0))
        unlocks = len(writes.unlocks) if writes is not None else 0
        self.unlocks = self.unlock_biases = None
        if unlocks:
            self.unlocks = nn.Parameter(no_rows.new_zeros(unlocks, *weight.shape[1:]))
            self.unlock_biases = nn.Parameter(weight.new_zeros(unlocks if biased else 0))
        self.row_biases = nn.Parameter(weight.new_zeros(new if biased else 0))

    def _apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, self.layer.stride, self.layer.padding, self.layer.dilation)

    def forward(self, x: Tensor) -> Tensor:
        old, extra = self._read(x)
        if not len(self.layer.weight) and old is not None:  # a layer without neurons has new ones only
            return self._apply_weight(old, self.rows, self._added_bias())
        # (batch, outputs, ...) of the old neurons, from old and from new channels
        shared = None if old is None else self._apply_weight(old, self.layer.weight, self.layer.bias)
        if extra is not None:
            from_new = self._apply_weight(extra, self.columns, None)
            shared = from_new if shared is None else shared + from_new
        assert shared is not None
        gates = self.writes
        if gates is None:
            return shared
        outputs = [shared] * gates.copies if gates.old else []
        if old is None:  # a projection of a layer that had no neurons: the candidates here read old channels only
            if gates.new:
                outputs.append(shared.new_zeros(len(shared), gates.new, *shared.shape[2:]))
        else:
            if self.unlocks is not None:
                outputs = [self._moved(old, shared)]
            if gates.splits or gates.new:
                scale = gates.split_gates.view(-1, *[1] * (self.splits.dim() - 1))
                added = self._apply_weight(old, torch.cat([scale * self.splits, self.rows]), self._added_bias())
                moved, new = added.split([len(self.splits), len(self.rows)], dim=1)
                if gates.splits:
                    outputs = [shared + moved, shared - moved]  # θ + εδ and θ − εδ
                if gates.new:
                    outputs.append(new)
        return torch.cat(outputs, dim=1)

    def _moved(self, old: Tensor, shared: Tensor) -> Tensor:
        """The neurons with those that may be unlocked at θ + εδ."""
        assert self.writes is not None
        assert self.unlocks is not None
        assert self.unlock_biases is not None
        gates = self.writes.unlock_gates
        bias = gates * self.unlock_biases if len(self.unlock_biases) else None
        moved = self._apply_weight(old, gates.view(-1, *[1] * (self.unlocks.dim() - 1)) * self.unlocks, bias)
        return shared.index_add(1, self.writes.unlocked, moved)

    def _read(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the old columns read, and what the new ones do, gates included."""
        gates = self.reads
        if gates is None:
            return x, None
        copies, new = gates.pieces(x, self.positions)
        old = None
        if copies:
            old = copies[0] if len(copies) == 1 else (copies[0] + copies[1]) / 2
        if new is not None:
            scale = gates.new_gates.repeat_interleave(self.positions)
            new = new * scale.view(-1, *[1] * (new.dim() - 2))  # ε σ(x, δ)
        return old, new

    def _added_bias(self) -> Tensor | None:
        if self.layer.bias is None:
            return None
        assert self.writes is not None
        return torch.cat([self.writes.split_gates * self.split_biases, self.row_biases])


class OvergrownNorm(nn.Module):
    """A batch norm along a width with candidates: both halves of a split have its entries, new neurons fresh ones."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, gates: Gates) -> None:
        super().__init__()
        if norm.running_mean is None:
            raise InvalidInput("A batch norm without running statistics can't be over-grown.")
        self.norm = norm.requires_grad_(False)
        self.gates = gates
        self.register_buffer("new_mean", norm.running_mean.new_zeros(gates.new))
        self.register_buffer("new_var", norm.running_mean.new_ones(gates.new))
        self.batches = 0  # a number of Python's, so that no step waits for the device

    new_mean: Tensor
    new_var: Tensor

    def get_extra_state(self) -> dict[str, int]:
        """How many batches the new neurons have seen."""
        return {"batches": self.batches}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """The inverse of :meth:`get_extra_state`."""
        self.batches = state["batches"]

    def forward(self, x: Tensor) -> Tensor:
        copies, new = self.gates.pieces(x)
        norm = self.norm
        outputs = [
            F.batch_norm(part, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
            if not self.training
            else F.batch_norm(part, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
            for part in copies
        ]
        if new is not None:
            momentum = 0.0
            if self.training:  # a mean over the first batches, then a running one: nothing of the start remains
                self.batches += 1
                momentum = max(0.1 if norm.momentum is None else norm.momentum, 1 / self.batches)
            outputs.append(
                F.batch_norm(new, self.new_mean, self.new_var, None, None, self.training, momentum, norm.eps)
            )
        return torch.cat(outputs, dim=1)


class OvergrownDepthwise(nn.Module):
    """A depthwise convolution along a width with candidates: both halves of a split have its filter."""

    def __init__(self, layer: nn.Conv2d, gates: Gates) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.gates = gates
        self.rows = nn.Parameter(layer.weight.new_zeros(gates.new, *layer.weight.shape[1:]))
        self.row_biases = nn.Parameter(layer.weight.new_zeros(gates.new if layer.bias is not None else 0))

    def forward(self, x: Tensor) -> Tensor:
        copies, new = self.gates.pieces(x)
        outputs = [self._convolve(part, self.layer.weight, self.layer.bias) for part in copies]
        if new is not None:
            outputs.append(self._convolve(new, self.rows, self.row_biases if len(self.row_biases) else None))
        return torch.cat(outputs, dim=1)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, groups=len(weight))
